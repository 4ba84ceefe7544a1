"""A setting without an effect is mentioned in the report."""

from __future__ import annotations

import pytest

from rival_ext.method.prepare import prepare
from rival_ext.method.unused import settings_without_effect
from rival_ext.settings import parse_settings
from rival_ext.storage.store import NoStore

STEPS_OF_20 = [1 + 50 * step for step in range(20)]
"""Timesteps of 20 DDIM steps. The highest is 951, as below full noise."""


def notes(timesteps=STEPS_OF_20, is_aligned=True, is_start_drawn=True, is_guided=True, is_exact=False, **fields):
    known = {"is_aligned": is_aligned, "is_start_drawn": is_start_drawn, "is_guided": is_guided, "is_exact": is_exact}
    return list(settings_without_effect(parse_settings(fields), timesteps, **known))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"mode": "text"}, ["early_steps 960 skipped no step"]),
        ({"inversion_nodes": 8}, []),
        (
            {"inversion_nodes": 8, "is_exact": True},
            ["inversion_nodes 8 had no effect because this run inverts at each of the sampler's levels"],
        ),
        ({"inversion_nodes": "all", "is_exact": True}, []),
        (
            {"inversion_nodes": 8, "inversion_iterations": 2, "chain": "noised"},
            [
                "inversion_nodes 8 had no effect because a noised chain is not inverted",
                "inversion_iterations 2 had no effect because a noised chain is not inverted",
            ],
        ),
        ({"feature_nodes": 5, "features": "live"}, ["feature_nodes 5 had no effect because features are live"]),
        ({"early_steps": 950}, []),
        ({"early_steps": 1000}, []),
        ({"t_align": 960}, ["no step lies above t_align 960"]),
        ({"t_align": 950}, []),
        ({"t_align": 700, "timesteps": [499, 259]}, ["no step lies above t_align 700"]),
        ({"t_align": 0}, []),
        ({"t_align": 1000}, []),
        ({"t_early": 960}, ["no step lies above t_early 960"]),
        ({"t_early": 0}, []),
        ({"t_early": 960, "alignment": "latent"}, ["no step lies above t_early 960"]),
        ({"t_early": 400, "alignment": "off"}, ["t_early 400 had no effect because alignment is off"]),
        ({"alignment": "off"}, []),
        ({"t_early": 400, "is_aligned": False}, ["t_early 400 had no effect because every exemplar has a mask"]),
        ({"exemplar_tokens": 0.5}, []),
        (
            {"exemplar_tokens": 0.5, "t_align": 0},
            ["exemplar_tokens 0.5 had no effect because every step lies above t_align"],
        ),
        ({"strength": 0}, ["strength 0 let no step see the exemplar"]),
        ({"strength": 0, "early_steps": 960, "t_align": 960}, ["strength 0 let no step see the exemplar"]),
        ({"exact": True}, ["exact had no effect without an exemplar_prompt"]),
        ({"exact": True, "exemplar_prompt": "a pizza"}, []),
        (
            {"mode": "edit", "is_start_drawn": False, "is_aligned": False},
            ["start_mix 0 had no effect because every exemplar has a mask"],
        ),
        (
            {"start": "permuted", "is_start_drawn": False},
            ["start permuted had no effect because every exemplar has a mask"],
        ),
        ({"start": "permuted", "start_mix": 0}, ["start permuted had no effect because start_mix is 0"]),
        ({"start": "permuted"}, []),
        ({"is_guided": False}, ["uncond_share 0.5 had no effect at guidance scale 1"]),
        ({"is_guided": False, "uncond_share": 1}, []),
        (
            {"is_aligned": False, "uncond_share": 0.25},
            ["uncond_share 0.25 had no effect because every exemplar has a mask"],
        ),
        ({"is_aligned": False}, []),
        (
            {"is_guided": False, "uncond_share": 1, "exact": True, "exemplar_prompt": "a pizza"},
            ["exact had no effect at guidance scale 1"],
        ),
        ({}, []),
    ],
)
def test_a_setting_without_effect_is_mentioned(fields, expected):
    assert notes(**fields) == expected


@pytest.mark.parametrize(
    ("timesteps", "expected"),
    [
        # a denoising strength of 0.5
        ([499, 259], []),
        ([999, 859], ["every step lies above t_align 800", "every step lies above t_early 600"]),
        ([999, 499], []),
        # an adaptive sampler's are not known
        ([], []),
    ],
)
def test_few_steps_can_all_lie_on_one_side(timesteps, expected):
    assert notes(timesteps) == expected


@pytest.mark.parametrize("fields", [{"mode": "text"}, {"exact": True}, {"strength": 0}, {"t_align": 999}])
def test_a_note_is_a_part_of_a_line_of_the_infotext(fields):
    for note in notes(**fields, is_start_drawn=False):
        assert not set(note) & set(",:\n")
        assert not note.endswith(".")


def test_the_report_of_a_run_has_the_notes(make_host):
    host = make_host(steps=20, guidance=1, exact=True, exemplar_prompt="a panda")
    settings = parse_settings({"mode": "text", "exact": True, "exemplar_prompt": "a panda"})
    assert prepare(host, settings, NoStore()).inversion.notes == [
        "exact had no effect at guidance scale 1",
        "uncond_share 0.75 had no effect at guidance scale 1",
    ]
    # the first timestep, 951, counts as 1000: mode text skips it
    assert prepare(make_host(steps=20), parse_settings({"mode": "text"}), NoStore()).inversion.notes == []
