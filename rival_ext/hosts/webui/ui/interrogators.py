"""The WebUI's interrogators, which describe a picture."""

from __future__ import annotations

from modules import deepbooru, shared
from PIL import Image


def of_clip(exemplar: Image.Image) -> str:
    """What CLIP sees in it."""
    return str(shared.interrogator.interrogate(exemplar.convert("RGB")))


def of_deepbooru(exemplar: Image.Image) -> str:
    """What DeepBooru sees in it."""
    return str(deepbooru.model.tag(exemplar.convert("RGB")))


INTERROGATORS = {
    "clip": ("Interrogate CLIP", of_clip),
    "deepbooru": ("Interrogate DeepBooru", of_deepbooru),
}
