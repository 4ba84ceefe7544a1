"""Faults in an inversion, in a sampling and in a layer. The host must be unchanged afterwards."""

from __future__ import annotations

import math
import re
from functools import cache

import pytest

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import images_of, largest_difference, request, text_request
from tests.host.probe import PLACES
from tests.host.quick import quick_first

pytestmark = pytest.mark.long

STEPS = 3
SMALL = {"steps": STEPS, "width": 64, "height": 64}
PLAIN = request(**SMALL)
VARIED = request({}, **SMALL)
HOUSE = base64_of(exemplar("house-emojione-blue"))
MASK = base64_of(exemplar("pizza-emojione-yellow").convert("L").point(lambda value: 255 * (value < 200)))

SCENES = {
    "variation": ("img2img", VARIED),
    "live features": ("img2img", request({"features": "live"}, **SMALL)),
    "two exemplars": ("img2img", request({"exemplar_2": HOUSE}, **SMALL)),
    "a mask": ("img2img", request({"mode": "inpaint", "exemplar": HOUSE}, **SMALL, mask=MASK, mask_blur=0)),
    "text": ("txt2img", text_request({"mode": "text", "exemplar": HOUSE}, **SMALL)),
    "exact guidance": ("img2img", request({"exact": True, "exemplar_prompt": "a pizza"}, **SMALL)),
}
HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7}
SCENES_OF_REAL = {
    "hires fix": ("txt2img", text_request({"mode": "text", "exemplar": HOUSE}, **SMALL, **HIRES)),
    "two batches": ("img2img", request({}, **SMALL, n_iter=2)),
}
"""Scenes that the stand-in does not offer."""

RAISED = {
    "error": "planned fault",
    "memory": "planned fault",
    "python's memory": "MemoryError",
    "torch's memory": "can't allocate memory",
}
"""The sentence that the user reads, by the fault."""
STOPPED = ("interrupt", "skip")
NOT_NUMBERS = ("nan", "one nan")
INVERSION, SAMPLING = (1, 2, STEPS), (STEPS + 1, STEPS + 2, 2 * STEPS)
"""The first, a middle and the last UNet call of each part of a variation."""

TOLERATED = 0.05
"""The tolerated growth of memory, as a fraction."""

FEW = {
    "action": ("error", "memory", "interrupt", "one nan"),
    "at_call": (2, 5),
    "share": (0.25, 0.75),
    "place": ("inside a layer",),
}
"""The parameters that are tried on the stand-in."""


@pytest.fixture(autouse=True)
def enough(request, hosts):
    """Skip the parameters that are left to the real WebUIs."""
    asked = {name: value for name, value in request.node.callspec.params.items() if name in FEW}
    if hosts[0].name == "stand-in" and any(value not in FEW[name] for name, value in asked.items()):
        pytest.skip("stand-in: one case of each kind")


@pytest.fixture(scope="module")
def twins(hosts):
    """A plain image of a server that never had the extension, and a variation before any fault."""
    server, bare = hosts
    server.forget()
    return made(bare, PLAIN), made(server, VARIED)


def made(server, payload):
    server.plan()
    answer = server.img2img(**payload)
    assert answer.status == 200, answer.sentence
    return answer.images


def with_fault(server, at_call, action, scene="variation", place=PLACES[0]):
    """Send a request with a fault in one UNet call. No inversion is stored before."""
    tab, payload = (SCENES | SCENES_OF_REAL)[scene]
    server.forget()
    server.plan(at_call, action, place)
    return getattr(server, tab)(**payload)


def assert_as_if_nothing_had_been(server, twins, memory):
    """Check hooks, queue, images and memory after a fault."""
    assert server.leftovers() == []
    assert server.foreign_forwards() == 0
    assert server.is_idle()
    plain, varied = twins
    assert largest_difference(made(server, PLAIN), plain) == 0
    assert largest_difference(made(server, VARIED), varied) == 0
    server.forget()
    for kind, held in server.memory().items():
        assert held <= memory[kind] * (1 + TOLERATED), kind


@pytest.fixture(scope="module")
def memory(hosts, twins):
    """The memory with nothing stored, before any fault."""
    hosts[0].forget()
    return hosts[0].memory()


@pytest.mark.parametrize("place", quick_first(PLACES))
@pytest.mark.parametrize("at_call", quick_first(INVERSION + SAMPLING))
@pytest.mark.parametrize("action", quick_first(RAISED))
def test_after_an_error(server, twins, memory, action, at_call, place):
    answer = with_fault(server, at_call, action, place=place)
    if action == "error" or at_call in SAMPLING:
        assert answer.status == 500
        assert RAISED[action] in answer.sentence
        assert server.calls() == at_call
        assert server.stored() == (at_call in SAMPLING)
    else:
        assert answer.status == 200
        assert "live features" in answer.infotexts[0]
        assert "memory ran out while features were recorded" in answer.infotexts[0]
        assert server.calls() == at_call + STEPS + 2 * STEPS
        assert largest_difference(answer.images, images_of(server, {"features": "live"}, **SMALL)) == 0
    assert_as_if_nothing_had_been(server, twins, memory)


