"""A picture from data that nobody vouches for: its size is looked at before it is decoded, its colours are set right.

Pillow's own bound is not relied on: a host may have lifted it for all of its process.
"""

from __future__ import annotations

import io
import re
from base64 import b64decode
from hashlib import sha256
from typing import Any

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from rival_ext.errors import RivalError, short_repr
from rival_ext.images.containers import ORIENTATION, is_sound, orientation

AN_IMAGE = "an image, or the base64 text of one"
"""What an image field must be. It completes the sentence "must be ..."."""

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
"""Plain rasters: none of them starts another program or names another file. AVIF where this Pillow has it."""

MEGABYTES = 128
"""The most that a picture's data may take: a camera's 16-bit TIFF of 20 megapixels fits."""

MEGAPIXELS = 100
"""The most that a picture may have, twice what cameras take: 400 MB once it is decoded."""

MEGABYTE = 2**20
MEGAPIXEL = 10**6
BASE64_CHARACTERS_PER_BYTE = 4 / 3
PREFIX_BYTES = 16
ROWS_AT_ONCE = 256

HEAD = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII | re.IGNORECASE)
"""Of a data URL."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF's orientation: what turns a picture upright."""

EIGHT_BITS = ("L", "RGB", "RGBA")
"""The modes of a picture whose colours are right: none of them needs to be known by who works with it."""

WHITES = (1, 2**8 - 1, 2**16 - 1, 2**31 - 1)
"""What stands for white where a number is wider than eight bits."""


def decoded_image(name: str, value: Any) -> Image.Image | None:
    """An image from what a request can carry: nothing, an image, or base64 text, with or without a data URL's head.

    It is upright, and grey, RGB or RGBA. Raises RivalError, which names the field, for anything else and for more bytes
    or pixels than are taken.
    """
    image = host_image(name, value)
    if image is None:
        return None
    converted = in_eight_bits(image)
    if converted is None:
        raise RivalError(f"{name} must be {AN_IMAGE}, not {short_repr(value)}.")
    return converted


def host_image(name: str, value: Any) -> Image.Image | None:
    """As `decoded_image`, but in its file's own colours: for a host that makes of these what it likes."""
    if value is None:
        return None
    image = value
    if isinstance(value, str):
        image = picture_of_text(name, value)
    if not isinstance(image, Image.Image):
        raise RivalError(f"{name} must be {AN_IMAGE}, not {short_repr(value)}.")
    refuse_pixels(name, image.size)
    return image


def pixel_digest(image: Image.Image | None) -> str:
    """Of an image's pixels; empty for none."""
    if image is None:
        return ""
    seen = sha256(repr(image.size).encode())
    for top in range(0, image.height, ROWS_AT_ONCE):
        # a copy of all of it would take as much memory again as a large picture
        rows = image.crop((0, top, image.width, min(top + ROWS_AT_ONCE, image.height)))
        seen.update(rows.convert("RGBA").tobytes())
    return seen.hexdigest()


def picture_of_text(name: str, text: str) -> Image.Image | None:
    """As `picture_of_data`, from base64 with or without a data URL's head; None for any other text."""
    head = HEAD.match(text)
    start = head.end() if head else 0
    refuse_bytes(name, (len(text) - start) / BASE64_CHARACTERS_PER_BYTE)
    try:
        return picture_of_data(name, b64decode(text[start:], validate=True))
    except ValueError:
        return None


def picture_of_data(name: str, data: bytes) -> Image.Image | None:
    """The first frame of a picture file, upright, in its own colours; None for anything else and for a damaged one.

    name: of the field. Raises RivalError, which names it, for more bytes or more pixels than are taken.
    """
    refuse_bytes(name, len(data))
    try:
        image = _opened(data)
    except Exception:  # a damaged file makes Pillow raise nearly anything
        return None
    if image is None:
        return None
    refuse_pixels(name, image.size)
    try:
        image.load()
        return _bare(image)
    except Exception:  # as above
        return None


def in_eight_bits(image: Image.Image) -> Image.Image | None:
    """Upright and grey, RGB, or RGBA where something is transparent; the picture itself if it is so already.

    More than 8 bits are scaled, not clipped. None for colours that Pillow cannot convert, and for no pixels at all.
    """
    if 0 in image.size:
        return None
    try:
        # one that was opened elsewhere may not be decoded yet
        image.load()
        return _converted(_upright(image))
    except Exception:  # as above
        return None


def refuse_bytes(name: str, size: float) -> None:
    """Raises RivalError, which names the field, for more bytes than a picture's data may take."""
    if size > MEGABYTES * MEGABYTE:
        raise RivalError(f"{name} must be a picture of at most {MEGABYTES} MB, not {size / MEGABYTE:.1f} MB.")


def refuse_pixels(name: str, size: tuple[int, int]) -> None:
    """Raises RivalError, which names the field, for more pixels than a picture may have."""
    width, height = size
    if width * height > MEGAPIXELS * MEGAPIXEL:
        raise RivalError(f"{name} must be a picture of at most {MEGAPIXELS} megapixels, not {width}x{height} pixels.")


def _opened(data: bytes) -> ImageFile | None:
    """By the file's own first bytes; `Image.open` would refuse or warn by Pillow's bound, wherever that stands."""
    Image.init()
    for kind in FORMATS:
        opener, accepts = Image.OPEN.get(kind, (None, None))
        # what is no bool is a sentence about a codec that is missing
        if opener is not None and accepts is not None and accepts(data[:PREFIX_BYTES]) is True:
            return opener(io.BytesIO(data), "") if is_sound(kind, data) else None
    return None


def _bare(image: ImageFile) -> Image.Image:
    """Upright, and without what else stands in the file: whoever looked at that would decode it as well."""
    upright = _upright(image)
    for name in upright.info.keys() - {"transparency"}:
        del upright.info[name]
    upright.format = image.format
    return upright


def _upright(image: Image.Image) -> Image.Image:
    # a TIFF has it among its own tags, and a newer Pillow has turned it by then
    lies = getattr(image, "tag_v2", {}).get(ORIENTATION) or orientation(image.info.get("exif", b""))
    if lies not in TURNS:
        return image
    turned = image.transpose(TURNS[lies])
    turned.info.pop("exif", None)
    return turned


def _converted(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _scaled(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in EIGHT_BITS else image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """One channel of more than eight bits, in grey: white is the least of `WHITES` that no value exceeds."""
    values = np.nan_to_num(np.array(image, dtype=np.float32), copy=False, posinf=0, neginf=0)
    is_short = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    largest = WHITES[2] if is_short else float(values.max())
    white = next((white for white in WHITES[image.mode != "F" :] if white >= largest), largest)
    # in place: each copy of a large picture would take 400 MB
    values *= 255 / white
    values += 0.5
    return Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))
