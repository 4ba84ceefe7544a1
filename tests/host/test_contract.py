"""The contract with the WebUI, case by case, on the stand-in and on each real WebUI."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rival_ext.fields import FIELDS
from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import STEPS, images_of, infotext, largest_difference, request
from tests.host.data_folder import LORA
from tests.host.quick import quick_first

SAMPLERS = [
    ("DDIM", "Automatic"),
    ("Euler", "Automatic"),
    ("Euler", "Karras"),
    ("Euler a", "Automatic"),
    ("DPM++ 2M", "Automatic"),
]


# enabled, disabled


@pytest.mark.parametrize(("sampler", "scheduler"), quick_first(SAMPLERS))
def test_enabled_gives_another_image_and_the_report_says_what_was_done(server, sampler, scheduler):
    fields = {"sampler_name": sampler, "scheduler": scheduler}
    assert largest_difference(images_of(server, {}, **fields), images_of(server, **fields)) > 20
    text = infotext(server, {}, **fields)
    evaluated = 6 if sampler == "DDIM" else STEPS
    assert f"RIVAL report: 10 layers; {evaluated} of {evaluated} steps injected" in text
    assert "recorded features" in text
    assert f"+ {2 * evaluated} UNet rows" in text


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["Heun", "DPM2"])
def test_a_samplers_midpoints_are_levels_of_the_inversion(server, sampler):
    text = infotext(server, {}, sampler_name=sampler)
    calls = int(re.search(r"10 layers; (\d+) of \1 steps injected", text)[1])
    assert calls > STEPS
    assert "recorded features" in text
    assert f"+ {2 * calls} UNet rows" in text


@pytest.mark.slow
def test_an_adaptive_sampler_sees_recorded_features(server):
    text = infotext(server, {}, sampler_name="DPM adaptive")
    calls = int(re.search(r"10 layers; (\d+) of \1 steps injected", text)[1])
    assert "recorded features" in text
    assert f"+ {2 * calls} UNet rows" in text


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M"])
def test_every_schedule_of_the_host_is_recorded_and_injected_in_all_its_steps(server, sampler):
    for schedule in server.schedules():
        text = infotext(server, {}, sampler_name=sampler, scheduler=schedule, steps=5)
        injected, total = re.search(r"10 layers; (\d+) of (\d+) steps injected", text).groups()
        assert injected == total
        # some of reForge's own schedules end a step earlier
        assert int(total) >= 4
        assert "recorded features" in text


@pytest.mark.slow
def test_the_variation_is_closer_to_the_exemplar_in_colour_than_plain_img2img(server):
    photo = np.asarray(exemplar("pizza-emojione-yellow")).reshape(-1, 3).mean(0)

    def distance(images):
        return np.mean([np.abs(image.reshape(-1, 3).mean(0) - photo).mean() for image in images])

    assert distance(images_of(server, {}, batch_size=3)) < 0.6 * distance(images_of(server, batch_size=3))


def test_plain_generation_is_bit_identical_to_a_server_that_never_had_the_extension(hosts):
    extended, bare = hosts
    before = images_of(bare)
    images_of(extended, {})
    assert largest_difference(images_of(extended), before) == 0
    assert largest_difference(images_of(extended, {"enabled": False}), before) == 0
    extended.plan()
    bare.plan()
    text = {"prompt": "a pizza", "seed": 3, "steps": STEPS, "width": 128, "height": 128, "cfg_scale": 5}
    assert largest_difference(extended.txt2img(**text).images, bare.txt2img(**text).images) == 0


# the API's settings


@pytest.mark.slow
def test_left_out_fields_take_the_panels_defaults(server):
    full = {
        **{"mode": "variation", "exemplar": None, "exemplar_prompt": "", "t_align": 800, "t_early": 600},
        **{"early_steps": 1000, "alignment": "latent", "start": "matched", "start_mix": 1, "uncond_share": 0.5},
        "inversion_iterations": 1,
    }
    assert largest_difference(images_of(server, {}), images_of(server, full)) == 0


VALUES = [True, *(field.default for field in FIELDS[1:])]
"""The values of the panel's controls, switched on."""


@pytest.mark.parametrize(
    "args",
    [
        [{"enabled": True}, {"mode": "edit"}],
        [{"enabled": True}, 5],
        [{"enabled": True}, *VALUES[1:], "too many"],
        [*VALUES, "too many"],
        [*VALUES, *["too many"] * 40],
    ],
)
def test_arguments_that_would_be_dropped_are_refused(server, args):
    answer = server.img2img(**request(args))
    assert answer.status == 422
    assert answer.sentence.startswith("RIVAL: args must be ")
    assert server.calls() == 0


