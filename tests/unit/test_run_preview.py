"""The run preview in the panel."""

from __future__ import annotations

import re

import pytest

from rival_ext.fields import DEFAULTS

GOOD = {
    "enabled": True,
    "mode": "variation",
    "prompt": "a house",
    "is_noised": False,
    "evaluations": 10,
    "images": 4,
    "uploads": 0,
    "varies_input": True,
    "is_stored": False,
    "sampler": "Euler",
    "cfg_scale": 5,
    "denoising_strength": 1,
    "t_align": 600,
    "t_early": 400,
    "start_mix": 1.0,
}
"""A run that gives no hint."""


@pytest.fixture(scope="module")
def run_preview(import_on_stand_in):
    return import_on_stand_in("rival_ext.hosts.webui.ui.run_preview")


@pytest.fixture
def lines(run_preview):
    """(values that differ from `GOOD`) -> the lines of the preview as a user reads them."""

    def read(**changes):
        html = run_preview.preview_html(run_preview.PreviewedRun(**GOOD | changes))
        return [re.sub("<[^>]+>", "", line) for line in html.split("</div>") if line]

    return read


@pytest.fixture
def hints(run_preview):
    """(values that differ from `GOOD`) -> the hints."""
    return lambda **changes: list(run_preview.hints(run_preview.PreviewedRun(**GOOD | changes)))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "Inverts the img2img image in 10 evaluations, then makes 4 images."),
        ({"uploads": 1, "images": 1}, "Inverts the uploaded exemplar in 10 evaluations, then makes 1 image."),
        ({"uploads": 3}, "Inverts 3 exemplars in 10 evaluations each, then makes 4 images."),
        ({"is_noised": True, "evaluations": 6}, "Noises the img2img image in 6 evaluations, then makes 4 images."),
        ({"is_stored": True}, "Uses the stored inversion; makes 4 images."),
    ],
)
def test_the_preview_says_what_the_run_will_do(lines, changes, line):
    assert lines(**changes) == [line, "t_align 600 · t_early 400 · start_mix 1"]


def test_txt2img_without_an_exemplar_does_not_name_the_img2img_image(lines):
    first, *_ = lines(denoising_strength=None)
    assert first == "Inverts the exemplar in 10 evaluations, then makes 4 images."


def test_switched_off_the_preview_says_only_that(lines):
    assert lines(enabled=False) == ["RIVAL is switched off: tick the box in the title of this panel."]


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"denoising_strength": 0.75}, "A denoising strength below 1"),
        ({"prompt": "", "denoising_strength": 0.75, "varies_input": False}, "A denoising strength below 1"),
        ({"prompt": "", "denoising_strength": 0.75, "mode": "edit"}, "A denoising strength below 1"),
        ({"prompt": " ", "denoising_strength": 1}, "Without a prompt, a high denoising strength"),
        ({"cfg_scale": 12}, "A high CFG scale"),
        ({"cfg_scale": 3}, "A low CFG scale"),
        ({"denoising_strength": None}, "There is no exemplar yet"),
    ],
)
def test_a_hint_names_a_value_that_works_against_the_method(hints, changes, hint):
    assert [found for found in hints(**changes) if found.startswith(hint)] != []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cfg_scale": 7, "mode": "text"},
        {"cfg_scale": 1},
        {"cfg_scale": 2, "sampler": "LCM"},
        {"denoising_strength": 0.5, "mode": "inpaint"},
        {"denoising_strength": 0.75, "prompt": ""},
        {"prompt": "", "varies_input": False, "uploads": 1},
        {"denoising_strength": None, "uploads": 1},
    ],
)
def test_good_values_give_no_hint(hints, changes):
    assert hints(**changes) == []


@pytest.mark.parametrize("varies_input", [True, False])
@pytest.mark.parametrize("prompt", ["a house", ""])
@pytest.mark.parametrize("mode", ["variation", "text", "edit", "inpaint"])
def test_the_recommended_values_give_no_hint(run_preview, hints, mode, prompt, varies_input):
    values = run_preview.recommended_values(mode, prompt, varies_input)
    assert hints(mode=mode, prompt=prompt, varies_input=varies_input, **values) == []


def test_a_variation_of_the_img2img_image_without_a_prompt_keeps_some_of_it(run_preview):
    strengths = {
        (mode, prompt, varies_input): run_preview.recommended_values(mode, prompt, varies_input)["denoising_strength"]
        for mode in ("variation", "text", "edit", "inpaint")
        for prompt in ("a house", " \n")
        for varies_input in (True, False)
    }
    assert {run for run, strength in strengths.items() if strength != 1} == {("variation", " \n", True)}
    assert strengths["variation", " \n", True] == 0.65


@pytest.mark.parametrize(
    ("changes", "evaluations"),
    [
        ({}, 10),
        ({"steps": 6}, 6),
        ({"inversion_nodes": "7"}, 7),
        ({"inversion_nodes": "all"}, 20),
        ({"inversion_nodes": "some"}, 20),
        ({"mode": "edit"}, 20),
        ({"start_mix": 0.5}, 20),
        ({"chain": "noised"}, 6),
        ({"chain": "noised", "feature_nodes": "4"}, 4),
    ],
)
def test_the_evaluations_are_those_of_the_run(run_preview, changes, evaluations):
    values = {"mode": "variation", "start_mix": 1.0, "chain": "inverted", "inversion_nodes": "10", "feature_nodes": "6"}
    values |= changes
    assert run_preview._evaluations(values, values.pop("steps", 20)) == evaluations


@pytest.mark.parametrize(
    ("earlier", "later", "finds"),
    [
        ({}, {"mode": "text", "t_align": 500}, True),
        ({}, {"mode": "edit"}, False),
        ({}, {"start_mix": 0.5}, False),
        ({}, {"inversion_nodes": "all"}, False),
        ({}, {"inversion_nodes": "20"}, False),
        ({}, {"chain": "noised"}, False),
        ({"mode": "edit"}, {"mode": "inpaint"}, True),
        ({"mode": "edit"}, {}, True),
        # a check
        ({"inversion_nodes": "all"}, {}, True),
        ({"inversion_nodes": "all"}, {"start_mix": 0}, True),
    ],
)
def test_the_preview_foresees_which_inversions_serve(import_on_stand_in, earlier, later, finds):
    fingerprint = import_on_stand_in("rival_ext.hosts.webui.fingerprint")
    made = fingerprint.preview_key(None, {}, "", {**DEFAULTS, **earlier}, [])
    assert (made in fingerprint.preview_keys(None, {}, "", {**DEFAULTS, **later}, [])) == finds
