"""A real WebUI that has changed: RIVAL is off and says why, and everything else is as without RIVAL."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from tests.host.asking import request
from tests.host.conftest import SKIPPED
from tests.host.servers import RealServer, real_folder

pytestmark = pytest.mark.long

SWAPPED = """
from modules.sd_samplers_kdiffusion import KDiffusionSampler

original = KDiffusionSampler.sample_img2img


def sample_img2img(self, p, noise, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
    return original(self, p, noise, x, conditioning, unconditional_conditioning, steps, image_conditioning)


KDiffusionSampler.sample_img2img = sample_img2img
"""
"""Swap two parameters. The host's own calls still work, but a caller that relies on their order fails."""

GONE = """
import sys

from modules import masking

del masking.fill
sys.modules["modules.deepbooru"] = None
"""

DRIFTS = {
    SWAPPED: "modules.sd_samplers_kdiffusion.KDiffusionSampler.sample_img2img(p, x, noise, conditioning, "
    "unconditional_conditioning, steps=, image_conditioning=)",
    GONE: "modules.masking.fill(image, mask) and 1 more that it needs",
}
"""Changes that an extension makes before RIVAL is loaded, and what RIVAL then says is missing."""

OFF = [{"enabled": False}]


@contextmanager
def running(data, drift=None):
    """Make a class of servers with RIVAL on a host with this change. Without a change the server never had RIVAL."""

    class Server(RealServer):
        @staticmethod
        def _fill(data, with_extension):
            RealServer._fill(data, with_extension)
            # the host loads scripts in the order of the folders' names
            scripts = data / "extensions" / "00-drift" / "scripts"
            scripts.mkdir(parents=True)
            (scripts / "drift.py").write_text(drift or "")

    server = Server(real_folder(), data, with_extension=drift is not None)
    try:
        yield server
    finally:
        server.stop()


def plain(server, settings=None):
    """Make one image in each tab."""
    made = []
    for tab in ("img2img", "txt2img"):
        server.plan()
        answer = getattr(server, tab)(**asked(tab, settings))
        assert answer.status == 200, answer.sentence
        made += answer.images
    return made


def asked(tab, settings):
    payload = request(settings)
    return payload if tab == "img2img" else {name: payload[name] for name in payload if name != "init_images"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The images of a server that never had RIVAL."""
    if real_folder() is None:
        pytest.skip(SKIPPED)
    with running(tmp_path_factory.mktemp("bare")) as server:
        return plain(server)


@pytest.mark.parametrize("drift", DRIFTS, ids=["real-a parameter moved", "real-a name and a module gone"])
def test_rival_is_off_and_says_why_and_the_rest_is_as_without_it(bare, tmp_path, drift):
    sentence = f"RIVAL: switched off, because this WebUI has no {DRIFTS[drift]}; update the WebUI or the extension."
    with running(tmp_path / "webui", drift) as server:
        assert server.said().splitlines().count(sentence) == 1
        assert server.failures() == []
        scripts = [script for script in server.client.get("/sdapi/v1/script-info").json() if script["name"] == "rival"]
        assert [[arg["label"] for arg in script["args"]] for script in scripts] == [[sentence]] * 2
        shown = [component["props"] for component in server.client.get("/config").json()["components"]]
        assert [component.get("value") for component in shown].count(sentence) == 2
        assert not any("rival" in str(component.get("elem_id")) for component in shown)
        assert not any("RIVAL" in axis for axis in server.axes())
        assert server.routes() == []
        for settings in (None, OFF):
            for made, of_bare in zip(plain(server, settings), bare, strict=True):
                assert np.array_equal(made, of_bare)
        for tab in ("img2img", "txt2img"):
            answer = getattr(server, tab)(**asked(tab, {}))
            assert (answer.status, answer.sentence) == (422, sentence)
        server.reload()
        assert server.said().splitlines().count(sentence) == 2
