"""Every sampler of a real WebUI, its options and prompts: it must visit exactly the inverted noise levels."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import images_of, largest_difference, request
from tests.host.conftest import SKIPPED
from tests.host.data_folder import STYLE
from tests.host.servers import RealServer, real_folder

pytestmark = pytest.mark.long

DETERMINISTIC = ["DDIM", "PLMS", "UniPC", "Euler", "LMS", "Heun", "DPM2", "DPM++ 2M", "DPM fast", "DPM adaptive"]
STOCHASTIC = [
    *("Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"),
    *("Restart", "LCM", "DDIM CFG++"),
]
ADAPTIVE = "DPM adaptive"
PHOTO = "pizza-emojione-yellow"

OPTIONS = {
    **{"batch_cond_uncond": True, "pad_cond_uncond": False, "pad_cond_uncond_v0": False, "skip_early_cond": 0.0},
    **{"s_min_uncond_all": False, "eta_ddim": 0.0, "eta_ancestral": 1.0, "s_churn": 0.0, "s_tmin": 0.0, "s_noise": 1.0},
    **{"sigma_min": 0.0, "sigma_max": 0.0, "rho": 0.0, "always_discard_next_to_last_sigma": False},
    **{"use_old_karras_scheduler_sigmas": False, "sgm_noise_multiplier": False, "img2img_extra_noise": 0.0},
    **{"no_dpmpp_sde_batch_determinism": False, "uni_pc_order": 3, "uni_pc_skip_type": "time_uniform"},
    **{"img2img_fix_steps": False, "enable_quantization": False, "cross_attention_optimization": "Automatic"},
}
"""Options that requests override here. The host restores only those that its settings file names."""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = real_folder()
    if folder is None:
        pytest.skip(SKIPPED)
    server = RealServer(folder, tmp_path_factory.mktemp("samplers"), options=OPTIONS)
    yield server
    server.stop()


@pytest.fixture
def server(running):
    running.plan()
    return running


def answered(server, settings, kind="img2img", **fields):
    server.plan()
    answer = getattr(server, kind)(**request(settings, **fields))
    assert answer.status == 200, answer.sentence
    assert server.leftovers() == []
    return answer


def calls(text):
    """Return the number of the denoiser's calls. All layers must have been injected in each."""
    found = re.search(r"10 layers; (\d+) of (\d+) steps injected", text)
    assert found[1] == found[2]
    return int(found[1])


def test_the_cases_are_all_samplers_of_the_host(server):
    assert {*DETERMINISTIC, *STOCHASTIC} == set(server.samplers())


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC])
def test_every_layer_sees_the_exemplar_at_every_call(server, sampler):
    answer = answered(server, {}, sampler_name=sampler)
    text = answer.infotexts[0]
    assert ("live features" if sampler == ADAPTIVE else "recorded features") in text
    rows = 3 if sampler == ADAPTIVE else 2
    assert f"+ {rows * calls(text)} UNet rows" in text
    assert largest_difference(answer.images, answered(server, {}, sampler_name=sampler).images) == 0
    assert largest_difference(answer.images, answered(server, None, sampler_name=sampler).images) > 20


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC])
def test_image_k_of_a_batch_is_the_image_of_its_own_seed(server, sampler):
    """The adaptive sampler takes its steps for the whole batch, so it breaks this promise without RIVAL too."""
    if sampler == ADAPTIVE:
        pytest.skip("real WebUI: its own DPM adaptive fits its steps to the batch")
    batch = images_of(server, {}, batch_size=2, sampler_name=sampler)
    alone = [images_of(server, {}, seed=seed, sampler_name=sampler)[0] for seed in (3, 4)]
    plain_batch = images_of(server, batch_size=2, sampler_name=sampler)
    plain_alone = [images_of(server, seed=seed, sampler_name=sampler)[0] for seed in (3, 4)]
    assert largest_difference(batch, alone) <= 4 + 2 * largest_difference(plain_batch, plain_alone)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
