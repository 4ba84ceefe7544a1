"""How similar images are in colour and in layout."""

from __future__ import annotations

import numpy as np
from PIL import Image


def colours(images, region=...):
    """Compute a palette: quantiles of each channel over the pixels of all images."""
    pixels = np.concatenate([np.asarray(image)[region].reshape(-1, 3) for image in images])
    return np.quantile(pixels, [0.1, 0.3, 0.5, 0.7, 0.9], axis=0)


def apart(palette, other):
    return np.abs(palette - other).mean()


def likeness(images, photo):
    """Compute how much of a photo's layout images keep: the mean correlation of brightness, pixel by pixel."""
    grey = [np.asarray(Image.fromarray(image).convert("L"), dtype=float).ravel() for image in images]
    photo = np.asarray(photo.convert("L"), dtype=float).ravel()
    return np.mean([np.corrcoef(image, photo)[0, 1] for image in grey])
