"""The hosts behind one interface: the stand-in in this process, real WebUIs over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file

from tests.host.probe import PLACES, Probe

ROOT = Path(__file__).resolve().parents[2]
STARTUP_SECONDS = 240
OPTIONS = {
    **{"show_progress_type": "Approx cheap", "samples_save": False},
    # the host gives an option that a request overrides its value back only if its settings name it
    **{"overlay_inpaint": True, "CLIP_stop_at_last_layers": 1, "token_merging_ratio": 0.0, "rival_memory_mb": 2048},
}
NOT_KEPT_ALIVE = httpx.Limits(max_keepalive_connections=0)
"""A WebUI closes its connections when its page is built anew, Forge after an error too."""
IDLE = {"locked": False, "waiting": 0, "job": "", "job_count": 0}
"""Of the queue, between requests."""
PLOT = "x/y/z plot"
NO_AXIS = [0, "", []]
OPTIONS_OF_PLOT = [True, False, False, False, False, False, 0, True]
"""The cells beside the grid, and the values of an axis written as text."""
LORA = "contract"
"""Name of the LoRA that a real server finds in its models."""
REFINER = "refiner.ckpt"
"""Name of its second checkpoint, which is of the same shape; Forge knows it by this without its end."""
STYLE = ("contract", "{prompt}, (yellow:1.3) [red:brown:0.5]", "a house, blue")
"""A style that it finds: its name, its prompt around the request's own, and its negative prompt."""


@dataclass
class Answer:
    """What a request gave: HTTP status, pictures as arrays, an infotext each, or the error's sentence.

    grid: a real plot's, with its legend; its cells are the pictures, row by row.
    """

    status: int = 200
    pictures: list[np.ndarray] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)
    sentence: str = ""
    grid: Image.Image | None = None