@pytest.mark.parametrize("strength", [1, 0.6])
def test_the_inverted_start_at_guidance_one_gives_the_exemplar_back(server, sampler, strength):
    """A start or an end at a wrong noise level, or a chain that is looked up by index, would not give it back."""
    settings = {"start_mix": 0.0, "alignment": "off"}
    fields = {"prompt": "", "cfg_scale": 1, "steps": 20, "denoising_strength": strength, "sampler_name": sampler}
    fields["override_settings"] = {"eta_ancestral": 0.0}
    (image,) = answered(server, settings, **fields).images
    assert off(image) < 13


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_the_same_from_noise(server, sampler):
    settings = {"start_mix": 0.0, "alignment": "off", "exemplar": base64_of(exemplar(PHOTO))}
    fields = {"prompt": "", "cfg_scale": 1, "steps": 20, "sampler_name": sampler}
    fields["override_settings"] = {"eta_ancestral": 0.0}
    payload = request(settings, **fields)
    for name in ("init_images", "denoising_strength"):
        del payload[name]
    answer = server.txt2img(**payload)
    assert answer.status == 200, answer.sentence
    assert off(answer.images[0]) < 13


WITHOUT_EFFECT = [
    # a sampling that starts at the chain's latent does not scale noise
    *[("img2img", "sgm_noise_multiplier"), ("txt2img", "sgm_noise_multiplier"), ("img2img", "img2img_extra_noise")],
    *[("txt2img", "img2img_extra_noise"), ("txt2img", "img2img_fix_steps")],
]


def off(image):
    """Return the mean difference from the exemplar. The small VAE alone makes 8 to 9."""
    return np.abs(image.astype(float) - np.asarray(exemplar(PHOTO), dtype=float)).mean()


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("DDIM", {"eta_ddim": 1.0}),
        ("Euler a", {"eta_ancestral": 0.5}),
        ("Euler", {"s_churn": 20.0}),
        ("Euler", {"s_churn": 8.0, "s_tmin": 0.5, "s_noise": 1.01}),
        ("Heun", {"s_churn": 20.0}),
        ("DPM++ 2M", {"sigma_min": 0.1, "sigma_max": 10.0}),
        ("DPM++ 2M", {"rho": 3.0}),
        ("DPM++ 2M", {"use_old_karras_scheduler_sigmas": True}),
        ("Euler", {"always_discard_next_to_last_sigma": True}),
        ("DDIM", {"always_discard_next_to_last_sigma": True}),
        ("Euler", {"sgm_noise_multiplier": True}),
        ("Euler", {"img2img_extra_noise": 0.05}),
        ("Euler", {"img2img_fix_steps": True}),
        ("Euler", {"enable_quantization": True}),
        ("DPM++ SDE", {"no_dpmpp_sde_batch_determinism": True}),
        ("UniPC", {"uni_pc_order": 2, "uni_pc_skip_type": "time_quadratic"}),
        ("UniPC", {"uni_pc_skip_type": "logSNR"}),
    ],
)
@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
def test_a_samplers_options_are_followed(server, sampler, options, kind):
    settings = {"exemplar": base64_of(exemplar(PHOTO))}
    fields = {"sampler_name": sampler, "denoising_strength": 0.8}
    answer = answered(server, settings, kind, override_settings=options, **fields)
    assert calls(answer.infotexts[0]) >= 4
    assert "recorded features" in answer.infotexts[0]
    if (kind, *options) not in WITHOUT_EFFECT:
        usual = answered(server, settings, kind, **fields)
        assert largest_difference(answer.images, usual.images) > 0


# prompts

LONG = ", ".join(["a pizza", "yellow", "red", "brown"] * 12)


@pytest.mark.parametrize(
    "prompt",
    [
        "a (pizza:1.4)",
        "[a house:a pizza:0.5]",
        "[a house|a pizza]",
        "a pizza AND a house :0.5",
        "a pizza AND a house AND a star :0.7",
        "a pizza BREAK a house",
        LONG,
        f"{LONG} AND a house",
    ],
)
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("exact", [False, True])
def test_prompts_of_every_kind(server, prompt, together, exact):
    """If rows were confused, a batch would differ from its single images when the exemplar has two rows."""
    settings = {"exemplar_prompt": "a pizza", "exact": exact, "t_align": 300}
    fields = {"prompt": prompt, "steps": 5, "override_settings": {"batch_cond_uncond": together}}
    batch = answered(server, settings, batch_size=2, **fields)
    calls(batch.infotexts[0])
    alone = [answered(server, settings, seed=seed, **fields).images[0] for seed in (3, 4)]
    assert largest_difference(batch.images, alone) <= 4
    if not together:
        fields["override_settings"] = {"batch_cond_uncond": True}
        at_once = answered(server, settings, batch_size=2, **fields)
        assert largest_difference(batch.images, at_once.images) <= 4


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
def test_a_style_acts_as_its_text(server, kind):
    name, prompt, negative_prompt = STYLE
    for settings in ({"exemplar": base64_of(exemplar(PHOTO))}, None):
        styled = answered(server, settings, kind, prompt="a pizza", styles=[name])
        written = {"prompt": prompt.format(prompt="a pizza"), "negative_prompt": negative_prompt}
        by_hand = answered(server, settings, kind, **written)
        assert largest_difference(styled.images, by_hand.images) == 0
        assert largest_difference(styled.images, answered(server, settings, kind, prompt="a pizza").images) > 5


