"""A request's arguments: what is given wins, then what its infotext says, then the defaults."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rival_ext.errors import RivalError
from rival_ext.fields import DEFAULTS, FIELDS
from rival_ext.settings import mode_defaults, parse_settings, similarity_values

PANEL = [DEFAULTS[field.name] for field in FIELDS]


@pytest.fixture(scope="module")
def parse(import_on_stand_in):
    """(the request's object, what the infotext says or None) -> the settings, or the error."""
    parsed_request = import_on_stand_in("rival_ext.hosts.webui.request").parsed_request

    def parse(given, said=None):
        values = {**DEFAULTS, **(mode_defaults(said.get("mode", "variation")) | said if said else {})}
        args = [given, *(values[field.name] for field in FIELDS[1:])]
        return parsed_request(SimpleNamespace(), args).outcome

    return parse


@pytest.mark.parametrize("given", [{}, {"mode": "text"}, {"mode": "edit", "similarity": 0.75}, {"t_align": 300}])
def test_the_panels_defaults_beside_an_object_say_nothing(parse, given):
    assert parse(given) == parse_settings(given)


@pytest.mark.parametrize(
    ("given", "said", "expected"),
    [
        ({"enabled": True}, {"mode": "edit", "layers": "fine"}, {"mode": "edit", "layers": "fine"}),
        ({"t_early": 500}, {"t_early": 300, "t_align": 200}, {"t_early": 500, "t_align": 200}),
        # an infotext's similarity is the control's place, and its own t_align stands beside it
        ({}, {"similarity": 0.75, "t_align": 600}, {"similarity": 0.75, "t_align": 600, "t_early": 600}),
        # a given similarity brings its own t_align
        ({"similarity": 0.75}, {"t_align": 100, "layers": "fine"}, {**similarity_values(0.75), "layers": "fine"}),
        # a given mode brings its own defaults, and takes nothing of the infotext's mode
        ({"mode": "text"}, {"mode": "edit"}, {"mode": "text", "early_steps": 960, "start_mix": 1.0}),
        ({"mode": "variation"}, {"mode": "edit", "start_mix": 0.25}, {"early_steps": 1000, "start_mix": 0.25}),
    ],
)
def test_given_fields_win_and_the_infotext_fills_the_rest(parse, given, said, expected):
    settings = dict(parse(given, said))
    assert {name: settings[name] for name in expected} == expected


def test_a_wrong_given_field_is_still_an_error(parse):
    outcome = parse({"t_align": 2000}, {"mode": "edit"})
    assert isinstance(outcome, RivalError)
    assert "t_align must be" in str(outcome)
