"""The check of an inversion, called as the panel's button calls it, on the stand-in."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.settings import parse_settings
from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import STEPS, at_first_call, images_of, infotext, largest_difference, psnr_of, request
from tests.host.quick import quick_first
from tests.host.standin_server import StandInServer

PIZZA = exemplar("pizza-emojione-yellow")
MEDDLING = ("save_init_img", "img2img_color_correction")
"""Options that a check switches off."""


@pytest.fixture
def run(server, monkeypatch):
    """A function (settings, fields of the request) -> the check's result. By default it checks the pizza in img2img."""
    if not isinstance(server, StandInServer):
        pytest.skip("real WebUI: test_routes.py checks there")
    from modules import shared

    from rival_ext.hosts.webui.check import CheckRequest, check_in_queue

    monkeypatch.setattr(shared, "sd_model", server.checkpoint)
    server.forget()

    def check(settings=None, **fields):
        given = {"image": PIZZA, "steps": STEPS, "width": 128, "height": 128, "sampler_name": "Euler", **fields}
        return check_in_queue(CheckRequest(parse_settings(settings or {}), **given), server.session())

    return check


def test_the_exemplar_comes_back_beside_itself_with_figures_and_a_verdict(run):
    checked = run(steps=20)
    assert np.array_equal(np.asarray(checked.original), np.asarray(PIZZA))
    assert psnr_of(checked.original, checked.reconstruction) > 20
    assert checked.psnr > 40
    assert checked.seconds > 0
    assert checked.verdict.sentence == f"Good: the exemplar comes back at {checked.psnr:.1f} dB; nothing to change."


@pytest.mark.parametrize("sampler", quick_first(["DDIM", "Euler", "Euler a", "Heun", "DPM++ 2M", "DPM adaptive"]))
def test_a_run_with_the_same_image_and_settings_inverts_nothing(run, server, sampler):
    checked = run(sampler_name=sampler, prompt="a pizza")
    assert not checked.is_stored
    assert "stored inversion; 0 +" in infotext(server, {}, sampler_name=sampler)
    assert run(sampler_name=sampler, prompt="a pizza").is_stored


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M"])
def test_the_way_back_is_the_inversions_own_whatever_the_sampler(run, sampler):
    assert run(sampler_name=sampler, scheduler="Karras").psnr == run(scheduler="Karras").psnr


@pytest.mark.slow
def test_a_stored_inversion_is_led_back_only(run):
    first, again = run(), run()
    assert (first.evaluations, again.evaluations) == (2 * STEPS, STEPS)
    assert first.chain == again.chain
    assert first.psnr == again.psnr


@pytest.mark.slow
def test_txt2img_checks_the_uploaded_exemplar(run, server):
    checked = run({"exemplar": PIZZA}, image=None)
    assert checked.original.size == (128, 128)
    payload = request({"exemplar": base64_of(PIZZA), "mode": "text"})
    del payload["init_images"], payload["denoising_strength"]
    answer = server.txt2img(**payload)
    assert "stored inversion" in answer.infotexts[0]


@pytest.mark.slow
def test_of_several_exemplars_all_are_inverted_and_the_first_is_shown(run, server):
    house = exemplar("house-emojione-blue")
    checked = run({"exemplar_2": house, "weight": 0.5})
    assert np.array_equal(np.asarray(checked.original), np.asarray(PIZZA))
    assert "stored inversion" in infotext(server, {"exemplar_2": base64_of(house), "weight": 0.5})
    checked = run({"exemplar_2": house, "weight": 0})
    assert np.array_equal(np.asarray(checked.original), np.asarray(house))


@pytest.mark.slow
def test_an_exemplar_of_another_shape_is_shown_at_the_size_that_it_is_encoded_at(run):
    wide = Image.new("RGB", (300, 100), "orange")
    checked = run({"exemplar": wide}, image=None)
    assert checked.original.size == checked.reconstruction.size == (192, 64)


@pytest.mark.slow
def test_a_second_iteration_brings_a_coarse_inversion_closer(run):
    assert run({"inversion_iterations": 3}).psnr > run().psnr + 3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["variation", "text", "edit", "inpaint"])
def test_every_mode_can_be_checked(run, mode):
    checked = run({"mode": mode})
    assert checked.psnr > 20
    assert checked.report.mode == mode


@pytest.mark.slow
def test_a_check_leaves_nothing_behind_but_the_chain(run, server):
    plain = images_of(server)
    run()
    from modules import shared

    assert server.leftovers() == []
    assert not shared.cmd_opts.no_prompt_history
    assert shared.state.textinfo is None
    assert largest_difference(images_of(server), plain) == 0


@pytest.mark.slow
def test_options_that_a_user_sets_during_a_check_stay_and_those_of_the_check_are_not_saved(run, server, monkeypatch):
    from modules import shared

    for name in MEDDLING:
        monkeypatch.setitem(shared.opts.data, name, True)
    seen = {}

    def set_one():
        seen["read"] = [getattr(shared.opts, name) for name in MEDDLING]
        seen["saved"] = [shared.opts.data[name] for name in MEDDLING]
        shared.opts.save_init_img = False

    with at_first_call(server, set_one):
        run()
    assert seen == {"read": [False, False], "saved": [True, True]}
    assert [getattr(shared.opts, name) for name in MEDDLING] == [False, True]


@pytest.mark.parametrize("at_call", quick_first([3, STEPS + 3]))
def test_an_error_on_either_way_leaves_the_host_as_it_was(run, server, at_call):
    from modules import call_queue, shared

    server.plan(at_call, "error")
    with pytest.raises(RuntimeError, match="planned fault"):
        run()
    assert server.leftovers() == []
    assert not shared.cmd_opts.no_prompt_history
    assert shared.state.textinfo is None
    assert not call_queue.queue_lock.locked()


@pytest.mark.slow
@pytest.mark.parametrize("at_call", [3, STEPS + 3])
def test_an_interrupt_on_either_way_is_a_plain_sentence(run, server, at_call):
    server.plan(at_call, "interrupt")
    with pytest.raises(RivalError, match="the check was interrupted"):
        run()
    assert server.calls() == at_call
    assert server.leftovers() == []
    server.plan()
    assert run().is_stored == (at_call > STEPS)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"image": None}, "exemplar is missing"),
        ({"sampler_name": "Oiler"}, "sampler_name must be the name of one of the WebUI's samplers, not 'Oiler'"),
        ({"scheduler": "daily"}, "scheduler must be the name of one of the WebUI's schedules, not 'daily'"),
        ({"denoising_strength": 0.05, "sampler_name": "DDIM"}, "denoising strength"),
    ],
)
def test_what_the_run_would_refuse_is_refused_before_any_evaluation(run, server, fields, sentence):
    with pytest.raises(RivalError, match=sentence):
        run(**fields)
    assert server.calls() == 0


@pytest.mark.slow
def test_what_the_memory_has_no_room_for_has_no_id(run):
    assert run(override_settings={"rival_memory_mb": 0}).chain is None
