"""The WebUI's own controls that the panel reads or sets, collected while the WebUI builds its page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

BOTH_TABS = {
    name: "{tab}_" + name
    for name in (
        *("prompt", "sampling", "scheduler", "steps", "width", "height", "batch_count", "batch_size", "cfg_scale"),
        "override_settings",
    )
} | {"generation_info": "generation_info_{tab}"}
"""The controls that img2img and txt2img have: the name used here and the pattern of the `elem_id`."""

IMAGES = {
    "image": "img2img_image",
    "sketch": "img2img_sketch",
    "inpaint": "img2maskimg",
    "inpaint_sketch": "inpaint_sketch",
    "inpaint_upload": "img_inpaint_base",
}
"""The image controls of img2img, in the order of its image tabs: the name used here and the `elem_id`."""

IMG2IMG_ONLY = {
    "denoising_strength": "img2img_denoising_strength",
    "resize_mode": "resize_mode",
    "scale": "img2img_scale",
    **IMAGES,
}
"""The controls that only img2img has: the name used here and the `elem_id`."""

CANVAS_IMAGE_CLASS = "logical_image_background"
"""The CSS class of the control that holds the image of Forge's canvas."""

Use = Callable[[dict[str, Any]], None]
"""Takes controls by name."""


class HostControls:
    """The WebUI's controls in one tab. Some are built before the panel and some after it.

    Args:
        tab: img2img or txt2img.
    """

    def __init__(self, tab: str):
        self.tab = tab
        patterns = BOTH_TABS | (IMG2IMG_ONLY if tab == "img2img" else {})
        self.elem_ids = {name: pattern.format(tab=tab) for name, pattern in patterns.items()}
        self._built: dict[str, Any] = {}
        # the name of the control whose Forge canvas is being built; empty between canvases
        self._canvas = ""
        self._waiting: list[tuple[tuple[str, ...], Use]] = []

    def watch(self, script: Any) -> None:
        """Ask the WebUI to report each of the controls when it is built.

        Args:
            script: The always-on script, through which the WebUI reports.
        """
        for name, elem_id in self.elem_ids.items():
            script.on_after_component(partial(self._take, name), elem_id=elem_id)

    def when_built(self, names: tuple[str, ...], use: Use) -> None:
        """Call a function as soon as the WebUI has built certain controls.

        Args:
            names: Names of controls. Those that this tab does not have are left out.
            use: Called once with the controls by name, in the order of `names`.
        """
        self._waiting.append((tuple(name for name in names if name in self.elem_ids), use))
        self._call_waiting()

    def after_component(self, component: Any) -> None:
        """Take the image control of a Forge canvas. The WebUI calls this for every component that it builds."""
        if self._canvas and CANVAS_IMAGE_CLASS in (getattr(component, "elem_classes", None) or ()):
            self._built[self._canvas] = component
            self._canvas = ""
            self._call_waiting()

    def _take(self, name: str, created: Any) -> None:
        if isinstance(created.component, gr.HTML):
            # this is a Forge canvas, whose image is in another control: Forge builds that one a little later
            self._canvas = name
            return
        self._built[name] = created.component
        self._call_waiting()

    def _call_waiting(self) -> None:
        ready = [entry for entry in self._waiting if set(entry[0]) <= set(self._built)]
        self._waiting = [entry for entry in self._waiting if entry not in ready]
        for names, use in ready:
            use({name: self._built[name] for name in names})


def build_open_tabs() -> list[Any]:
    """Build two hidden numbers for what only the browser knows: the open image tab and the open tab of sizes.

    `rival.withTabs` fills them when an event has them as its first two inputs. Both count from 0.
    """
    return [gr.Number(value=0, visible=False) for _ in range(2)]
