"""What a request to a server gives, and how an image travels in a request."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image


@dataclass
class Answer:
    """What a request gave: HTTP status, images as arrays, an infotext each, or the error's sentence.

    grid: a real plot's, with its legend; its cells are the images, row by row.
    """

    status: int = 200
    images: list[np.ndarray] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    sentence: str = ""
    grid: Image.Image | None = None


def base64_of(image: Image.Image) -> str:
    """An image as a request carries it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