@pytest.mark.parametrize("place", quick_first(PLACES))
@pytest.mark.parametrize("at_call", quick_first(INVERSION + SAMPLING))
@pytest.mark.parametrize("action", quick_first(STOPPED))
def test_after_a_stop(server, twins, memory, action, at_call, place):
    answer = with_fault(server, at_call, action, place=place)
    assert answer.status == 200
    assert server.calls() == at_call
    # an interruption during the last evaluation of the inversion is seen after it
    assert server.stored() == (at_call in SAMPLING)
    assert_as_if_nothing_had_been(server, twins, memory)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["error", "interrupt"])
def test_the_first_of_two_inversions_stays_where_the_second_goes_wrong(server, twins, memory, action):
    with_fault(server, STEPS + 2, action, "two exemplars")
    assert server.stored() == 1
    _, payload = SCENES["two exemplars"]
    both = made(server, payload)
    assert server.calls() == STEPS + STEPS
    server.forget()
    assert largest_difference(made(server, payload), both) == 0
    assert_as_if_nothing_had_been(server, twins, memory)


@pytest.mark.slow
@pytest.mark.parametrize("at_call", INVERSION + SAMPLING)
@pytest.mark.parametrize("action", NOT_NUMBERS)
def test_after_a_prediction_that_is_no_number(server, twins, memory, action, at_call):
    answer = with_fault(server, at_call, action)
    if at_call in INVERSION:
        assert (answer.status, server.calls()) == (422, at_call)
        assert "not numbers" in answer.sentence
        assert server.stored() == 0
    elif answer.status != 200:
        # the host checks the first value only
        assert "NaN" in answer.sentence
    assert_as_if_nothing_had_been(server, twins, memory)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("scene", ["variation", "text"])
def test_an_encoder_that_gives_no_numbers_is_told_from_the_unet(server, scene, value):
    """The UNet's remedy, --no-half, would not help."""
    if server.name != "stand-in":
        pytest.skip("real WebUI: its VAE is in another process")
    handle = server.checkpoint.first_stage_model.quant_conv.register_forward_hook(lambda *call: call[-1] * value)
    try:
        answer = with_fault(server, 0, "", scene)
    finally:
        handle.remove()
    assert (answer.status, server.calls()) == (422, 0)
    assert answer.sentence.startswith("RIVAL: the VAE's encoder gave values that are not numbers (NaN)")
    assert "--no-half-vae" in answer.sentence


@cache
def calls_of(server, scene):
    """Return the number of UNet calls of a scene without a fault."""
    assert with_fault(server, 0, "", scene).status == 200
    return server.calls()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.75, 1], ids="at {}".format)
@pytest.mark.parametrize("action", ["error", "memory", "interrupt", "one nan"])
@pytest.mark.parametrize("scene", [*SCENES, *SCENES_OF_REAL])
def test_in_other_scenes(server, twins, memory, scene, action, share):
    if server.name == "stand-in" and (scene in SCENES_OF_REAL or action in ("interrupt", "one nan")):
        pytest.skip("stand-in: one case of each kind")
    total = calls_of(server, scene)
    at_call = 1 + round(share * (total - 1))
    answer = with_fault(server, at_call, action, scene)
    assert server.calls() >= at_call
    expected = {"error": {500}, "memory": {200, 500}, "interrupt": {200}, "one nan": {200, 422, 500}}[action]
    assert answer.status in expected, answer.sentence
    if answer.status == 500:
        assert re.search("planned fault|NaN", answer.sentence)
    assert_as_if_nothing_had_been(server, twins, memory)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["error", "memory", "interrupt", "one nan"])
@pytest.mark.parametrize("at_call", [1, STEPS, STEPS + 1, 2 * STEPS])
def test_after_a_fault_in_a_check(server, twins, memory, action, at_call):
    if server.name == "stand-in":
        pytest.skip("stand-in: its routes are those of test_routes.py")
    asked = {"image": VARIED["init_images"][0], "sampler_name": "Euler", **SMALL}
    server.plan(at_call, action)
    answer = server.client.post("/rival/v1/invert", json=asked)
    assert answer.status_code in {"error": {500}, "interrupt": {422}}.get(action, {200, 422, 500}), answer.text
    assert_as_if_nothing_had_been(server, twins, memory)
