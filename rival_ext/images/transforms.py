"""Pictures for people: reading a photo, fitting it, comparing, a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from rival_ext.errors import RivalError
from rival_ext.images.decoding import MEGABYTE, MEGABYTES, in_eight_bits, picture_of_data

GAP = 8
CAPTION = 18
PAPER = (250, 250, 250)
INK = (40, 40, 40)
LARGEST_ASPECT = 4


def read_image(name: str, path: Path) -> Image.Image:
    """The picture in a file, upright, with its transparency, within the bounds of `rival_ext.images.decoding`.

    name: what the file is given as. Raises RivalError, which names it, if it is no picture.
    """
    try:
        with path.open("rb") as file:
            # one byte more than is taken tells that there is more, even of a device without an end
            data = file.read(MEGABYTES * MEGABYTE + 1)
    except FileNotFoundError:
        raise RivalError(f"{name} {path} does not exist.") from None
    except (OSError, ValueError):
        raise RivalError(f"{name} {path} cannot be read.") from None
    picture = picture_of_data(f"{name} {path}", data)
    converted = picture and in_eight_bits(picture)
    if converted is None:
        raise RivalError(f"{name} {path} is not a picture that can be read.")
    return converted


def on_white(photo: Image.Image) -> Image.Image:
    """The picture as RGB, what is transparent in white."""
    photo = photo.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")


def fit(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The photo at `size`, cropped around its middle to that aspect."""
    return ImageOps.fit(photo, size, Image.Resampling.LANCZOS)


def size_of_area(photo: Image.Image, side: float, unit: int) -> tuple[int, int]:
    """Width and height, multiples of `unit`, with the photo's aspect (4:1 at most) and about the area `side * side`."""
    aspect = min(max(photo.width / photo.height, 1 / LARGEST_ASPECT), LARGEST_ASPECT)
    width, height = (max(1, round(side * aspect**power / unit)) * unit for power in (0.5, -0.5))
    return width, height


def grey_mask(mask: Image.Image) -> Image.Image:
    """A mask in grey, white where it is set: its transparency if it has any, else its brightness."""
    if mask.mode in ("RGBA", "LA", "PA") or "transparency" in mask.info:
        alpha = mask.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha
    return mask.convert("L")


def mask_array(mask: Image.Image, width: int, height: int) -> NDArray[np.float32]:
    """How far each cell of a grid over the mask is set, `[height, width]` from 0 to 1."""
    cells = grey_mask(mask).resize((width, height), Image.Resampling.BOX)
    return np.asarray(cells, dtype=np.float32) / np.float32(255)


def rgb_array(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an image, `[height, width, 3]`."""
    return np.array(image.convert("RGB"))


def contact_sheet(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Pictures of one size side by side with a caption under each, in rows as square as they come."""
    width, height = pictures[0].size
    columns = len(pictures) if len(pictures) <= 6 else math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    cell_width, cell_height = width + GAP, height + GAP + CAPTION
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = GAP + index % columns * cell_width, GAP + index // columns * cell_height
        sheet.paste(picture, (left, top))
        draw.text((left, top + height + 3), caption, fill=INK, font=ImageFont.load_default())
    return sheet
