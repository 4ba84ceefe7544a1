"""What RIVAL does to images: fitting one, masks, a contact sheet."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

GAP = 8
CAPTION_HEIGHT = 18
PAPER = (250, 250, 250)
INK = (40, 40, 40)
LARGEST_ASPECT = 4
"""An exemplar with an aspect of its own is cropped to this aspect if it is longer."""

LETTER_WIDTH = 6
NARROWEST_TEXT = 192
"""From twice this many pixels on, a text is enlarged."""

MOST_CUT_OFF = 0.05
"""If a crop takes more of an image away, the report says so."""

WIDEST_ROW = 6
"""So many images stand side by side on a contact sheet before a second row begins."""


def on_white(image: Image.Image) -> Image.Image:
    """Put an image on white.

    Args:
        image: An image, transparent or not.

    Returns:
        The image as RGB; what was transparent is white.
    """
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image and crop what does not fit, the same on opposite sides.

    Args:
        image: Any image.
        size: Width and height of the result.

    Returns:
        The middle of the image at that size.
    """
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def size_of_area(image: Image.Image, side: float, unit: int) -> tuple[int, int]:
    """Find a size with an image's aspect, 4:1 at most, and about the area of a square.

    Args:
        image: The image that gives the aspect.
        side: The side of the square.
        unit: Width and height are multiples of this number.

    Returns:
        Width and height.
    """
    aspect = min(max(image.width / image.height, 1 / LARGEST_ASPECT), LARGEST_ASPECT)
    width, height = (max(1, round(side * aspect**power / unit)) * unit for power in (0.5, -0.5))
    return width, height


def crop_note(name: str, image: Image.Image, size: tuple[int, int]) -> str | None:
    """Say for the report that `fit` cuts much of an image off.

    Args:
        name: What the image is called: the field or the option that it was given in.
        image: The image.
        size: Width and height that it is fitted to.

    Returns:
        The note, without a comma and a colon; None if next to nothing is cut off.
    """
    aspect, fitted = image.width / image.height, size[0] / size[1]
    lost = 1 - min(aspect / fitted, fitted / aspect)
    if lost <= MOST_CUT_OFF:
        return None
    pixels, fitted_pixels = f"{image.width}x{image.height}", f"{size[0]}x{size[1]}"
    return f"{lost:.0%} of {name} was cut off to fit its {pixels} pixels into {fitted_pixels}"


def grey_mask(mask: Image.Image) -> Image.Image:
    """Read a mask from an image's transparency if it has any, else from its brightness.

    Args:
        mask: The image that somebody painted or sent.

    Returns:
        The mask in grey, white where it is set.
    """
    if mask.mode in ("RGBA", "LA", "PA") or "transparency" in mask.info:
        alpha = mask.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha
    return mask.convert("L")


def mask_array(mask: Image.Image, width: int, height: int) -> NDArray[np.float32]:
    """Measure how far a mask is set in each cell of a grid.

    Args:
        mask: The mask, as `grey_mask` reads it.
        width: The number of columns.
        height: The number of rows.

    Returns:
        `[height, width]` from 0 to 1.
    """
    cells = grey_mask(mask).resize((width, height), Image.Resampling.BOX)
    return np.asarray(cells, dtype=np.float32) / np.float32(255)


def rgb_array(image: Image.Image) -> NDArray[np.uint8]:
    """Copy an image's colours.

    Args:
        image: Any image; its transparency is ignored.

    Returns:
        `[height, width, 3]` from 0 to 255.
    """
    return np.array(image.convert("RGB"), dtype=np.uint8)


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Lay images side by side with a caption under each, in one row or as square as they come.

    Args:
        images: One or more images of the same size.
        captions: One caption for each image.

    Returns:
        The sheet as RGB.
    """
    width, height = images[0].size
    columns = len(images) if len(images) <= WIDEST_ROW else math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    cell_width, cell_height = width + GAP, height + GAP + CAPTION_HEIGHT
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = GAP + index % columns * cell_width, GAP + index // columns * cell_height
        sheet.paste(image, (left, top))
        draw.text((left, top + height + 3), caption, fill=INK, font=ImageFont.load_default())
    return sheet


def text_image(text: str, size: tuple[int, int]) -> Image.Image:
    """Write a text on an image, as large as it is easy to read.

    Args:
        text: A sentence or two, in Latin letters.
        size: Width and height of the image.

    Returns:
        The image as RGB. What does not fit is cut off at the bottom.
    """
    scale = max(1, min(size) // NARROWEST_TEXT)
    page = Image.new("RGB", (math.ceil(size[0] / scale), math.ceil(size[1] / scale)), PAPER)
    lines = "\n".join(textwrap.wrap(text, max(1, (page.width - GAP) // LETTER_WIDTH)))
    ImageDraw.Draw(page).multiline_text((GAP // 2, GAP // 2), lines, fill=INK, font=ImageFont.load_default(), spacing=2)
    return page.resize(size, Image.Resampling.NEAREST)