@pytest.mark.slow
def test_the_panels_own_values_may_end_with_those_of_no_field(server):
    ends = [VALUES, [*VALUES, ""], [*VALUES, None, None, None, ""]]
    first, *others = (images_of(server, values) for values in ends)
    assert all(largest_difference(other, first) == 0 for other in others)


def test_the_panels_positional_form_is_the_same(server):
    positional = [True, "variation", 0.5, 500, 400, "permuted", 0.5, 0.4, *[None, None, 1] * 3, "a pizza", "fine"]
    named = {"exemplar_prompt": "a pizza", "t_align": 500, "t_early": 400, "start_mix": 0.5, "layers": "fine"}
    named |= {"start": "permuted", "uncond_share": 0.4}
    assert largest_difference(images_of(server, positional), images_of(server, named)) == 0


@pytest.mark.parametrize(
    "settings",
    quick_first(
        [
            {"t_align": 100},
            {"t_early": 100},
            {"early_steps": 500},
            {"alignment": "noise"},
            {"alignment": "off"},
            {"start": "permuted"},
            {"start_mix": 0.0},
            {"uncond_share": 0.25},
            {"exemplar_prompt": "a pizza"},
            {"inversion_iterations": 3},
            {"exemplar_tokens": 0.5},
            {"strength": 0.5},
            {"layers": "coarse"},
            {"mode": "edit"},
        ]
    ),
)
def test_every_setting_changes_the_image_and_is_in_the_infotext(server, settings):
    assert largest_difference(images_of(server, settings), images_of(server, {})) > 0
    ((name, value),) = settings.items()
    assert f"RIVAL {name}: {value}" in infotext(server, settings)


@pytest.mark.slow
def test_an_exemplar_of_its_own_replaces_the_input_image(server):
    house = exemplar("house-emojione-blue")
    separate = images_of(server, {"exemplar": base64_of(house)})
    # the host adds its noise to its own image, and rounds there
    assert largest_difference(separate, images_of(server, {}, image=house)) <= 2
    assert largest_difference(separate, images_of(server, {})) > 20


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"force": 0.5}, "force"),
        ({"t_align": "600"}, "t_align"),
        ({"t_early": 1001}, "t_early"),
        ({"early_steps": True}, "early_steps"),
        ({"mode": "paint"}, "mode"),
        ({"alignment": "both"}, "alignment"),
        ({"start_mix": None}, "start_mix"),
        ({"exemplar": "no image"}, "exemplar"),
        ({"exemplar_prompt": 5}, "exemplar_prompt"),
        ({"exemplar_prompt": "a pizza <lora:style:1>"}, "exemplar_prompt"),
        ({"inversion_iterations": 0}, "inversion_iterations"),
        ({"exemplar_tokens": 0.2}, "exemplar_tokens"),
        ({"exact": 1}, "exact"),
        ({"enabled": "yes"}, "enabled"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_it_and_nothing_is_sampled(server, settings, named):
    answer = server.img2img(**request(settings))
    assert answer.status == 422
    assert re.search(rf"\b{named}\b", answer.sentence)
    assert server.calls() == 0
    assert server.leftovers() == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"settings": {"early_steps": 0}, "sampler_name": "DDIM"}, "early_steps"),
        ({"settings": {"start": "permuted"}, "subseed_strength": 0.3}, "Variation strength"),
        ({"settings": {"start": "permuted"}, "seed_resize_from_w": 64, "seed_resize_from_h": 64}, "Resize seed"),
        ({"denoising_strength": 0.05, "sampler_name": "DDIM"}, "denoising strength"),
    ],
)
def test_what_cannot_be_honoured_is_a_plain_sentence_before_sampling(server, fields, named):
    answer = server.img2img(**request(**{"settings": {}, **fields}))
    assert answer.status == 422
    assert named in answer.sentence
    assert server.calls() == 0


def test_two_different_input_images_are_refused(server):
    payload = request({}, batch_size=2)
    payload["init_images"].append(base64_of(exemplar("house-emojione-blue")))
    answer = server.img2img(**payload)
    assert answer.status == 422
    assert "one input image" in answer.sentence


def test_a_checkpoint_of_an_unknown_family_is_refused_before_sampling(server, monkeypatch):
    if server.name != "stand-in":
        pytest.skip("real WebUI: test_families.py has checkpoints for it")
    # the host marks Stable Diffusion 3 so
    monkeypatch.setattr(server.checkpoint, "is_sd1", False, raising=False)
    answer = server.img2img(**request({}))
    assert answer.status == 422
    assert "this checkpoint" in answer.sentence
    assert server.calls() == 0


