"""The same request on AUTOMATIC1111's WebUI, on Forge and on reForge: images differ no more than plain ones do."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import request, text_request
from tests.host.servers import WEBUIS
from tests.host.test_inpaint import painting

SAMPLERS = [("DDIM", "Automatic"), ("Euler", "Automatic"), ("Euler a", "Automatic"), ("DPM++ 2M", "Karras")]
HOUSE = base64_of(exemplar("house-emojione-blue"))


def paint_request(settings, **fields):
    return request(**painting(settings, **fields))


SCENES = {
    "variation": ("img2img", request, {}),
    "exact guidance": ("img2img", request, {"exact": True, "exemplar_prompt": "a pizza"}),
    "edit": ("img2img", request, {"mode": "edit"}),
    "text": ("txt2img", text_request, {"mode": "text", "exemplar": HOUSE}),
    "inpaint": ("img2img", paint_request, {"exemplar": HOUSE}),
    "live features": ("img2img", request, {"features": "live"}),
    "strength": ("img2img", request, {"strength": 0.5}),
}
"""The tab, the function that makes the request from settings or None, and the settings."""
STEPS = 20
TOLERATED = 2.5
"""The tolerated RMS difference of images with RIVAL, of 255. RIVAL changes an image by 14 and more."""
MEASURED = re.compile(r"residual [\d.]+|[\d.]+ s\b")
"""Measured figures in a report. They differ, because Forge evaluates whole timesteps."""


@dataclass
class Made:
    """A plain image, an image with RIVAL, and its report without measured figures."""

    plain: np.ndarray
    guided: np.ndarray
    report: str


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function (host's name) -> the host's images, by scene and sampler."""
    known = {}

    def on(name):
        webui = WEBUIS[name]
        if webui.folder() is None:
            pytest.skip(webui.skipped())
        if name not in known:
            server = webui(webui.folder(), tmp_path_factory.mktemp(name))
            try:
                known[name] = {
                    (scene, sampler): make(server, scene, sampler, schedule)
                    for scene in SCENES
                    for sampler, schedule in SAMPLERS
                }
            finally:
                server.stop()
        return known[name]

    return on


def make(server, scene, sampler, schedule):
    tab, to_request, settings = SCENES[scene]
    fields = {"sampler_name": sampler, "scheduler": schedule, "steps": STEPS}
    answers = []
    for wanted in (None, settings):
        server.plan()
        answers.append(getattr(server, tab)(**to_request(wanted, **fields)))
        assert answers[-1].status == 200, answers[-1].sentence
    plain, guided = answers
    report = re.search(r"RIVAL report: ([^,\n]*)", guided.infotexts[0])[1]
    return Made(plain.images[0], guided.images[0], MEASURED.sub("…", report))


def difference(one, other):
    """Return the RMS difference, in 255ths."""
    return np.sqrt(np.mean((one.astype(float) - other) ** 2))


@pytest.mark.parametrize("sampler", [sampler for sampler, _ in SAMPLERS])
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("host", ["forge", "reforge"])
def test_the_image_and_the_report_are_those_of_automatic1111(made, host, scene, sampler):
    here, there = made(host)[scene, sampler], made("real")[scene, sampler]
    plain = difference(here.plain, there.plain)
    assert difference(here.guided, here.plain) > 5
    assert difference(here.guided, there.guided) <= TOLERATED + plain
    assert here.report == there.report
