"""Real WebUIs behind the same interface as the stand-in, over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from tests.host import data_folder
from tests.host.answers import Answer
from tests.host.data_folder import checkpoint_in
from tests.host.probe import PLACES

STARTUP_SECONDS = 240
PATIENCE = 60
"""The longest wait for something that takes a second, in seconds."""
NOT_KEPT_ALIVE = httpx.Limits(max_keepalive_connections=0)
"""A WebUI closes its connections at "Reload UI", and Forge also after an error."""
IDLE = {"locked": False, "waiting": 0, "job": "", "job_count": 0}
"""The state of the queue between requests."""
PLOT = "x/y/z plot"
NO_AXIS = [0, "", []]
OPTIONS_OF_PLOT = [True, False, False, False, False, False, 0, True]
"""Options of the plot: it returns the cells beside the grid, and the values of an axis are text."""


class WebuiServer:
    """A WebUI that is started with a data folder of its own. The WebUI's own folder is only read.

    Attributes:
        name: The name in the tests' ids.
        title: The name in a sentence.
        variable: The environment variable that names its folder.
        default: The folder without that variable.
        cpu: Flags for the CPU in 32 bits.
        legend: Options of its plot, from the legend's to the cells'.
    """

    name: str
    title: str
    variable: str
    default: Path | None = None
    cpu: tuple[str, ...]
    legend = (True,)

    @classmethod
    def folder(cls) -> Path | None:
        """Return the folder of the WebUI, or None if there is none."""
        named = os.environ.get(cls.variable)
        folder = Path(named) if named else cls.default
        found = folder and (folder / "webui.py").is_file() and python_of(folder).is_file()
        return folder if found else None

    @classmethod
    def skipped(cls) -> str:
        """Say why its cases are skipped."""
        return f"{cls.title}: none found; set {cls.variable} to its folder"

    def __init__(self, folder: Path, data: Path, with_extension=True, options=None, flags=(), environment=None):
        self._fill(data, with_extension)
        data_folder.add_options(data, options or {})
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        # one client for all requests, because making one takes longer than a short request
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
        """Fill the data folder. A server with more in its folder does more here."""
        data_folder.fill(data, with_extension)

    def reload(self):
        """Do as the page's button "Reload UI": load the scripts again in the same process. A call that stands still
        goes on."""
        starts = self._starts()
        self.client.post("/probe/reload-ui").raise_for_status()
        self._wait(starts + 1)

    def said(self):
        """Return the log."""
        return self.log.read_text(errors="replace")

    def failures(self):
        """Return the log's lines about extensions that the host could not load, register or call."""
        return re.findall(r"\*\*\* Error (?:loading|calling|creating|executing|running|#).*", self.said())

    def _starts(self):
        return self.said().count("Startup time")

    def _wait(self, starts=1):
        """Wait for the log to say that the WebUI has started. An earlier HTTP request could kill the start."""
        deadline = time.monotonic() + STARTUP_SECONDS
        while self._starts() < starts:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"the {self.title} did not start:\n" + self.said()[-3000:])

    def plan(self, at_call=0, action="", place=PLACES[0]):
        asked = {"at_call": at_call, "action": action, "place": place}
        self.client.post("/probe/plan", params=asked).raise_for_status()

    def is_waiting(self, seconds=0):
        """Tell whether a UNet call stands still as planned, now or within so many seconds."""
        return self.client.get("/probe/waiting", params={"seconds": seconds}).json()

    def release(self):
        """Let the UNet call that stands still go on."""
        self.client.post("/probe/release").raise_for_status()

    def calls(self):
        return self._state()["calls"]

    def leftovers(self):
        return self._state()["leftovers"]

    def hooked(self):
        return self._state()["hooked"]

    def foreign_forwards(self):
        """Return the number of self-attention layers that do not run their class's forward."""
        state = self._state()
        return state["layers"] - state["own_forwards"]

    def memory(self):
        """Return the bytes of all live tensors, and of the process."""
        tensors = self.client.get("/probe/memory").json()["tensors"]
        return {"tensors": tensors, "resident": psutil.Process(self.process.pid).memory_info().rss}

    def is_idle(self):
        """Tell whether nothing runs, waits, or is still marked as running."""
        return self.client.get("/probe/queue").json() == IDLE

    def wait_until_idle(self, seconds=PATIENCE):
        """Wait until all runs have ended."""
        self.client.get("/probe/idle", timeout=seconds).raise_for_status()

    def queued(self):
        """Return the number of calls that wait for the run to end."""
        return self.client.get("/probe/queue").json()["waiting"]

    def stored(self):
        """Return the number of stored inversions."""
        return len(self.client.get("/rival/v1/store").json()["chains"])

    def forget(self):
        """Release all stored inversions."""
        self.client.delete("/rival/v1/store").raise_for_status()

    def imported(self):
        return self._state()["imported"]

    def routes(self):
        """Return the extension's routes, each as often as it is registered."""
        return self._state()["routes"]

    def _state(self):
        return self.client.get("/probe/state").json()

    def set(self, **options):
        """Change options as the settings page does. They are saved."""
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
        """Return the labels of the X/Y/Z plot's axes."""
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
        images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in body["images"]]
        infotexts = json.loads(body["info"])["infotexts"]
        arrays = [np.asarray(image.convert("RGB")) for image in images]
        if plotted:
            return Answer(200, arrays[1:], infotexts[1:], grid=images[0])
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
    """AUTOMATIC1111's WebUI."""

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
        # without the first the host fails, and without the second it takes 1
        hires = {"hr_additional_modules": ["Use same choices"], "hr_cfg": payload.get("cfg_scale", 7)}
        return super().txt2img(**(hires if payload.get("enable_hr") else {}), **payload)


class ReforgeServer(WebuiServer):
    """reForge."""

    name = "reforge"
    title = "real reForge"
    variable = "RIVAL_REFORGE"
    cpu = ("--always-cpu", "--all-in-fp32", "--vae-in-fp32", "--clip-in-fp32")
    # no labels in the cells; the grid; its number
    legend = (True, False, False, 0)


WEBUIS = {server.name: server for server in (RealServer, ForgeServer, ReforgeServer)}
real_folder = RealServer.folder


def python_of(folder: Path) -> Path:
    """Return the path of the WebUI's Python."""
    return folder / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
