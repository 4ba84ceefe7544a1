"""The extension as the WebUI knows it: registers the panel and the settings, hands each batch over; no logic."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from modules import script_callbacks, scripts

from rival_ext.hosts.webui_api import add_routes
from rival_ext.settings import is_switched_on
from rival_ext.ui.axes import add_axes
from rival_ext.ui.gallery import GalleryButtons
from rival_ext.ui.host_controls import HostControls
from rival_ext.ui.infotext import PASTE_TARGETS
from rival_ext.ui.panel import Panel
from rival_ext.ui.settings_page import add_options

if TYPE_CHECKING:
    from rival_ext.hosts.webui_check import Checked

HOST = "rival_ext.hosts.webui"
PANELS: dict[str, Panel] = {}
"""By tab."""


class RivalScript(scripts.Script):
    """An always-on script whose accordion stands beside the WebUI's own Refiner."""

    section = "accordions"
    create_group = False

    def title(self) -> str:
        return "RIVAL"

    def show(self, is_img2img: bool) -> Any:
        self.host_controls = HostControls(self.tabname)
        self.host_controls.follow(self)
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        panel = PANELS[self.tabname] = Panel(self.tabname, self.host_controls, release_memory, is_stored, check)
        self.infotext_fields = panel.paste_fields
        self.paste_field_names = list(PASTE_TARGETS.values())
        return panel.controls

    def after_component(self, component: Any, **kwargs: Any) -> None:
        self.host_controls.see(component)

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        if is_switched_on(args):
            host().announce(p, args)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        if is_switched_on(args):
            host().arm(p, args)


def host() -> ModuleType:
    """Imported late: switched off, the extension costs nothing."""
    from rival_ext.hosts import webui

    return webui


def is_stored(
    user: str | None, request: Mapping[str, Any], prompt: str, settings: Mapping[str, Any], images: list[str]
) -> bool:
    """Whether a run's inversions are kept; none is before the first one."""
    return HOST in sys.modules and sys.modules[HOST].is_stored(user, request, prompt, settings, images)


def check(request: Mapping[str, Any]) -> Checked:
    """What the inversion of a run gives back; the fields of its request by name."""
    from rival_ext.hosts import webui_check

    return webui_check.check(webui_check.CheckRequest(**request))


def release_memory(user: str | None) -> str:
    """Gives the memory of a user's stored inversions back; says how much that was."""
    # the same sentence whether another user has stored any or nobody has
    if HOST not in sys.modules or not (store := sys.modules[HOST].STORE.of(user)).kept:
        return "No inversion of yours is stored."
    freed = store.bytes
    store.clear()
    return f"Released {freed / 2**20:.1f} MB."


def forget_all(*_: Any) -> None:
    """Gives the memory of every user's stored inversions back."""
    if HOST in sys.modules:
        sys.modules[HOST].STORE.clear_for_all()


def register() -> None:
    """Has the WebUI call what is no part of the script."""
    script_callbacks.on_app_started(add_routes)
    script_callbacks.on_ui_settings(add_options)
    script_callbacks.on_after_component(GalleryButtons(PANELS).see)
    script_callbacks.on_before_ui(add_axes)
    script_callbacks.on_model_loaded(forget_all)
    script_callbacks.on_script_unloaded(forget_all)
