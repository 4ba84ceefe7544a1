"""The WebUI's door to RIVAL: registers the panel and the settings, hands each batch over; no logic of its own."""

import sys

from modules import script_callbacks, scripts

from rival_ext.ui.axes import add_axes
from rival_ext.ui.panel import panel
from rival_ext.ui.sampler_note import SamplerNote
from rival_ext.ui.settings_page import add_options

HOST = "rival_ext.hosts.webui"


class RivalScript(scripts.Script):
    """An always-on script whose accordion stands beside the WebUI's own Refiner."""

    section = "accordions"
    create_group = False

    def title(self):
        return "RIVAL"

    def show(self, is_img2img):
        self.sampler_note = SamplerNote()
        self.on_after_component(
            lambda created: self.sampler_note.follow(created.component), elem_id=f"{self.tabname}_sampling"
        )
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        controls, self.infotext_fields = panel(self.tabname, release_memory, self.sampler_note)
        return controls

    def process_batch(self, p, *args, **kwargs):
        if wanted(args):
            host().announce(p, args)

    def process_before_every_sampling(self, p, *args, **kwargs):
        if wanted(args):
            host().arm(p, args)


def wanted(args):
    """Whether the panel's switch, or the API's, is anything but off; what is wrong with it the host says."""
    switch = args[0].get("enabled", False) if isinstance(args[0], dict) else args[0]
    return switch is not False


def host():
    """Imported late: switched off, the extension costs nothing."""
    from rival_ext.hosts import webui

    return webui


def release_memory(*_):
    """Gives the memory of all stored inversions back; says how much that was."""
    if HOST not in sys.modules:
        return "No inversion is stored."
    store = sys.modules[HOST].STORE
    freed = store.bytes
    store.clear()
    return f"Released {freed / 2**20:.1f} MB."


script_callbacks.on_ui_settings(add_options)
script_callbacks.on_before_ui(add_axes)
script_callbacks.on_model_loaded(release_memory)
script_callbacks.on_script_unloaded(release_memory)
