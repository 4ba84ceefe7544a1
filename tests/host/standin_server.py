"""The stand-in as a server of this process."""

from __future__ import annotations

import base64
import importlib.util
import io

import numpy as np
from PIL import Image, ImageOps

from tests.host.answers import Answer
from tests.host.data_folder import ROOT
from tests.host.probe import PLACES, Probe


class StandInServer:
    """The stand-in, with the extension or without it."""

    name = "stand-in"

    def __init__(self, checkpoint, with_extension=True):
        from tests.host.standin.processing import ScriptRunner
        from tests.host.standin.state import state

        self.checkpoint = checkpoint
        self.state = state
        self.scripts, self.defaults = ScriptRunner(), []
        if with_extension:
            self._load_script()
        self.probe = Probe(lambda: checkpoint.model.diffusion_model, state)

    def _load_script(self):

        spec = importlib.util.spec_from_file_location("rival_script", ROOT / "scripts" / "rival.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        script = module.RivalScript()
        script.show(is_img2img=True)
        self.scripts.alwayson_scripts.append(script)
        self.defaults = [control.value for control in script.ui(is_img2img=True)]
        script.args_from, script.args_to = 1, 1 + len(self.defaults)

    def plan(self, at_call=0, action="", place=PLACES[0]):
        self.probe.plan(at_call, action, place)

    def calls(self):
        return self.probe.calls

    def leftovers(self):
        return self.probe.leftovers()

    def hooked(self):
        return self.probe.hooked

    def foreign_forwards(self):
        return self.probe.layers() - self.probe.own_forwards()

    def memory(self):
        return {"tensors": self.probe.tensor_bytes()}

    def is_idle(self):
        from modules import call_queue

        return not call_queue.queue_lock.locked()

    def stored(self):
        return len(self.session().store.entries)

    def forget(self):
        self.session().store.clear()

    def session(self):
        """Return what the extension keeps between runs."""
        from rival_ext.hosts.webui.script import SESSION

        return SESSION.open()

    def imported(self):
        return self.probe.imported()

    def schedules(self):
        return ["Automatic", "Karras"]

    def axes(self, tab="img2img"):
        from tests.host.standin import plot

        return [option.label for option in plot.OPTIONS]

    def img2img(self, **payload):
        images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in payload["init_images"]]
        payload["init_images"] = [ImageOps.exif_transpose(image) for image in images]
        mask = payload.pop("mask", None)
        payload["image_mask"] = mask and Image.open(io.BytesIO(base64.b64decode(mask)))
        return self._process("Img2Img", payload)

    def txt2img(self, **payload):
        return self._process("Txt2Img", payload)

    def _process(self, kind, payload):
        from tests.host.standin import plot, processing

        given = payload.pop("alwayson_scripts", {}).get("RIVAL", {}).get("args", [])
        axes = payload.pop("plot", None)
        self.state.begin()
        try:
            p = getattr(processing, kind)(self.checkpoint, **payload)
            # the arguments of a selected script come first
            self.scripts.selectable_scripts = [plot.SCRIPT]
            p.scripts, p.script_args = self.scripts, [int(bool(axes)), *given, *self.defaults[len(given) :]]
            made = plot.process_plot(p, axes) if axes else processing.process_images(p)
        except Exception as error:
            return Answer(getattr(error, "status_code", 500), sentence=str(error))
        return Answer(200, [np.asarray(image) for image in made.images], made.infotexts)

    def stop(self):
        """Do nothing."""
