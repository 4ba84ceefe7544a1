"""The host's progress bar, title and live preview during the inversion and the sampling."""

from __future__ import annotations

import base64
import io
import itertools
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from PIL import Image

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import STEPS, request
from tests.host.quick import quick_first

pytestmark = pytest.mark.long

BATCH = 2
SAMPLING = 2 * BATCH * STEPS
"""UNet rows of one batch."""

MASK = Image.new("L", (128, 128))
MASK.paste(255, (32, 32, 96, 96))
HOUSE, TAXI = (base64_of(exemplar(name)) for name in ("house-emojione-blue", "taxi-twemoji-green"))


def progress(state):
    """Compute the progress by the host's formula."""
    return (state.job_no + state.sampling_step / state.sampling_steps) / state.job_count


@pytest.fixture
def told(server, monkeypatch):
    """The progress and the line beside the bar at each evaluation, on the stand-in."""
    if server.name != "stand-in":
        pytest.skip("real WebUI: it is asked for its progress below")
    server.forget()
    seen = []
    handle = server.checkpoint.model.diffusion_model.register_forward_pre_hook(
        lambda *_: seen.append((progress(server.state), server.state.textinfo))
    )
    yield seen
    handle.remove()


@pytest.mark.parametrize(
    ("fields", "evaluations", "rows"),
    quick_first(
        [
            ({}, STEPS, 1),
            ({"settings": {"exemplar_2": HOUSE}}, 2 * STEPS, 1),
            ({"settings": {"exemplar": HOUSE, "exemplar_2": TAXI}, "mask": base64_of(MASK)}, 3 * STEPS, 1),
            ({"settings": {"exemplar_prompt": "a pizza", "exact": True}}, STEPS, 2),
            ({"settings": {"inversion_iterations": 2}}, 2 * STEPS, 1),
            ({"sampler_name": "Euler a"}, STEPS, 1),
            ({"n_iter": 2}, STEPS, 1),
        ]
    ),
)
def test_the_bar_runs_once_over_inversion_and_sampling_by_what_they_cost(server, told, fields, evaluations, rows):
    answer = server.img2img(**request(**{"settings": {}, "batch_size": BATCH, **fields}))
    assert answer.status == 200, answer.sentence
    bar, lines = zip(*told, strict=True)
    batches = fields.get("n_iter", 1)
    inverting = [line for line in lines if line]
    assert list(bar) == sorted(bar)
    assert (bar[0], inverting) == (0, [f"Inverting {done}/{evaluations}" for done in range(evaluations)])
    share = evaluations * rows / (evaluations * rows + SAMPLING)
    # the begin of the sampling, and the last evaluation, before which the host has counted all steps but two
    assert bar[evaluations] == pytest.approx(share / batches)
    assert bar[-1] == pytest.approx(1 - 2 / STEPS * (1 - share * (batches == 1)) / batches)
    state = server.state
    assert (state.job_no, state.job_count, state.textinfo, state.sampling_step) == (batches, batches, None, 0)
    assert state.shown[0].shape == (1, 4, 16, 16)
    assert len(state.shown) == evaluations // fields.get("settings", {}).get("inversion_iterations", 1)


@pytest.mark.slow
def test_a_stored_inversion_adds_nothing(server, told):
    payload = request({}, batch_size=BATCH)
    server.img2img(**request({}, batch_size=BATCH))
    told.clear()
    server.img2img(**payload)
    assert told == [(max(step - 1, 0) / STEPS, None) for step in range(STEPS)]
    assert server.state.shown == []


@pytest.mark.parametrize("action", quick_first(["interrupt", "skip", "error"]))
@pytest.mark.parametrize("at_call", quick_first([3, STEPS + 3]))
def test_nothing_of_it_stays_behind_after_any_end(server, told, action, at_call):
    server.plan(at_call, action)
    server.img2img(**request({}, batch_size=BATCH))
    state = server.state
    assert (state.job_count, state.textinfo) == (1, None)
    assert state.job_no == (0 if action == "error" else 1)
    assert state.sampling_steps == STEPS
    assert [bar for bar, _ in told] == sorted(bar for bar, _ in told)