@pytest.mark.parametrize("exemplar_prompt", ["(a pizza:1.3)", "[a house:a pizza:0.5]", "a pizza BREAK a house", LONG])
def test_an_exemplars_prompt_of_every_kind(server, exemplar_prompt):
    usual = answered(server, {"exemplar_prompt": "a pizza", "inversion_iterations": 2})
    answer = answered(server, {"exemplar_prompt": exemplar_prompt, "inversion_iterations": 2})
    calls(answer.infotexts[0])
    assert largest_difference(answer.images, usual.images) > 0


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"pad_cond_uncond": True}, {"prompt": LONG}),
        ({"pad_cond_uncond": True}, {"negative_prompt": LONG}),
        ({"pad_cond_uncond_v0": True}, {"prompt": LONG}),
        ({"pad_cond_uncond_v0": True}, {"negative_prompt": LONG}),
        ({"skip_early_cond": 0.4}, {}),
        ({}, {"s_min_uncond": 3.0}),
        ({"s_min_uncond_all": True}, {"s_min_uncond": 3.0}),
    ],
)
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("exact", [False, True])
def test_padding_and_skipped_guidance(server, sampler, options, fields, exact):
    settings = {"exemplar_prompt": "a pizza", "exact": exact}
    # the DDIM family counts its noise in timesteps
    scale = 100 if sampler == "DDIM" else 1
    fields = {name: value * scale if name == "s_min_uncond" else value for name, value in fields.items()}
    fields["sampler_name"] = sampler
    batch = answered(server, settings, batch_size=2, override_settings=options, **fields)
    text = batch.infotexts[0]
    evaluations = server.calls() - int((re.search(r"inverted in (\d+) evaluations", text) or [0, 0])[1])
    skips = "skip_early_cond" in options or "s_min_uncond" in fields
    assert (int(re.search(r"\+ (\d+) UNet rows", text)[1]) < 4 * calls(text)) == skips
    # two prompts of different lengths take one evaluation each if they are not padded
    assert evaluations == calls(text)
    alone = [answered(server, settings, seed=seed, override_settings=options, **fields).images[0] for seed in (3, 4)]
    assert largest_difference(batch.images, alone) <= 4


# sizes


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 256), (72, 200), (64, 1024), (2048, 64), (328, 136)])
@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
def test_sizes_and_aspects(server, width, height, kind):
    """An uploaded exemplar keeps its aspect. The input image gets the output's."""
    exemplars = {"exemplar": base64_of(exemplar(PHOTO).resize((160, 96)))} if kind == "txt2img" else {}
    answer = answered(server, exemplars, kind, width=width, height=height, steps=4)
    assert answer.images[0].shape == (height, width, 3)
    calls(answer.infotexts[0])


@pytest.mark.parametrize("resize_mode", [0, 1, 2, 3])
@pytest.mark.parametrize("strength", [1, 0.5])
def test_resize_modes(server, resize_mode, strength):
    image = exemplar(PHOTO).resize((200, 104))
    fields = {"image": image, "resize_mode": resize_mode, "denoising_strength": strength}
    answer = answered(server, {"start_mix": 0.0}, **fields)
    calls(answer.infotexts[0])
    assert largest_difference(answer.images, answered(server, None, **fields).images) > 5


# attention


@pytest.mark.parametrize(
    "attention",
    [
        *("sub-quadratic", "Doggettx", "V1 - original v1", "InvokeAI", "None", "sdp - scaled dot product"),
        "sdp-no-mem - scaled dot product without memory efficient attention",
    ],
)
def test_every_attention_of_the_host_lets_the_exemplar_in(server, attention):
    usual = answered(server, {})
    server.set(cross_attention_optimization=attention)
    try:
        answer = answered(server, {})
    finally:
        server.set(cross_attention_optimization="Automatic")
    calls(answer.infotexts[0])
    # Automatic means InvokeAI on a CPU
    assert ("inverted in" in answer.infotexts[0]) == (attention != "InvokeAI")
    assert largest_difference(answer.images, usual.images) <= 4
