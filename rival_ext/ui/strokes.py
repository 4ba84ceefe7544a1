"""What is painted on the exemplars where it comes apart from them, as from Forge's canvas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from rival_ext.settings import SLOTS


def with_strokes(values: Mapping[str, Any], strokes: Sequence[Any]) -> dict[str, Any]:
    """The values of the fields, each exemplar with the strokes on it where these came apart from it."""
    painted = dict(values)
    for ending, picture in zip(SLOTS, strokes, strict=False):
        name = "exemplar" + ending
        if isinstance(picture, Image.Image) and isinstance(values.get(name), Image.Image):
            painted[name] = {"image": values[name], "mask": picture.getchannel("A")}
    return painted
