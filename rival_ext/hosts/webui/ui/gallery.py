"""The button "Use as exemplar" beside a gallery's own ones."""

from __future__ import annotations

from typing import Any

from modules.infotext_utils import image_from_url_text
from modules.ui_components import ToolButton

from rival_ext.hosts.webui.ui.gradio_compat import JS
from rival_ext.hosts.webui.ui.panel import Panel
from rival_ext.images.decoding import pixel_digest

TARGETS = {"txt2img": "txt2img", "img2img": "img2img", "extras": "txt2img"}
"""By the gallery's tab: the panel that the image goes to; txt2img needs no other image to begin with."""


class GalleryButtons:
    """Watches the host build its galleries.

    panels: by tab, those that were built already.
    """

    def __init__(self, panels: dict[str, Panel]):
        self.panels = panels
        self._galleries: dict[str, Any] = {}

    def see(self, component: Any, **named: Any) -> None:
        """The host's callback after each of its components."""
        tab, _, part = (named.get("elem_id") or "").partition("_")
        if tab in TARGETS and part == "gallery":
            self._galleries[tab] = component
        # the last of the row that has one in every tab
        if tab in self._galleries and part == "send_to_extras" and TARGETS[tab] in self.panels:
            self._offer(tab, self.panels[TARGETS[tab]])

    def _offer(self, tab: str, panel: Panel) -> None:
        button = ToolButton("🧬", elem_id=f"{tab}_rival_use", tooltip="Use the image as RIVAL's exemplar.")
        outlook = panel.outlook
        chosen = button.click(
            fn=_use,
            **{JS: "extract_image_from_gallery"},
            inputs=[self._galleries[tab]],
            outputs=[panel.of_field["exemplar"], outlook.digests["exemplar"], panel.of_field["enabled"]],
            show_progress=False,
        )
        chosen.then(**{JS: f"rival.show{panel.tab.capitalize()}"}, fn=None, inputs=[], outputs=[])


def _use(shown: Any) -> tuple[Any, str, bool]:
    image = image_from_url_text(shown)
    return image, pixel_digest(image), image is not None
