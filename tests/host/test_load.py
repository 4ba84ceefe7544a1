"""Many requests on a real WebUI, one after the other and at once. Each image is as if its request were alone."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import numpy as np
import pytest

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import largest_difference, request, text_request
from tests.host.data_folder import LORA
from tests.host.servers import WEBUIS

pytestmark = pytest.mark.long

CALLS = 200
SETTLING = 20
"""After so many calls memory must be flat. By then each request has been made and inverted at least once."""
CLIENTS = 8
CALLS_OF_A_CLIENT = 12
SLOPE = 0.1
"""The most resident memory that a call may add, in MB."""

HOUSE = base64_of(exemplar("house-emojione-blue"))
MASK = base64_of(exemplar("pizza-emojione-yellow").convert("L").point(lambda value: 255 * (value < 200)))
SMALL = {"steps": 4, "width": 64, "height": 64}
WIDE = {"steps": 4, "width": 128, "height": 64, "batch_size": 2, "sampler_name": "DDIM"}
FILLED = {**SMALL, "mask": MASK, "mask_blur": 0, "inpainting_fill": 1}
HIRES = {**SMALL, "enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.6}
WITH_LORA = {**SMALL, "prompt": f"a pizza <lora:{LORA}:0.5>"}

PLAIN = {
    "img2img": ("img2img", request(**SMALL)),
    "wide, two": ("img2img", request(**WIDE)),
    "inpainting": ("img2img", request(**FILLED)),
    "LoRA": ("img2img", request(**WITH_LORA)),
    "txt2img": ("txt2img", text_request(**SMALL, sampler_name="Euler a")),
    "hires fix": ("txt2img", text_request(**HIRES)),
}
RIVAL = {
    "variation": ("img2img", request({}, **SMALL)),
    "wide, two": ("img2img", request({"similarity": 0.7}, **WIDE)),
    "inpaint": ("img2img", request({"mode": "inpaint"}, **FILLED)),
    "inpaint from another": ("img2img", request({"mode": "inpaint", "exemplar": HOUSE}, **FILLED)),
    "edit": ("img2img", request({"mode": "edit", "exemplar_prompt": "a pizza"}, **SMALL)),
    "LoRA": ("img2img", request({}, **WITH_LORA, sampler_name="Euler a")),
    "text": ("txt2img", text_request({"mode": "text", "exemplar": HOUSE}, **SMALL)),
    "hires fix": ("txt2img", text_request({"mode": "text", "exemplar": HOUSE}, **HIRES)),
    "two exemplars": ("img2img", request({"exemplar_2": HOUSE, "weight_2": 0.5}, **SMALL, sampler_name="DPM++ 2M")),
    "live": ("img2img", request({"features": "live"}, **SMALL)),
}
KINDS = {"plain": PLAIN, "RIVAL": RIVAL}


def made(server, kind, name):
    """Make the images of one of the requests."""
    tab, payload = KINDS[kind][name]
    answer = getattr(server, tab)(**payload)
    assert answer.status == 200, answer.sentence
    return answer.images


def alternating(number, seed):
    """List so many requests, plain ones and RIVAL's in turn, in a new order each time."""
    shuffled = random.Random(seed)

    def endlessly(kind):
        while True:
            yield from ((kind, name) for name in shuffled.sample(list(KINDS[kind]), len(KINDS[kind])))

    turns = [endlessly(kind) for kind in KINDS]
    return [next(turns[index % 2]) for index in range(number)]


@pytest.fixture(scope="module", params=WEBUIS)
def server(request, tmp_path_factory):
    """A server with the extension. The global generator is seeded before each run."""
    with pinned(WEBUIS[request.param], tmp_path_factory.mktemp("webui"), with_extension=True) as server:
        yield server


@pytest.fixture(scope="module")
def twins(server, tmp_path_factory):
    """The images of each request alone: plain ones of a server that never had the extension, RIVAL's with nothing
    stored."""
    alone = {}
    with pinned(type(server), tmp_path_factory.mktemp("webui"), with_extension=False) as bare:
        for name in PLAIN:
            alone["plain", name] = made(bare, "plain", name)
    for name in RIVAL:
        server.forget()
        alone["RIVAL", name] = made(server, "RIVAL", name)
    server.forget()
    return alone


@contextmanager
def pinned(webui, folder, with_extension):
    """Start a WebUI, and stop it at the end."""
    if webui.folder() is None:
        pytest.skip(webui.skipped())
    server = webui(webui.folder(), folder, with_extension)
    try:
        server.client.post("/probe/pin", params={"seed": 7}).raise_for_status()
        yield server
    finally:
        server.stop()


def meddle(server, done):
    """List, invert and clear the stored inversions until all is done.

    Returns:
        How often.
    """
    rounds = 0
    image = RIVAL["variation"][1]["init_images"][0]
    while not done.is_set():
        server.client.get("/rival/v1/store").raise_for_status()
        if rounds % 20 == 0:
            asked = {"image": image, "sampler_name": "Euler", **SMALL}
            server.client.post("/rival/v1/invert", json=asked).raise_for_status()
        server.client.delete("/rival/v1/store").raise_for_status()
        rounds += 1
    return rounds


def test_real_many_requests_in_a_row_are_each_as_if_alone_and_memory_stays_flat(server, twins):
    resident = []
    for kind, name in alternating(CALLS, seed=1):
        assert largest_difference(made(server, kind, name), twins[kind, name]) == 0, (kind, name)
        resident.append(server.memory()["resident"] / 2**20)
    slope, _ = np.polyfit(range(CALLS - SETTLING), resident[SETTLING:], 1)
    print(f"{CALLS} calls: {resident[0]:.0f}, {resident[SETTLING]:.0f}, {resident[-1]:.0f} MB; {slope:.4f} MB a call")
    assert slope < SLOPE
    assert server.is_idle()
    assert server.leftovers() == []


def test_real_many_clients_at_once_get_the_images_of_their_own_requests(server, twins):
    def client(number):
        asked = alternating(CALLS_OF_A_CLIENT, seed=100 + number)
        return [(kind, name, made(server, kind, name)) for kind, name in asked]

    with ThreadPoolExecutor(CLIENTS + 1) as clients:
        done = Event()
        meddling = clients.submit(meddle, server, done)
        try:
            for answers in clients.map(client, range(CLIENTS)):
                for kind, name, images in answers:
                    assert largest_difference(images, twins[kind, name]) == 0, (kind, name)
        finally:
            done.set()
        assert meddling.result() > CLIENTS
    assert server.is_idle()
    assert server.leftovers() == []
