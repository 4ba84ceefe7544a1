"""The answer to a request, and the form of an image in a request."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image


@dataclass
class Answer:
    """The answer to a request.

    Attributes:
        status: The HTTP status.
        images: The images as arrays. Of a plot its cells, row by row.
        infotexts: One for each image.
        sentence: The error's sentence, if there is an error.
        grid: The whole plot with its legend, on a real WebUI.
    """

    status: int = 200
    images: list[np.ndarray] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    sentence: str = ""
    grid: Image.Image | None = None


def base64_of(image: Image.Image) -> str:
    """Write an image as a request carries it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
