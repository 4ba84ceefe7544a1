"""The run preview in the panel."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from rival_ext.hosts.webui.ui.run_preview import (
    SAMPLER_NOTES,
    PreviewedRun,
    hints,
    preview_html,
    recommended_values,
)

GOOD = PreviewedRun(
    enabled=True,
    mode="variation",
    steps=20,
    images=4,
    uploads=0,
    is_stored=False,
    sampler="Euler",
    cfg_scale=5,
    denoising_strength=1,
    t_align=600,
    t_early=400,
    start_mix=1.0,
)
"""A run without a hint."""


def lines(run):
    """The lines of the preview as a user reads them."""
    return [re.sub("<[^>]+>", "", line) for line in preview_html(run).split("</div>") if line]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "Inverts the img2img image in 20 steps, then makes 4 images."),
        ({"uploads": 1, "images": 1}, "Inverts the uploaded exemplar in 20 steps, then makes 1 image."),
        ({"uploads": 3}, "Inverts 3 exemplars in 20 steps each, then makes 4 images."),
        ({"is_stored": True}, "Uses the stored inversion; makes 4 images."),
    ],
)
def test_the_preview_says_what_the_run_will_do(changes, line):
    assert lines(replace(GOOD, **changes)) == [line, "t_align 600 · t_early 400 · start_mix 1"]


def test_txt2img_without_an_exemplar_does_not_name_the_img2img_image():
    first, *_ = lines(replace(GOOD, denoising_strength=None))
    assert first == "Inverts the exemplar in 20 steps, then makes 4 images."


def test_switched_off_the_preview_says_only_that():
    assert lines(replace(GOOD, enabled=False)) == ["RIVAL is switched off: tick the box in its title."]


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"denoising_strength": 0.75}, "Denoising strength below 1"),
        ({"cfg_scale": 12}, "A high CFG scale"),
        ({"cfg_scale": 3}, "A low CFG scale"),
        ({"denoising_strength": None}, "There is no exemplar yet"),
        ({"sampler": "DPM adaptive"}, SAMPLER_NOTES["DPM adaptive"]),
    ],
)
def test_a_hint_names_a_value_that_works_against_the_method(changes, hint):
    assert [found for found in hints(replace(GOOD, **changes)) if found.startswith(hint)] != []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cfg_scale": 7, "mode": "text"},
        {"cfg_scale": 1},
        {"cfg_scale": 2, "sampler": "LCM"},
        {"denoising_strength": 0.5, "mode": "inpaint"},
        {"denoising_strength": None, "uploads": 1},
    ],
)
def test_good_values_give_no_hint(changes):
    assert list(hints(replace(GOOD, **changes))) == []


@pytest.mark.parametrize("mode", ["variation", "text", "edit", "inpaint"])
def test_the_recommended_values_give_no_hint(mode):
    assert list(hints(replace(GOOD, mode=mode, **recommended_values(mode)))) == []
