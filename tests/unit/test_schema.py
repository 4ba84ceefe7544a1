"""The JSON Schema of the settings says what `parse_settings` accepts."""

from __future__ import annotations

import pytest

from rival_ext.errors import RivalError
from rival_ext.fields import FIELDS, settings_schema
from rival_ext.settings import parse_settings

PROPERTIES = settings_schema()["properties"]


def test_the_schema_describes_every_field_and_allows_no_other():
    assert list(PROPERTIES) == [field.name for field in FIELDS]
    assert all(value["description"] for value in PROPERTIES.values())
    assert settings_schema()["additionalProperties"] is False


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_default_the_choices_and_the_bounds_in_the_schema_are_accepted(name):
    described = PROPERTIES[name]
    taken = [described["default"], *described.get("enum", [])]
    taken += [described[bound] for bound in ("minimum", "maximum") if bound in described]
    for value in taken:
        parse_settings({name: value})


@pytest.mark.parametrize("name", [name for name, described in PROPERTIES.items() if "maximum" in described])
def test_values_beyond_the_bounds_in_the_schema_are_refused(name):
    described = PROPERTIES[name]
    for value in (described["minimum"] - 1, described["maximum"] + 1):
        with pytest.raises(RivalError, match=name):
            parse_settings({name: value})


def test_the_description_names_each_mode_with_another_default():
    assert "Default 960 in mode text, 900 in mode edit." in PROPERTIES["early_steps"]["description"]
    assert "Default 0 in mode edit." in PROPERTIES["start_mix"]["description"]


def test_no_type_is_a_list():
    """The page of the WebUI's own API documentation cannot show a list of types."""
    assert not any(isinstance(described.get("type"), list) for described in PROPERTIES.values())
