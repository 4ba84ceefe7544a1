"""An image from data that nobody vouches for: bounded before it is decoded, upright, in colours that all code knows.

Pillow's own bound on pixels is neither relied on nor changed: a host may have lifted it for its whole process.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping
from hashlib import sha256
from string import whitespace
from typing import Any

import numpy as np
from PIL import Image, TiffTags
from PIL.ImageFile import ImageFile

from rival_ext.errors import RivalError, short_repr
from rival_ext.images.containers import BoundedFile, covers_its_pixels_once, is_sound, without_costly_metadata
from rival_ext.images.foreign import foreign_kind

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""The formats that are read: none of them starts another program or names another file.

AVIF is last because a Pillow without AVIF raises KeyError when it gets there; no other format has matched by then.
"""

READ_FORMATS = "PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF"
"""`FORMATS` in the words of an error sentence."""

MEGABYTES = 128
"""The most that an image's data may take: a camera's 16-bit TIFF of 20 megapixels fits."""

MEGAPIXELS = 100
"""The most that an image may have, twice what cameras take: 400 MB once it is decoded."""

LONGEST_SIDE = 65_535
"""The most pixels in a row or column, which is JPEG's own bound; a BMP of 1 KB and one long row took 25 GB."""

MEGABYTE = 2**20
MEGAPIXEL = 10**6
BASE64_CHARACTERS_PER_BYTE = 4 / 3

AN_IMAGE = "an image, or the base64 text of one"
"""What a field for an image expects, in the words of an error sentence."""

DATA_URL_HEAD = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII | re.IGNORECASE)

ORIENTATION = 0x0112
"""The number of EXIF's tag, and TIFF's, that says how an image lies."""

UPRIGHT = 1

SUBFILE_TYPE = 254
"""The number of TIFF's tag that is odd if the image is a small preview. A camera's raw file begins with one."""

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its orientation.

`ImageOps.exif_transpose` would do the same and decode all of EXIF; that took over 20 s for a JPEG of 62 KB whose tags
share their bytes.
"""

EIGHT_BIT_MODES = ("L", "RGB", "RGBA")
"""The modes of a decoded image: grey, colour, and colour with transparency."""

WHITES = (1, 2**8 - 1, 2**16 - 1, 2**31 - 1)
"""The values that may stand for white in a channel of more than eight bits."""

ROWS_AT_ONCE = 256
"""The rows that `pixel_digest` copies at a time; a copy of all rows of a large image would take 400 MB."""


def decoded_image(name: str, value: Any) -> Image.Image | None:
    """Take the image that a request carries, upright and in one of `EIGHT_BIT_MODES`.

    Args:
        name: The field that the value was sent in.
        value: None, an image, or base64 text with or without a data URL's head.

    Returns:
        The image, which is the given one if nothing about it needs to change; None for None.

    Raises:
        RivalError: The value is no image, or has more bytes or pixels than allowed.
    """
    image = host_image(name, value)
    if image is None:
        return None
    converted = in_eight_bits(image)
    if converted is None:
        raise RivalError(_not_an_image(name, value))
    return converted


def host_image(name: str, value: Any) -> Image.Image | None:
    """Take the image that a request carries in the colours of its file, for a host that converts them itself.

    Args:
        name: The field that the value was sent in.
        value: None, an image, or base64 text with or without a data URL's head.

    Returns:
        The image; None for None.

    Raises:
        RivalError: The value is no image, or has more bytes or pixels than allowed.
    """
    if value is None:
        return None
    image = image_from_text(name, value) if isinstance(value, str) else value
    if not isinstance(image, Image.Image):
        raise RivalError(_not_an_image(name, value))
    refuse_pixels(name, image.size)
    return image


def image_from_text(name: str, text: str) -> Image.Image | None:
    """Decode base64 text, with or without a data URL's head, in one line or in many.

    Args:
        name: The field that the text was sent in.
        text: Any text.

    Returns:
        What `image_from_bytes` returns; None for text that is not base64.

    Raises:
        RivalError: The image has more bytes or pixels than allowed.
    """
    head = DATA_URL_HEAD.match(text)
    start = head.end() if head else 0
    spaces = sum(text.count(space, start) for space in whitespace)
    refuse_bytes(name, (len(text) - start - spaces) / BASE64_CHARACTERS_PER_BYTE)
    try:
        # bytes, because their spaces are removed many times faster than those of text
        data = b64decode(text[start:].encode("ascii").translate(None, whitespace.encode()), validate=True)
    except ValueError:
        return None
    return image_from_bytes(name, data)


def image_from_bytes(name: str, data: bytes) -> Image.Image | None:
    """Decode the first frame of an image file, upright and in its own colours.

    Args:
        name: The field that the data was sent in.
        data: Any bytes.

    Returns:
        The image, without metadata other than transparency; None for bytes that are no image or a damaged one.

    Raises:
        RivalError: The image has more bytes or pixels than allowed, or is of a known format that is not read.
    """
    refuse_bytes(name, len(data))
    if kind := foreign_kind(data):
        raise RivalError(_of_foreign_kind(name, kind))
    try:
        return _decoded(name, data)
    except RivalError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RivalError(
            f"{name} must be an image of at most {MEGAPIXELS} megapixels, or fewer if Pillow's limit is lower; "
            "make it smaller."
        ) from None
    except Exception:  # Pillow raises nearly any exception for a damaged file, MemoryError among them
        return None


def png_texts(data: bytes) -> dict[str, str]:
    """Read the texts that stand before the pixels of a PNG.

    Args:
        data: Any bytes.

    Returns:
        The texts by their names. Empty for bytes that are no PNG, or a damaged one.
    """
    if not is_sound(data):
        return {}
    file = BoundedFile(data)
    try:
        image = Image.open(file, formats=["PNG"])
    except Exception:  # the same exceptions as in `image_from_bytes`
        return {}
    return {str(name): value for name, value in image.info.items() if isinstance(value, str)}


def in_eight_bits(image: Image.Image) -> Image.Image | None:
    """Turn an image upright and convert it to one of `EIGHT_BIT_MODES`.

    More than eight bits are scaled, not clipped; RGBA is used where something may be transparent.

    Args:
        image: An image, decoded or not.

    Returns:
        The converted image, or the given one if it is so already; None if it has no pixels or cannot be decoded.
    """
    if 0 in image.size:
        return None
    try:
        # an image that was opened elsewhere may not be decoded yet
        image.load()
        return _converted(_upright(image))
    except Exception:  # the same exceptions as in `image_from_bytes`
        return None


def pixel_digest(image: Image.Image) -> str:
    """Name an image by its pixels.

    Args:
        image: A decoded image of any mode.

    Returns:
        A SHA-256 of its size and its pixels as RGBA, in hexadecimal digits.
    """
    seen = sha256(repr(image.size).encode())
    for top in range(0, image.height, ROWS_AT_ONCE):
        rows = image.crop((0, top, image.width, min(top + ROWS_AT_ONCE, image.height)))
        seen.update(rows.convert("RGBA").tobytes())
    return seen.hexdigest()


def refuse_bytes(name: str, size: float) -> None:
    """Refuse data that is too long.

    Args:
        name: The field that the data was sent in.
        size: The number of bytes.

    Raises:
        RivalError: There are more than `MEGABYTES`.
    """
    if size > MEGABYTES * MEGABYTE:
        raise RivalError(f"{name} must be an image of at most {MEGABYTES} MB, not {size / MEGABYTE:.1f} MB.")


def refuse_pixels(name: str, size: tuple[int, int]) -> None:
    """Refuse an image that is too large.

    Args:
        name: The field that the image was sent in.
        size: Width and height.

    Raises:
        RivalError: There are more than `MEGAPIXELS`, or a side is longer than `LONGEST_SIDE`.
    """
    width, height = size
    if width * height > MEGAPIXELS * MEGAPIXEL:
        raise RivalError(f"{name} must be an image of at most {MEGAPIXELS} megapixels, not {width}x{height} pixels.")
    if max(size) > LONGEST_SIDE:
        raise RivalError(f"{name} must be an image of at most {LONGEST_SIDE} pixels a side, not {width}x{height}.")


def _decoded(name: str, data: bytes) -> Image.Image | None:
    """Decode the first frame within all bounds; raises RivalError, or anything that Pillow raises."""
    if not is_sound(data):
        return None
    file = BoundedFile(without_costly_metadata(data))
    image = Image.open(file, formats=FORMATS)
    refuse_pixels(name, image.size)
    if not covers_its_pixels_once(image):
        return None
    file.allow_loading()
    if image.format == "TIFF":
        if _tags(image).get(SUBFILE_TYPE, 0) % 2:
            raise RivalError(_of_foreign_kind(name, "a raw file of a camera"))
        _forget_directories(image)
    image.load()
    return _bare(image)


def _forget_directories(tiff: ImageFile) -> None:
    """Remove EXIF's own directories, which Pillow would decode with the pixels: 5 MB took over 7 GB."""
    exif = tiff.getexif()
    for directory in TiffTags.TAGS_V2_GROUPS:
        if directory in exif:
            del exif[directory]


