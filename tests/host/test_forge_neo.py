"""A real Forge that behaves as Forge Neo's files show: its images must be those of Forge. Neo cannot be run here."""

from __future__ import annotations

import pytest

from tests.host.answers import base64_of
from tests.host.asking import largest_difference, request
from tests.host.data_folder import REFINER, ROOT
from tests.host.servers import ForgeServer
from tests.host.test_families import centre_mask

pytestmark = pytest.mark.long

NEO = ROOT / "tests" / "host" / "neo_extension"


class NeoLike(ForgeServer):
    """A Forge that behaves as Neo."""

    @staticmethod
    def _fill(data, with_extension):
        ForgeServer._fill(data, with_extension)
        (data / "extensions" / "00-neo").symlink_to(NEO)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two servers: a Forge that behaves as Neo, and a Forge."""
    folder = ForgeServer.folder()
    if folder is None:
        pytest.skip(ForgeServer.skipped())
    started = []
    try:
        for kind in (NeoLike, ForgeServer):
            started.append(kind(folder, tmp_path_factory.mktemp(kind.__name__)))
        yield started
    finally:
        for server in started:
            server.stop()


SWITCH = {"refiner_checkpoint": REFINER.partition(".")[0], "refiner_switch_at": 0.5}
SCENES = {
    "variation": ({}, {}),
    "DDIM": ({}, {"sampler_name": "DDIM"}),
    "DDIM CFG++": ({}, {"sampler_name": "DDIM CFG++", "cfg_scale": 1.5}),
    "Euler a, two": ({}, {"sampler_name": "Euler a", "batch_size": 2}),
    "guidance 1": ({}, {"cfg_scale": 1}),
    "exact": ({"exact": True, "exemplar_prompt": "a pizza"}, {}),
    "live": ({"features": "live"}, {}),
    "a mask": ({"mode": "inpaint"}, {"mask": base64_of(centre_mask().resize((128, 128)))}),
    "LoRA": ({}, {"prompt": "a pizza <lora:contract:1>"}),
    "LoRA, put aside": ({"plain_inversion": True}, {"prompt": "a pizza <lora:contract:0.5>"}),
    "refiner": ({}, SWITCH),
    "refiner, DDIM": ({}, SWITCH | {"sampler_name": "DDIM"}),
}
"""RIVAL's settings and the request's fields, by name."""


@pytest.mark.parametrize("settings", ["plain", "RIVAL"])
@pytest.mark.parametrize("scene", SCENES)
def test_forge_neo_images_are_forges(servers, scene, settings):
    wanted, fields = SCENES[scene]
    answers = []
    for server in servers:
        server.plan()
        answers.append(server.img2img(**request(wanted if settings == "RIVAL" else None, **fields)))
        assert answers[-1].status == 200, answers[-1].sentence
    neo, forge = answers
    if settings == "RIVAL":
        reports = [answer.infotexts[0].partition("RIVAL report")[2].partition(" s")[0] for answer in answers]
        assert reports[0] == reports[1] != ""
    assert largest_difference(neo.images, forge.images) == 0


@pytest.mark.parametrize(("settings", "corrected"), [(None, 0), ({}, 3), ({"alignment": "off"}, 0)])
def test_forge_neo_the_direction_without_the_prompt_is_corrected_too(servers, settings, corrected):
    """A sampler finds the same change in the prediction without the prompt as in the denoiser's answer."""
    server = servers[0]
    server.plan()
    answer = server.img2img(**request(settings, sampler_name="Euler CFG++", cfg_scale=0.6))
    assert answer.status == 200, answer.sentence
    assert server.said().rpartition("corrected in ")[2].startswith(f"{corrected} steps")


def test_forge_neo_has_no_interrogators(servers):
    neo, forge = servers
    buttons = [server.client.get("/config").json()["components"] for server in servers]
    ids = [{component["props"].get("elem_id") for component in components} for components in buttons]
    assert {"img2img_rival_prompt_png_info"} <= ids[0] & ids[1]
    assert "img2img_rival_prompt_clip" in ids[1] - ids[0]
    assert neo.failures() == forge.failures() == []
