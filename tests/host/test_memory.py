"""RIVAL in the WebUI's memory modes, which move parts of the checkpoint during a sampling."""

from __future__ import annotations

import pytest

from tests.host.asking import STEPS, images_of, largest_difference, request
from tests.host.conftest import SKIPPED
from tests.host.data_folder import LORA
from tests.host.servers import RealServer, real_folder

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=["--medvram", "--lowvram", "--no-half-vae", "--upcast-sampling"])
def running(request, tmp_path_factory):
    folder = real_folder()
    if folder is None:
        pytest.skip(SKIPPED)
    server = RealServer(folder, tmp_path_factory.mktemp("memory"), flags=[request.param])
    yield server
    server.stop()


@pytest.fixture
def server(running):
    running.plan()
    return running


@pytest.mark.parametrize("sampler", ["DDIM", "DPM++ 2M"])
@pytest.mark.parametrize("memory", [2048, 0])
def test_all_layers_see_the_exemplar_recorded_or_live(server, sampler, memory):
    fields = {"sampler_name": sampler, "override_settings": {"rival_memory_mb": memory}}
    answer = server.img2img(**request({}, **fields))
    assert answer.status == 200, answer.sentence
    calls = 6 if sampler == "DDIM" else STEPS
    assert f"10 layers; {calls} of {calls} steps injected" in answer.infotexts[0]
    assert ("recorded" if memory else "live") + " features" in answer.infotexts[0]
    assert server.leftovers() == []


def test_plain_images_stay_as_they_are(server):
    before = images_of(server)
    assert largest_difference(images_of(server, {}), before) > 20
    assert largest_difference(images_of(server), before) == 0


def test_txt2img_hires_fix_and_a_lora(server):
    payload = request({"exemplar": request()["init_images"][0]}, prompt=f"a pizza <lora:{LORA}:0.5>", cfg_scale=4)
    for name in ("init_images", "denoising_strength"):
        del payload[name]
    answer = server.txt2img(**payload, enable_hr=True, hr_scale=1.5, hr_upscaler="Latent", denoising_strength=0.6)
    assert answer.status == 200, answer.sentence
    assert "RIVAL hires report: 10 layers" in answer.infotexts[0]