def base64_of(image: Image.Image) -> str:
    """An image as a request carries it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class StandInServer:
    """The stand-in; `with_extension` False is a server that never had it."""

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
        import importlib.util

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
        """What the extension keeps between runs."""
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
            # the arguments of a script that is chosen come before
            p.scripts, p.script_args = self.scripts, [0, *given, *self.defaults[len(given) :]]
            made = plot.process_plot(p, axes) if axes else processing.process_images(p)
        except Exception as error:
            return Answer(getattr(error, "status_code", 500), sentence=str(error))
        return Answer(200, [np.asarray(picture) for picture in made.images], made.infotexts)

    def stop(self):
        """Nothing runs."""


class WebuiServer:
    """A WebUI started for these tests with folders of its own; the one it belongs to is only read.

    title, variable: of such a WebUI in a sentence; what names its folder. default: where else it is looked for.
    cpu: flags for the CPU in 32 bits. legend: options of its plot, from the legend's to the cells'.
    """

    name: str
    title: str
    variable: str
    default: Path | None = None
    cpu: tuple[str, ...]
    legend = (True,)

    @classmethod
    def folder(cls) -> Path | None:
        """The WebUI to test on: what the variable names, or the default folder, or none."""
        named = os.environ.get(cls.variable)
        folder = Path(named) if named else cls.default
        found = folder and (folder / "webui.py").is_file() and python_of(folder).is_file()
        return folder if found else None

    @classmethod
    def skipped(cls) -> str:
        """Why its cases are."""
        return f"{cls.title}: none found; set {cls.variable} to its folder"

    def __init__(self, folder: Path, data: Path, with_extension=True, options=None, flags=(), environment=None):
        self._fill(data, with_extension)
        self._add_options(data, options or {})
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # one for all requests: making one takes longer than a short request
        self.client = httpx.Client(base_url=self.url, timeout=600, limits=NOT_KEPT_ALIVE)
        self.log = data / "log.txt"
        options = [
            *("--data-dir", str(data), "--ckpt", str(checkpoint_in(data)), "--no-download-sd-model"),
            *("--skip-torch-cuda-test", *self.cpu, "--api", "--server-name", "127.0.0.1", "--port", str(self.port)),
            *flags,
        ]
        environment = {
            **os.environ,
            **{"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
            "GRADIO_ANALYTICS_ENABLED": "False",
            **(environment or {}),
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(python_of(folder)), "launch.py", "--skip-prepare-environment", *options],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self._wait()

    @staticmethod
    def _fill(data: Path, with_extension: bool):
        """The WebUI's data folder: the small checkpoint, settings that fetch nothing, the extension or not."""
        (data / "extensions").mkdir(parents=True)
        (data / "extensions" / "rival-probe").symlink_to(ROOT / "tests" / "host" / "probe_extension")
        if with_extension:
            (data / "extensions" / "sd-webui-rival").symlink_to(ROOT)
        checkpoint = checkpoint_in(data)
        checkpoint.parent.mkdir(parents=True)
        shutil.copy(ROOT / "demo" / "tiny-emoji.safetensors", checkpoint)
        # the host reads no newer form
        torch.save(_refiner(checkpoint), checkpoint.with_name(REFINER), _use_new_zipfile_serialization=False)
        description = (ROOT / "demo" / "tiny-emoji.yaml").read_text()
        description = description.replace("version: tiny-clip", f"version: {ROOT / 'demo' / 'tiny-clip'}")
        for described in (checkpoint, checkpoint.with_name(REFINER)):
            described.with_suffix(".yaml").write_text(description)
        (data / "styles.csv").write_text('name,prompt,negative_prompt\n"{}","{}","{}"\n'.format(*STYLE))
        (data / "models" / "Lora").mkdir()
        save_file(_lora(), data / "models" / "Lora" / f"{LORA}.safetensors")
        (data / "config.json").write_text(json.dumps(OPTIONS))

    @staticmethod
    def _add_options(data: Path, options: dict[str, Any]):
        settings = json.loads((data / "config.json").read_text())
        (data / "config.json").write_text(json.dumps(settings | options))

    def reload(self):
        """As the page's button "Reload UI" does: the scripts are loaded anew in the same process; a call that waits
        goes on meanwhile."""
        starts = self._starts()
        self.client.post("/probe/reload-ui").raise_for_status()
        self._wait(starts + 1)

    def said(self):
        """The log so far."""
        return self.log.read_text(errors="replace")

    def failures(self):
        """What the log says of extensions that the host could not load, register or call."""
        return re.findall(r"\*\*\* Error (?:loading|calling|creating|executing|running|#).*", self.said())

    def _starts(self):
        return self.said().count("Startup time")

    def _wait(self, starts=1):
        """An HTTP request before the log says that it has started could kill the start."""
        deadline = time.monotonic() + STARTUP_SECONDS
        while self._starts() < starts:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the {self.title} did not start:\n" + self.said()[-3000:])
            time.sleep(0.5)

    def plan(self, at_call=0, action="", place=PLACES[0]):
        asked = {"at_call": at_call, "action": action, "place": place}
        self.client.post("/probe/plan", params=asked).raise_for_status()

    def is_waiting(self):
        """Whether a UNet call stands still, as planned."""
        return self.client.get("/probe/waiting").json()

    def release(self):
        """Lets it go on."""
        self.client.post("/probe/release").raise_for_status()

    def calls(self):
        return self._state()["calls"]

    def leftovers(self):
        return self._state()["leftovers"]

    def hooked(self):
        return self._state()["hooked"]

    def foreign_forwards(self):
        """How many self-attention layers run another forward than their class's."""
        state = self._state()
        return state["layers"] - state["own_forwards"]

    def memory(self):
        """Bytes of all live tensors, and of the process."""
        tensors = self.client.get("/probe/memory").json()["tensors"]
        return {"tensors": tensors, "resident": psutil.Process(self.process.pid).memory_info().rss}

    def is_idle(self):
        """Whether nothing runs, waits, or is still marked as running."""
        return self.client.get("/probe/queue").json() == IDLE

    def stored(self):
        """How many inversions are kept."""
        return len(self.client.get("/rival/v1/store").json()["chains"])

    def forget(self):
        """Releases all of them."""
        self.client.delete("/rival/v1/store").raise_for_status()

    def imported(self):
        return self._state()["imported"]

    def routes(self):
        """Of the extension, each as often as it is there."""
        return self._state()["routes"]

    def _state(self):
        return self.client.get("/probe/state").json()

    def set(self, **options):
        """Changes options as the settings page does, for good."""
        self.client.post("/sdapi/v1/options", json=options).raise_for_status()

    def samplers(self):
        return [sampler["name"] for sampler in self.client.get("/sdapi/v1/samplers").json()]

    def schedules(self):
        return [schedule["label"] for schedule in self.client.get("/sdapi/v1/schedulers").json()]

    def img2img(self, **payload):
        return self._request("img2img", payload)

    def txt2img(self, **payload):
        return self._request("txt2img", payload)

    def axes(self, tab="img2img"):
        """The labels of the X/Y/Z plot's axes."""
        scripts = self.client.get("/sdapi/v1/script-info").json()
        plot = next(s for s in scripts if s["name"] == PLOT and s["is_img2img"] == (tab == "img2img"))
        return plot["args"][0]["choices"]

    def _request(self, kind: str, payload: dict[str, Any]) -> Answer:
        plotted = payload.pop("plot", None)
        if plotted:
            labels = self.axes(kind)
            axes = [value for label, values in plotted for value in (labels.index(label), values, [])]
            payload |= {"script_name": PLOT, "script_args": [*axes, *NO_AXIS, *self.legend, *OPTIONS_OF_PLOT]}
        response = self.client.post(f"/sdapi/v1/{kind}", json=payload)
        body = response.json()
        if response.status_code != 200:
            return Answer(response.status_code, sentence=body.get("detail") or body.get("errors") or str(body))
        pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in body["images"]]
        infotexts = json.loads(body["info"])["infotexts"]
        arrays = [np.asarray(picture.convert("RGB")) for picture in pictures]
        if plotted:
            return Answer(200, arrays[1:], infotexts[1:], grid=pictures[0])
        # a batch's grid comes first and has no seed of its own
        return Answer(200, arrays[-len(infotexts) :], infotexts)

    def stop(self):
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class RealServer(WebuiServer):
    """AUTOMATIC1111's."""

    name = "real"
    title = "real WebUI"
    variable = "RIVAL_WEBUI"
    default = Path.home() / "stable-diffusion-webui"
    cpu = ("--use-cpu", "all", "--no-half", "--precision", "full")