@pytest.mark.slow
def test_a_lora_of_the_prompt_takes_part_in_the_inversion(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: it has no LoRA")
    plain, text = images_of(server, {}), infotext(server, {})
    with_lora = server.img2img(**request({}, prompt=f"a pizza <lora:{LORA}:0.5>"))
    assert "stored inversion" in text
    assert "inverted in" in with_lora.infotexts[0]
    assert largest_difference(with_lora.images, plain) > 5
    assert "inverted in" in infotext(server, {}, prompt=f"a pizza <lora:{LORA}:0.4>")
    assert "stored inversion" in infotext(server, {})
    assert largest_difference(images_of(server, {}), plain) == 0


@pytest.mark.slow
def test_exact_guidance_evaluates_the_exemplar_with_both_prompts(server):
    one_row = {"exemplar_prompt": "a pizza", "t_align": 300}
    exact = {**one_row, "exact": True}
    text = infotext(server, exact)
    assert f"{2 * STEPS} + {2 * STEPS} UNet rows" in text
    assert largest_difference(images_of(server, exact), images_of(server, one_row)) > 0
    batch = images_of(server, exact, batch_size=2)
    alone = [images_of(server, exact, seed=seed)[0] for seed in (3, 4)]
    assert largest_difference(batch, alone) <= 4


@pytest.mark.slow
def test_exact_guidance_changes_nothing_without_an_exemplar_prompt(server):
    assert largest_difference(images_of(server, {"exact": True}), images_of(server, {})) == 0


def test_without_memory_the_exemplar_is_evaluated_live_and_the_report_says_why(server):
    nothing = {"override_settings": {"rival_memory_mb": 0}}
    text = infotext(server, {}, **nothing)
    assert "live features" in text
    assert f"{STEPS} + {3 * STEPS} UNet rows" in text
    assert "the memory budget has no room for recorded features" in text


@pytest.mark.slow
def test_live_and_recorded_features_make_nearly_the_same_image(server):
    nothing = {"override_settings": {"rival_memory_mb": 0}}
    nodes = {"inversion_nodes": "all", "feature_nodes": "all"}
    (live,), (recorded,) = images_of(server, nodes, steps=20, **nothing), images_of(server, nodes, steps=20)
    assert np.sqrt(np.mean((live.astype(float) - recorded) ** 2)) < 1


@pytest.mark.slow
def test_another_seed_prompt_guidance_t_align_or_batch_size_inverts_nothing(server):
    images_of(server, {})
    others = [{"seed": 9}, {"prompt": "a house"}, {"cfg_scale": 3}, {"settings": {"t_align": 200}}, {"batch_size": 2}]
    for fields in others:
        assert "stored inversion" in infotext(server, **{"settings": {}, **fields})


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"steps": STEPS + 1, "settings": {"start_mix": 0.5}},
        {"sampler_name": "DDIM", "settings": {"mode": "edit"}},
        {"steps": STEPS + 2, "settings": {"inversion_nodes": "all"}},
        {"settings": {"feature_nodes": 3}},
        {"settings": {"chain": "noised"}},
        {"width": 144},
        {"image": exemplar("taxi-twemoji-green")},
        {"settings": {"exemplar_prompt": "a house"}},
        {"settings": {"inversion_iterations": 4}},
        {"override_settings": {"CLIP_stop_at_last_layers": 2}},
    ],
)
def test_whatever_changes_a_prediction_inverts_anew(server, fields):
    if "override_settings" in fields and server.name == "stand-in":
        pytest.skip("stand-in: it has no clip skip")
    images_of(server, {})
    assert re.search("(inverted|noised) in", infotext(server, **{"settings": {}, **fields}))
    assert "stored inversion" in infotext(server, {})


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"steps": STEPS - 2}, {"sampler_name": "Euler a", "scheduler": "Karras"}])
def test_a_stored_inversion_serves_other_steps_and_samplers(server, fields):
    images_of(server, {})
    assert "stored inversion" in infotext(server, {}, **fields)


@pytest.mark.slow
def test_token_merging_changes_the_image_and_where_it_merges_the_exemplars_tokens_inverts_anew(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: it has no token merging")
    merged = {"override_settings": {"token_merging_ratio": 0.4}}
    unmerged = images_of(server, {})
    assert ("inverted in" in infotext(server, {}, **merged)) == (server.name == "real")
    assert largest_difference(images_of(server, {}, **merged), unmerged) > 5
    assert largest_difference(images_of(server, {}), unmerged) == 0


# batches, sizes, guidance


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["DDIM", "Euler", "Euler a", "DPM++ 2M", "DPM2"])
def test_image_k_of_a_batch_is_the_image_of_its_own_seed(server, sampler):
    """The host's own plain images differ between batch sizes by rounding, so RIVAL's may differ a little too."""
    batch = images_of(server, {}, batch_size=3, sampler_name=sampler)
    alone = [images_of(server, {}, seed=seed, sampler_name=sampler)[0] for seed in (3, 4, 5)]
    plain_batch = images_of(server, batch_size=3, sampler_name=sampler)
    plain_alone = [images_of(server, seed=seed, sampler_name=sampler)[0] for seed in (3, 4, 5)]
    assert largest_difference(batch, alone) <= 2 + 2 * largest_difference(plain_batch, plain_alone)
    assert largest_difference(batch[:2], batch[1:]) > 20


