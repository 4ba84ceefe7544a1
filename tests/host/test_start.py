"""What images start from: the host's own noise, and below denoising strength 1 the img2img image."""

from __future__ import annotations

from statistics import mean

import numpy as np
import pytest

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import images_of, largest_difference, report, request, text_request, uploaded
from tests.host.quick import quick_first

HOUSE, PIZZA = "house-emojione-blue", "pizza-emojione-yellow"


def distance(image, name):
    """Mean difference of an image to a photo, of 255."""
    return float(np.abs(image.astype(float) - np.asarray(exemplar(name))).mean())


@pytest.mark.parametrize("sampler", quick_first(["DDIM", "Euler", "Euler a", "DPM++ 2M"]))
@pytest.mark.parametrize("start", ["matched", "permuted"])
def test_the_denoising_strength_leads_from_the_photo_to_a_free_variation(server, sampler, start):
    strengths = (0.25, 0.5, 0.75, 1.0)
    fields = {"sampler_name": sampler, "batch_size": 2}
    distances = [
        mean(distance(image, PIZZA) for image in images_of(server, {"start": start}, denoising_strength=one, **fields))
        for one in strengths
    ]
    assert distances == sorted(distances)
    # the plain host's are about as far
    plain = mean(distance(image, PIZZA) for image in images_of(server, denoising_strength=0.25, **fields))
    assert distances[0] < 1.3 * plain


def test_below_full_strength_the_img2img_image_is_kept_and_not_the_uploaded_exemplar(server):
    (image,) = images_of(server, {"exemplar": base64_of(exemplar(HOUSE))}, denoising_strength=0.25)
    assert distance(image, PIZZA) < distance(image, HOUSE)


def test_images_of_a_batch_start_as_each_would_alone(server):
    together = images_of(server, {}, batch_size=2, denoising_strength=0.6)
    alone = images_of(server, {}, seed=4, denoising_strength=0.6)
    assert largest_difference(together[1:], alone) <= 3


def test_a_variation_seed_varies_the_matched_start(server):
    if server.name == "stand-in":
        pytest.skip("stand-in: its noise has no variation seed")
    fields = {"subseed": 7}
    base, little, other = (images_of(server, {}, **fields, subseed_strength=one) for one in (0, 0.1, 1))
    assert largest_difference(base, images_of(server, {})) == 0
    assert largest_difference(base, little) > 5
    assert largest_difference(base, other) > 20
    answer = server.txt2img(**text_request(uploaded(), **fields, subseed_strength=0.5))
    assert answer.status == 200, answer.sentence


def test_a_resized_seed_works_with_the_matched_start(server):
    answer = server.img2img(**request({}, seed_resize_from_w=64, seed_resize_from_h=64))
    assert answer.status == 200, answer.sentence


# how often the evaluations with the negative prompt see the exemplar


def test_at_cfg_1_the_share_has_no_effect_and_the_report_says_so(server):
    runs = [request({"uncond_share": share}, cfg_scale=1) for share in (0.25, 1)]
    answers = [server.img2img(**run) for run in runs]
    # the host computes u + 1 * (c - u), in which the negative prompt's u is lost up to rounding
    assert largest_difference(answers[0].images, answers[1].images) <= 1
    assert "uncond_share 0.25 had no effect at guidance scale 1" in report(answers[0])
    assert "uncond_share" not in report(answers[1])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layers": "fine"},
        {"strength": 0.5},
        {"exact": True, "exemplar_prompt": "a pizza"},
        {"features": "live"},
        {"exemplar_2": base64_of(exemplar(HOUSE)), "weight_2": 0.5},
    ],
)
def test_the_share_acts_with_every_other_setting(server, settings):
    less, all_of_it = (images_of(server, {**settings, "uncond_share": share}) for share in (0.25, 1.0))
    assert largest_difference(less, all_of_it) > 10


def test_the_share_acts_on_the_negative_half_alone_where_halves_are_evaluated_apart(server):
    """Prompts of different lengths are evaluated apart, and so are the parts of an AND."""
    if server.name == "stand-in":
        pytest.skip("stand-in: it evaluates all rows together")
    for prompt in ("a pizza " * 60, "a pizza AND a house"):
        answer = server.img2img(**request({"uncond_share": 0.25}, prompt=prompt))
        assert answer.status == 200, answer.sentence
        assert "10 layers" in report(answer)


def test_halves_that_are_evaluated_apart_give_the_same_image(server):
    if server.name != "real":
        pytest.skip("only AUTOMATIC1111 has the option")
    together = images_of(server, {"uncond_share": 0.25})
    apart = images_of(server, {"uncond_share": 0.25}, override_settings={"batch_cond_uncond": False})
    assert largest_difference(together, apart) <= 3