@pytest.mark.slow
def test_the_preview_goes_from_the_image_to_noise(server, told):
    server.img2img(**request({}, steps=20))
    shown = server.state.shown
    spread = [float(latent.std()) for latent in (shown[0], shown[-1])]
    roughness = [float((latent[..., 1:] - latent[..., :-1]).std() / latent.std()) for latent in (shown[0], shown[-1])]
    assert spread[1] == pytest.approx(1, abs=0.3)
    assert roughness[0] < roughness[1]


# on each real WebUI


@pytest.fixture
def real(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: nothing can be asked while it samples")
    return server


def watched(server, ask, payload):
    """Send a request and ask for the progress meanwhile.

    Returns:
        The answer, and a list of (seconds to the end, the host's JSON).
    """
    seen = []
    with ThreadPoolExecutor() as pool:
        running = pool.submit(ask, **payload)
        while not running.done():
            said = server.client.get("/sdapi/v1/progress").json()
            # before and after the job the host gives no figure
            if said["state"]["job_count"] > 0:
                seen.append((time.monotonic(), said))
            wait([running], timeout=0.02)
    ended = time.monotonic()
    return running.result(), [(ended - at, said) for at, said in seen]


def monotone(seen):
    bar = [said["progress"] for _, said in seen]
    # the host counts jobs and steps one after the other, so a single figure may be wrong
    bar = [statistics.median(bar[max(i - 1, 0) : i + 2]) for i in range(len(bar))]
    return all(after >= before - 1e-6 for before, after in itertools.pairwise(bar))


def lines(seen):
    return [said["textinfo"] for _, said in seen if said["textinfo"]]


def test_bar_title_and_preview_while_inverting_and_the_time_that_is_left(real):
    payload = request({"exemplar_prompt": "a watch"}, steps=60, batch_size=2)
    answer, seen = watched(real, real.img2img, payload)
    assert answer.status == 200, answer.sentence
    counted = [int(re.fullmatch(r"Inverting (\d+)/60", line)[1]) for line in lines(seen)]
    assert counted == sorted(counted)
    assert len(set(counted)) > 5
    assert monotone(seen)
    inverting = [said for _, said in seen if said["textinfo"]]
    assert 0.1 < inverting[-1]["progress"] < 0.25
    assert inverting[0]["state"]["job_count"] == 1
    later = [(left, said["eta_relative"]) for left, said in seen if 0.5 < said["progress"] < 0.9]
    assert later
    assert all(left / 2 < eta < left * 2 for left, eta in later)
    shown = {said["current_image"] for said in inverting} - {None}
    assert len(shown) > 1
    sizes = {np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))).shape[:2] for image in shown}
    assert sizes == {(16, 16)}
    assert not lines(watched(real, real.img2img, payload)[1])


def test_each_pass_of_hires_fix_has_its_inversion_in_its_own_half_of_the_bar(real):
    text = {"prompt": "a pizza", "seed": 3, "steps": 30, "width": 128, "height": 128, "sampler_name": "Euler"}
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.8}
    settings = {"enabled": True, "mode": "text", "exemplar": HOUSE, "exemplar_prompt": "a house"}
    payload = {**text, **hires, "alwayson_scripts": {"RIVAL": {"args": [settings]}}}
    answer, seen = watched(real, real.txt2img, payload)
    assert answer.status == 200, answer.sentence
    assert monotone(seen)
    halves = {said["progress"] > 0.5 for _, said in seen if said["textinfo"]}
    assert halves == {False, True}


def test_batches_one_after_the_other_never_move_the_bar_back(real):
    payload = request({"exemplar_prompt": "a clock"}, steps=30, n_iter=3)
    answer, seen = watched(real, real.img2img, payload)
    assert answer.status == 200, answer.sentence
    assert lines(seen)
    assert monotone(seen)


@pytest.mark.parametrize("action", ["interrupt", "skip"])
def test_the_hosts_buttons_end_the_inversion(real, action):
    payload = request({"exemplar_prompt": f"a watch, {action}"}, steps=80)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(real.img2img, **payload)
        while not wait([running], timeout=0.02).done:
            if real.client.get("/sdapi/v1/progress").json()["textinfo"]:
                break
        real.client.post(f"/sdapi/v1/{action}").raise_for_status()
        answer = running.result()
    assert "stopped in the inversion at step" in answer.infotexts[0]
    assert real.client.get("/sdapi/v1/progress").json()["textinfo"] is None