def _bare(image: ImageFile) -> Image.Image:
    """Turn an image upright and drop its metadata: code that looked at the metadata would decode it as well."""
    upright = _upright(image)
    for name in upright.info.keys() - {"transparency"}:
        del upright.info[name]
    upright.format = image.format
    return upright


def _upright(image: Image.Image) -> Image.Image:
    transposition = TRANSPOSITIONS.get(_orientation(image))
    if transposition is None:
        return image
    turned = image.transpose(transposition)
    turned.info.pop("exif", None)
    return turned


def _orientation(image: Image.Image) -> int:
    """Read how an image lies; an image whose tags Pillow cannot read counts as upright."""
    try:
        return int(_tags(image).get(ORIENTATION, UPRIGHT))
    except Exception:  # Pillow raises nearly any exception for damaged EXIF
        return UPRIGHT


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """The tags that say how an image lies: a TIFF's own, else EXIF, read within bounds."""
    if hasattr(image, "tag_v2"):
        tags: Mapping[int, Any] = image.tag_v2
        return tags
    data = image.info.get("exif")
    exif = Image.Exif()
    if data:
        exif.load_from_fp(BoundedFile(data.removeprefix(b"Exif\0\0")))
    return exif


def _converted(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _scaled(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in EIGHT_BIT_MODES else image.convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Scale one channel of more than eight bits to grey; white is the least of `WHITES` that no value exceeds."""
    values = np.nan_to_num(np.array(image, dtype=np.float32), copy=False, posinf=0, neginf=0)
    is_short = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    largest = WHITES[2] if is_short else float(values.max())
    white = next((white for white in WHITES[image.mode != "F" :] if white >= largest), largest)
    # in place: each copy of a large image would take 400 MB
    values *= 255 / white
    values += 0.5
    return Image.fromarray(np.clip(values, 0, 255, out=values).astype(np.uint8))


def _of_foreign_kind(name: str, kind: str) -> str:
    return f"{name} must be {READ_FORMATS}, not {kind}; convert it to PNG or JPEG."


def _not_an_image(name: str, value: Any) -> str:
    return f"{name} must be {AN_IMAGE}, not {short_repr(value)}."