class ForgeServer(WebuiServer):
    """Forge."""

    name = "forge"
    title = "real Forge"
    variable = "RIVAL_FORGE"
    cpu = ("--always-cpu", "--all-in-fp32", "--vae-in-fp32", "--clip-in-fp32")

    def txt2img(self, **payload):
        # left out, the one is an error and the other is 1
        hires = {"hr_additional_modules": ["Use same choices"], "hr_cfg": payload.get("cfg_scale", 7)}
        return super().txt2img(**(hires if payload.get("enable_hr") else {}), **payload)


class ReforgeServer(WebuiServer):
    """reForge."""

    name = "reforge"
    title = "real reForge"
    variable = "RIVAL_REFORGE"
    cpu = ("--always-cpu", "--all-in-fp32", "--vae-in-fp32", "--clip-in-fp32")
    # no labels in the cells, the grid, and one of them
    legend = (True, False, False, 0)


WEBUIS = {server.name: server for server in (RealServer, ForgeServer, ReforgeServer)}
real_folder = RealServer.folder


def python_of(folder: Path) -> Path:
    """The WebUI's own interpreter."""
    return folder / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def checkpoint_in(data: Path) -> Path:
    """A real server's own copy of the small checkpoint."""
    return data / "models" / "Stable-diffusion" / "tiny-emoji.safetensors"


def _refiner(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The small checkpoint with other features: every weight of its UNet a tenth larger."""
    weights = {name: torch.from_numpy(value) for name, value in load_file(checkpoint).items()}
    return {
        name: value * 1.1 if name.startswith("model.diffusion_model.") else value for name, value in weights.items()
    }


def _lora() -> dict[str, np.ndarray]:
    """A small random LoRA on one self-attention layer of the small checkpoint, in the usual file's names."""
    random = np.random.default_rng(0)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    return {
        f"{layer}.lora_down.weight": random.normal(size=(4, 64)).astype(np.float32),
        f"{layer}.lora_up.weight": random.normal(size=(64, 4)).astype(np.float32),
        f"{layer}.alpha": np.array(4, dtype=np.float32),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
