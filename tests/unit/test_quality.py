"""How exact an inversion is, in decibels and in words."""

from __future__ import annotations

import pytest
import torch

from rival_ext.method.quality import FAIR, GOOD, IDENTICAL, exactness, judge
from rival_ext.settings import Settings


def sentence(psnr, steps=20, **fields):
    return judge(psnr, Settings(**fields), steps).sentence


@pytest.mark.parametrize(
    ("psnr", "grade"),
    [(IDENTICAL, "good"), (GOOD, "good"), (GOOD - 0.1, "fair"), (FAIR, "fair"), (FAIR - 0.1, "poor"), (8, "poor")],
)
def test_the_grade_follows_the_decibels(psnr, grade):
    verdict = judge(psnr, Settings(), 20)
    assert verdict.grade == grade
    assert verdict.sentence.lower().startswith(grade)
    assert f"{psnr:.1f} dB" in verdict.sentence


def test_a_good_inversion_needs_no_change():
    assert sentence(45).endswith("nothing to change.")


@pytest.mark.parametrize(
    ("psnr", "steps", "fields", "advice"),
    [
        (37, 20, {}, "Raise Inversion iterations to 2 or the sampling steps to 40."),
        (37, 30, {"inversion_iterations": 2}, "Raise Inversion iterations to 3 or the sampling steps to 50."),
        (37, 50, {}, "Raise Inversion iterations to 2."),
        (37, 8, {"inversion_iterations": 3}, "Raise the sampling steps to 16."),
        (29, 10, {}, "Raise Inversion iterations to 3 or the sampling steps to 20."),
        (20, 4, {}, "Raise Inversion iterations to 3 and the sampling steps to 8."),
        (20, 50, {"inversion_iterations": 3}, "Say under Exemplar prompt what the image shows"),
        (20, 50, {"inversion_iterations": 3, "exemplar_prompt": "a bear"}, "Leave Exemplar prompt empty"),
    ],
)
def test_the_advice_raises_what_can_still_be_raised(psnr, steps, fields, advice):
    assert advice in sentence(psnr, steps, **fields)


def test_two_equal_images_have_a_finite_psnr():
    grey = torch.full((8, 8, 3), 128)
    assert exactness(grey, grey) == IDENTICAL
