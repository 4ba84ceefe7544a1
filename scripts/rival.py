"""The WebUI's door to RIVAL: registers the panel and hands each batch over."""

from modules import script_callbacks, scripts

from rival_ext.hosts import webui
from rival_ext.ui.panel import panel


class RivalScript(scripts.Script):
    """An always-on script whose accordion stands beside the WebUI's own Refiner."""

    section = "accordions"
    create_group = False

    def title(self):
        return "RIVAL"

    def show(self, is_img2img):
        return scripts.AlwaysVisible if is_img2img else False

    def ui(self, is_img2img):
        controls, self.infotext_fields = panel(f"{self.tabname}_rival")
        return controls

    def process_batch(self, p, *args, **kwargs):
        webui.arm(p, args)


def _forget_chains(*_):
    webui.STORE.clear()


script_callbacks.on_model_loaded(_forget_chains)
script_callbacks.on_script_unloaded(_forget_chains)
