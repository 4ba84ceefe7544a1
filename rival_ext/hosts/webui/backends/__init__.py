"""What differs between the WebUIs: one table of them. This file imports nothing of any WebUI."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rival_ext.hosts.webui.backends.protocol import LoadedModel

WebuiName = Literal["AUTOMATIC1111", "Forge", "Forge Neo", "reForge"]

MODEL_CLASSES: dict[WebuiName, tuple[str, str]] = {
    "AUTOMATIC1111": ("ldm", "LdmModel"),
    "Forge": ("forge", "ForgeModel"),
    "Forge Neo": ("forge_neo", "NeoModel"),
    "reForge": ("reforge", "ReforgeModel"),
}
"""For each WebUI the module of this package and its class for the loaded checkpoint."""


def webui_name() -> WebuiName:
    """Tell in which WebUI this process runs, by the packages that can be imported.

    Returns:
        A key of `MODEL_CLASSES`.
    """
    if find_spec("modules_forge") is None:
        return "AUTOMATIC1111"
    if find_spec("backend") is None:
        return "reForge"
    return "Forge Neo" if find_spec("modules_forge.presets") is not None else "Forge"


def model_class() -> type[LoadedModel]:
    """Import the class for the loaded checkpoint of this WebUI.

    Returns:
        A class whose instances are made from a processing `p`.
    """
    module, name = MODEL_CLASSES[webui_name()]
    found: type[LoadedModel] = getattr(import_module(f"{__name__}.{module}"), name)
    return found
