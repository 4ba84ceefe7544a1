"""Which of the WebUIs this is: told apart by what can be imported. Imports nothing of theirs itself."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

Kind = Literal["AUTOMATIC1111", "Forge", "Forge Neo", "reForge"]


def kind() -> Kind:
    """Of the process that this runs in."""
    if find_spec("modules_forge") is None:
        return "AUTOMATIC1111"
    if find_spec("backend") is None:
        return "reForge"
    return "Forge Neo" if find_spec("modules_forge.presets") is not None else "Forge"
