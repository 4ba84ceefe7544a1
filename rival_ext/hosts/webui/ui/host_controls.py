"""The host's own controls that the panel looks at or sets, found as the host builds them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

OF_BOTH_TABS = {
    name: "{tab}_" + name
    for name in (
        *("prompt", "sampling", "scheduler", "steps", "width", "height", "batch_count", "batch_size", "cfg_scale"),
        "override_settings",
    )
} | {"generation_info": "generation_info_{tab}"}
IMAGES = {
    "image": "img2img_image",
    "sketch": "img2img_sketch",
    "inpaint": "img2maskimg",
    "inpaint_sketch": "inpaint_sketch",
    "inpaint_upload": "img_inpaint_base",
}
"""The images of img2img in the order of its image tabs."""

OF_IMG2IMG = {
    "denoising_strength": "img2img_denoising_strength",
    "resize_mode": "resize_mode",
    "scale": "img2img_scale",
    **IMAGES,
}
"""By the name used here: the `elem_id` in a tab."""

PICTURE_ON_CANVAS = "logical_image_background"
"""Forge's class for it on the page."""


class HostControls:
    """One tab's; some are built before the panel and some after it.

    tab: img2img or txt2img.
    """

    def __init__(self, tab: str):
        self.tab = tab
        names = OF_BOTH_TABS | (OF_IMG2IMG if tab == "img2img" else {})
        self.elem_ids = {name: elem_id.format(tab=tab) for name, elem_id in names.items()}
        self._built: dict[str, Any] = {}
        self._canvas = ""
        self._wanted: list[tuple[tuple[str, ...], Callable[[dict[str, Any]], None]]] = []

    def follow(self, script: Any) -> None:
        """Has the host tell of each as it is built."""
        for name, elem_id in self.elem_ids.items():
            script.on_after_component(partial(self._take, name), elem_id=elem_id)

    def when_built(self, names: tuple[str, ...], use: Callable[[dict[str, Any]], None]) -> None:
        """Calls `use` with those of `names` that this tab has, by name, as soon as they are all there."""
        self._wanted.append((tuple(name for name in names if name in self.elem_ids), use))
        self._serve()

    def _take(self, name: str, created: Any) -> None:
        if isinstance(created.component, gr.HTML):
            # Forge's canvas: the picture on it is a control that is built a little later
            self._canvas = name
            return
        self._built[name] = created.component
        self._serve()

    def see(self, component: Any) -> None:
        """The host's word of each component as it is built, of which only a canvas's picture is taken."""
        if self._canvas and PICTURE_ON_CANVAS in (getattr(component, "elem_classes", None) or ()):
            self._built[self._canvas] = component
            self._canvas = ""
            self._serve()

    def _serve(self) -> None:
        ready = [wish for wish in self._wanted if set(wish[0]) <= set(self._built)]
        self._wanted = [wish for wish in self._wanted if wish not in ready]
        for names, use in ready:
            use({name: self._built[name] for name in names})
