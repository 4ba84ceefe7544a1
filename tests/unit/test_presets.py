"""The presets that are built into the panel."""

from __future__ import annotations

import pytest

from rival_ext.fields import MODES
from rival_ext.settings import PAPER, changed_values, parse_settings


@pytest.fixture(scope="module")
def presets(import_on_stand_in):
    return import_on_stand_in("rival_ext.hosts.webui.ui.presets")


@pytest.mark.parametrize("mode", MODES)
def test_a_built_in_preset_is_what_a_request_with_its_similarity_gives(presets, mode):
    built_in = presets.built_in_presets(mode)
    for name, similarity in {"inspired": 0.2, "close": 0.8}.items():
        asked = {"mode": mode, "similarity": similarity}
        assert parse_settings({"mode": mode, **built_in[name]}) == parse_settings(asked)
    assert parse_settings({"mode": mode, **built_in["default"]}) == parse_settings({"mode": mode})


@pytest.mark.parametrize("mode", MODES)
def test_the_preset_paper_differs_from_the_modes_defaults_by_the_authors_form_alone(presets, mode):
    settings = parse_settings({"mode": mode, **presets.built_in_presets(mode)["paper"]})
    assert changed_values(settings) == PAPER


def test_no_built_in_preset_sets_the_mode_or_says_what_an_exemplar_is(presets):
    for preset in presets.built_in_presets("edit").values():
        assert preset.keys().isdisjoint({"enabled", "mode", "exemplar", "exemplar_prompt", "weight", "weight_2"})
