"""Scripts and other extensions that drive the sampling: what RIVAL did not guide is an error, and a refusal costs no
image that is finished."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.conftest import exemplar, quick
from tests.host.answers import base64_of
from tests.host.asking import STEPS, images_of, largest_difference, request, text_request, uploaded

pytestmark = pytest.mark.long

PAPER = 250
"""The colour of an image that shows a refusal."""

PERMUTED = {"start": "permuted"}
"""Settings with which a variation seed is refused."""

VARIATION_SEED = "a variation seed needs start set to matched; change it, or set Variation strength to 0."

SMALL = {"steps": 2, "width": 64, "height": 64}
SCRIPTS_OF_IMG2IMG = (
    *("loopback", "outpainting mk2", "poor man's outpainting", "prompt matrix", "prompts from file or textbox"),
    *("sd upscale", "x/y/z plot"),
)
SCRIPTS_OF_TXT2IMG = ("prompt matrix", "prompts from file or textbox", "x/y/z plot")
FILLED_IN = {
    "img2img alternative test": {3: "", 4: ""},
    "loopback": {0: 2},
    "outpainting mk2": {1: 64, 3: ["left"]},
    "poor man's outpainting": {0: 32, 2: 0, 3: ["left"]},
    "prompts from file or textbox": {3: 'a pizza\n--prompt "a house" --steps 3'},
    "sd upscale": {1: 16, 2: 0, 3: 1.5},
}
"""What differs from a script's first values, by their places: few loops, one direction, small tiles."""


class OtherScript:
    """An always-on script of another extension, whose callbacks stand before RIVAL's."""

    args_from = args_to = 0

    def __init__(self, **callbacks):
        vars(self).update(callbacks)

    def __getattr__(self, callback):
        return lambda p, *_: None

    def title(self):
        return "another"


@pytest.fixture
def other(server):
    """(callbacks by name) -> a script with these beside RIVAL's, on the stand-in."""
    if server.name != "stand-in":
        pytest.skip(f"{server.name}: the stand-in alone takes a script of the test")
    own = list(server.scripts.alwayson_scripts)

    def add(**callbacks):
        server.scripts.alwayson_scripts.insert(0, OtherScript(**callbacks))

    yield add
    server.scripts.alwayson_scripts[:] = own


def is_refusal(image):
    """Whether an image is a page with a sentence on it."""
    return (image >= PAPER).mean() > 0.5 and image.min() < 80


def test_a_sampling_that_somebody_replaced_is_an_error(server, other):
    def replace(p, *_):
        p.sample = lambda **_: torch.zeros(1, 4, 16, 16)

    other(process=replace)
    answer = server.img2img(**request({}))
    assert (answer.status, answer.sentence) == (
        422,
        "RIVAL: Another extension replaces the WebUI's own sampling, which RIVAL guides; switch one of the two off.",
    )
    assert server.leftovers() == []
    # switched off, the other extension does what it likes
    assert server.img2img(**request(None)).status == 200


def test_a_sampling_that_somebody_wraps_is_guided_in_every_batch(server, other):
    expected = images_of(server, {}, n_iter=2, **SMALL)

    def wrap(p, *_):
        sample = p.sample
        p.sample = lambda **given: sample(**given)

    other(process=wrap)
    assert largest_difference(images_of(server, {}, n_iter=2, **SMALL), expected) == 0

    # after RIVAL's own, the wrapper holds what RIVAL has put there
    server.scripts.alwayson_scripts[:] = [*server.scripts.alwayson_scripts[1:], OtherScript(process_batch=wrap)]
    assert largest_difference(images_of(server, {}, n_iter=2, **SMALL), expected) == 0


def test_a_sampling_that_the_host_announces_twice_is_guided_once(server, other):
    expected = images_of(server, {}, **SMALL)
    (rival,) = server.scripts.alwayson_scripts

    def announce_again(p, *_):
        rival.process_before_every_sampling(p, *p.script_args[rival.args_from : rival.args_to])

    other(process_before_every_sampling=announce_again)
    assert largest_difference(images_of(server, {}, **SMALL), expected) == 0


