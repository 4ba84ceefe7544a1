"""The button "Use as exemplar", beside the buttons that the WebUI has under each of its galleries."""

from __future__ import annotations

from typing import Any

from modules.infotext_utils import image_from_url_text
from modules.ui_components import ToolButton

from rival_ext.hosts.webui.ui.gradio_compat import JS
from rival_ext.hosts.webui.ui.panel import Panel
from rival_ext.hosts.webui.ui.run_preview import control_digest

TARGETS = {"txt2img": "txt2img", "img2img": "img2img", "extras": "txt2img"}
"""For each tab with a gallery the tab whose panel gets the image. From extras it is txt2img, which needs no other
image."""


class GalleryButtons:
    """Adds a button under each gallery while the WebUI builds its page.

    Args:
        panels: The panels that are built already, by tab. Others may be added later.
    """

    def __init__(self, panels: dict[str, Panel]):
        self.panels = panels
        self._galleries: dict[str, Any] = {}

    def after_component(self, component: Any, **arguments: Any) -> None:
        """Remember a gallery, and add the button to its row. The WebUI calls this for every component that it builds.

        Args:
            component: The component.
            arguments: The arguments that it was made with.
        """
        tab, _, part = (arguments.get("elem_id") or "").partition("_")
        if tab in TARGETS and part == "gallery":
            self._galleries[tab] = component
        # in every tab the last button of the row
        if tab in self._galleries and part == "send_to_extras" and TARGETS[tab] in self.panels:
            self._add_button(tab, self.panels[TARGETS[tab]])

    def _add_button(self, tab: str, panel: Panel) -> None:
        button = ToolButton("🧬", elem_id=f"{tab}_rival_use", tooltip="Use the image as RIVAL's exemplar.")
        chosen = button.click(
            fn=_panel_values,
            **{JS: "extract_image_from_gallery"},
            inputs=[self._galleries[tab]],
            outputs=[panel.fields["exemplar"], panel.digests["exemplar"], panel.fields["enabled"]],
            show_progress=False,
        )
        chosen.then(**{JS: f"rival.show{panel.tab.capitalize()}"}, fn=None, inputs=[], outputs=[])


def _panel_values(shown: Any) -> tuple[Any, str, bool]:
    """Read the gallery's image, and return it with its digest and with whether the panel is to be switched on."""
    image = image_from_url_text(shown)
    return image, control_digest(image), image is not None