@pytest.mark.slow
def test_batches_one_after_the_other_share_one_inversion(server):
    fields = {"batch_size": 2, "n_iter": 2, "prompt": "a pizza slice"}
    server.plan()
    answer = server.img2img(**request({"exemplar_prompt": "slice"}, **fields))
    assert "inverted in 8 evaluations" in answer.infotexts[0]
    assert "stored inversion; 0 + 32 UNet rows" in answer.infotexts[2]
    alone = [
        images_of(server, {"exemplar_prompt": "slice"}, seed=seed, prompt="a pizza slice")[0] for seed in range(3, 7)
    ]
    assert largest_difference(answer.images, alone) <= 4


@pytest.mark.slow
def test_the_same_request_twice_is_bit_identical(server):
    first = server.img2img(**request({}, batch_size=2)).images
    assert largest_difference(first, server.img2img(**request({}, batch_size=2)).images) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 192), (136, 104)])
@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
def test_any_size_that_is_a_multiple_of_eight(server, sampler, width, height):
    (image,) = images_of(server, {}, width=width, height=height, sampler_name=sampler)
    assert image.shape == (height, width, 3)


@pytest.mark.slow
def test_guidance_one_is_injected_too(server):
    text = infotext(server, {}, cfg_scale=1)
    assert f"10 layers; {STEPS} of {STEPS} steps injected" in text
    assert largest_difference(images_of(server, {}, cfg_scale=1), images_of(server, cfg_scale=1)) > 20


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["DDIM", "Euler"])
def test_a_lower_denoising_strength_starts_lower_in_the_chain(server, sampler):
    text = infotext(server, {"start_mix": 0.0}, denoising_strength=0.6, sampler_name=sampler)
    evaluated = 3 if sampler == "DDIM" else 5
    assert f"{evaluated} of {evaluated} steps injected" in text


@pytest.mark.slow
def test_the_inverted_start_at_guidance_one_gives_the_exemplar_back(server):
    """A start at a wrong noise level, or a chain that is looked up by index, would not give it back."""
    photo = exemplar("pizza-emojione-yellow")
    for sampler in ("DDIM", "Euler", "DPM++ 2M"):
        settings = {"start_mix": 0.0, "alignment": "off"}
        fields = {"cfg_scale": 1, "prompt": "", "sampler_name": sampler, "steps": 20}
        (image,) = images_of(server, settings, image=photo, **fields)
        assert np.abs(image.astype(float) - np.asarray(photo, dtype=float)).mean() < 12


# stopping and failing

UNSTORED = {"interrupt": "a bear", "skip": "a cow face", "error": "grapes", "memory": "a star"}
"""Exemplar prompts that no other case uses, so the inversion is not stored."""


@pytest.mark.parametrize("action", quick_first(["interrupt", "skip"]))
@pytest.mark.parametrize("at_call", quick_first([3, STEPS + 3]))
def test_interrupt_and_skip_end_inversion_and_sampling_within_a_step(server, action, at_call):
    before = images_of(server)
    server.plan(at_call, action)
    answer = server.img2img(**request({"exemplar_prompt": UNSTORED[action]}))
    assert answer.status == 200
    assert server.calls() == at_call
    assert server.leftovers() == []
    if at_call < STEPS:
        assert "stopped in the inversion" in answer.infotexts[0]
    assert largest_difference(images_of(server), before) == 0


# if memory runs out in the inversion, the run goes on: see test_faults.py
@pytest.mark.parametrize(
    ("at_call", "action"), quick_first([(3, "error"), (STEPS + 3, "error"), (STEPS + 3, "memory")])
)
def test_after_an_error_nothing_stays_hooked_and_the_next_image_is_right(server, action, at_call):
    plain, varied = images_of(server), images_of(server, {})
    server.plan(at_call, action)
    answer = server.img2img(**request({"exemplar_prompt": UNSTORED[action]}))
    assert answer.status == 500
    assert "planned" in answer.sentence
    assert server.leftovers() == []
    assert largest_difference(images_of(server), plain) == 0
    assert largest_difference(images_of(server, {}), varied) == 0