def test_a_sampler_that_somebody_replaced_after_rival_is_an_error(server, other):
    def replace(p, *_):
        p.sampler = SimpleNamespace(sample_img2img=lambda *_, **__: torch.zeros(1, 4, 16, 16))

    server.scripts.alwayson_scripts.append(OtherScript(process_before_every_sampling=replace))
    other()
    answer = server.img2img(**request({}))
    assert (answer.status, "replaces the WebUI's own sampling" in answer.sentence) == (422, True)


def test_a_sampler_that_never_calls_its_denoiser_is_an_error(server, other):
    def replace(p, *_):
        own, called = p.sampler.func, []

        def ignore_denoiser(model, x, sigmas, extra_args=None, callback=None, disable=None):
            called.append(model)
            # the dry run comes first
            return own(model, x, sigmas, extra_args, callback, disable) if len(called) == 1 else x

        p.sampler.func = ignore_denoiser

    other(process_before_every_sampling=replace)
    answer = server.img2img(**request({}))
    assert answer.status == 422
    assert "the sampler ran without its guided denoiser" in answer.sentence


def test_a_refusal_costs_no_image_that_is_finished(server, other):
    saved = []

    def set_variation(p, *_):
        p.subseed_strength = 0.5 if p.seeds == [4] else 0

    def note(p, processed, *_):
        saved.append(p.do_not_save_samples)

    other(process_batch=set_variation, postprocess=note)
    answer = server.img2img(**request(PERMUTED, n_iter=3, mask=None, **SMALL))
    assert answer.status == 200
    first, _, third = answer.images
    assert [is_refusal(image) for image in answer.images] == [False, True, False]
    assert f"RIVAL report: refused; {VARIATION_SEED}" in answer.infotexts[1]
    assert "RIVAL mode" not in answer.infotexts[1]
    assert "RIVAL mode" in answer.infotexts[2]
    assert saved == [False]
    del server.scripts.alwayson_scripts[0]
    assert largest_difference([first, third], images_of(server, PERMUTED, n_iter=3, **SMALL)[::2]) == 0


def test_the_first_refusal_of_a_request_is_an_error(server, other):
    other(process_batch=lambda p, *_: vars(p).update(subseed_strength=0.5))
    answer = server.img2img(**request(PERMUTED, n_iter=3))
    assert (answer.status, answer.sentence) == (422, f"RIVAL: {VARIATION_SEED}")
    assert server.calls() == 0


def test_a_refused_cell_of_a_plot_shows_why(server):
    answer = server.img2img(**request(PERMUTED, plot=[("Var. strength", "0,0.5"), ("Seed", "3")]))
    assert answer.status == 200, answer.sentence
    assert [is_refusal(image) for image in answer.images] == [False, True]
    assert "refused; a variation seed" in answer.infotexts[1]


def test_cells_that_the_request_itself_cannot_honour_are_refused_before_the_first(server):
    axes = [("[RIVAL] t_align", "300,600"), ("Seed", "3")]
    answer = server.img2img(**request(PERMUTED, plot=axes, subseed_strength=0.5))
    assert (answer.status, answer.sentence) == (422, f"RIVAL: {VARIATION_SEED}")
    assert server.calls() == 0


def test_loras_are_put_aside_once_a_run(server, other, monkeypatch):
    from modules import extra_networks

    switched = []
    monkeypatch.setattr(extra_networks, "activate", lambda p, data: switched.append(bool(data)))
    loras = {"lora": [SimpleNamespace(items=["style", "1"])]}
    settings = {"plain_inversion": True, "features": "live"}
    answer = server.img2img(**request(settings, extra_network_data=loras))
    assert answer.status == 200, answer.sentence
    assert switched == [False, True]
    assert "the LoRAs act on the exemplar where it is evaluated beside the steps" in answer.infotexts[0]


@pytest.mark.parametrize("value", quick(["much", None, True, -1], "much", True))
def test_a_wrong_memory_budget_is_a_sentence_that_names_it(server, value):
    answer = server.img2img(**request({}, override_settings={"rival_memory_mb": value}))
    assert answer.status == 422
    assert answer.sentence.startswith("RIVAL: rival_memory_mb must be a number of megabytes, 0 or more, not ")
    assert server.calls() == 0
    assert server.img2img(**request({}, **SMALL)).status == 200


def only_on_real(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: it has none of the host's scripts")


def script_arguments(server, name, tab):
    """Return a script's arguments as its controls are at first. A control with a list gives the place in it."""
    scripts = server.client.get("/sdapi/v1/script-info").json()
    found = [one for one in scripts if one["name"] == name and one["is_img2img"] == (tab == "img2img")]
    if not found:
        pytest.skip(f"{server.name}: it has no script {name}")
    return [FILLED_IN.get(name, {}).get(place, one["value"]) for place, one in enumerate(found[0]["args"])]


@pytest.mark.parametrize("name", SCRIPTS_OF_IMG2IMG)
def test_each_script_of_the_host_varies_in_img2img(server, name):
    only_on_real(server)
    varied, plain = (
        server.img2img(**with_script(server, name, "img2img", request(settings))) for settings in ({}, None)
    )
    assert plain.status == 200, plain.sentence
    is_varied(varied, server)
    assert largest_difference(varied.images[-1:], plain.images[-1:]) > 5


@pytest.mark.parametrize("name", SCRIPTS_OF_TXT2IMG)
def test_each_script_of_the_host_draws_in_txt2img(server, name):
    only_on_real(server)
    is_varied(server.txt2img(**with_script(server, name, "txt2img", text_request(uploaded()))), server)


def with_script(server, name, tab, asked):
    asked = asked | SMALL | {"prompt": "a pizza|red|round"}
    if name == "x/y/z plot":
        return asked | {"plot": [("Seed", "3,4"), ("CFG Scale", "5")]}
    return asked | {"script_name": name, "script_args": script_arguments(server, name, tab)}


def is_varied(answer, server):
    assert answer.status == 200, answer.sentence
    reports = [text for text in answer.infotexts if "RIVAL report" in text]
    assert reports
    assert not any("refused" in text for text in reports)
    assert server.leftovers() == []


def test_img2img_alternative_is_refused_before_anything_is_evaluated(server):
    only_on_real(server)
    name = "img2img alternative test"
    arguments = script_arguments(server, name, "img2img")
    server.plan()
    answer = server.img2img(**request({}, **SMALL, script_name=name, script_args=arguments))
    assert (answer.status, answer.sentence) == (
        422,
        'RIVAL: The script "img2img alternative test" replaces the WebUI\'s own sampling, which RIVAL guides; switch '
        "one of the two off.",
    )
    assert server.calls() == 0


def test_a_bad_line_of_prompts_from_file_leaves_the_other_lines(server):
    only_on_real(server)
    name = "prompts from file or textbox"
    arguments = script_arguments(server, name, "img2img")
    arguments[3] = "a pizza\n--prompt house --subseed_strength 0.5\na bee"
    answer = server.img2img(**request(PERMUTED, **SMALL, script_name=name, script_args=arguments))
    assert answer.status == 200, answer.sentence
    assert [is_refusal(image) for image in answer.images[-3:]] == [False, True, False]
    assert "refused; a variation seed" in answer.infotexts[-2]


@pytest.mark.parametrize(
    ("fields", "steps"), [({"denoising_strength": 0}, STEPS), ({"hr_second_pass_steps": 1, "sampler_name": "DDIM"}, 1)]
)
def test_a_second_pass_without_a_step_is_refused_before_the_first_pass(server, fields, steps):
    only_on_real(server)
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.5}
    server.plan()
    answer = server.txt2img(**text_request(uploaded(), **(hires | fields)))
    assert answer.status == 422
    assert f"with {steps} sampling steps leaves no step" in answer.sentence
    assert server.calls() == 0


def test_given_fields_win_and_an_infotext_fills_the_rest(server):
    only_on_real(server)
    exemplar_image = base64_of(exemplar("pizza-emojione-yellow"))
    said = "a pizza\nSteps: 8, RIVAL mode: edit, RIVAL t_align: 300, RIVAL layers: fine"
    answer = server.img2img(**request({"exemplar": exemplar_image, "t_early": 500}, infotext=said))
    assert answer.status == 200, answer.sentence
    for written in ("RIVAL mode: edit", "RIVAL t_align: 300", "RIVAL t_early: 500", "RIVAL layers: fine"):
        assert written in answer.infotexts[0]
    answer = server.img2img(**request({"mode": "variation", "t_align": 400}, infotext=said))
    for written in ("RIVAL mode: variation", "RIVAL t_align: 400", "RIVAL layers: fine"):
        assert written in answer.infotexts[0]
    assert "early_steps" not in answer.infotexts[0]
