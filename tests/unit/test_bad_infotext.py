"""An infotext that somebody else wrote: every control gets a valid value or stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.fields import FIELDS, INFOTEXT_FIELDS
from rival_ext.hosts.webui.infotext import PASTE_TARGETS
from rival_ext.infotext import MODE
from rival_ext.settings import parse_settings
from tests.bad_input import HOSTILE_TEXTS, cases, said, scalars, texts

FIELD = {field.name: field for field in FIELDS}
written = texts | st.sampled_from(HOSTILE_TEXTS) | st.integers().map(str) | st.floats().map(repr)
pasted_texts = st.dictionaries(st.sampled_from([field.infotext for field in INFOTEXT_FIELDS]), written, max_size=6)


def on_the_page(name, value):
    """What the host's page sets a control to (`connect_paste`); None leaves it as it is."""
    kind = type(FIELD[name].default)
    if kind is bool and value == "False":
        return False
    return None if value is None else float(value) if kind is int else kind(value)


def in_a_request(name, value):
    """What the host's API takes from a request's infotext (`apply_infotext`)."""
    kind = type(FIELD[name].default)
    return value if value is None or isinstance(value, kind) else kind(value)


def read(parameters):
    return {name: target(parameters) for name, target in PASTE_TARGETS.items()}


@pytest.mark.slow
@given(pasted_texts, st.booleans())
@cases(500)
def test_a_pasted_value_is_valid_or_none(parameters, is_of_rival):
    said(lambda: None)
    parameters |= {MODE: parameters.get(MODE, "edit")} if is_of_rival else {}
    found = read(parameters)
    for name, value in found.items():
        assert value is None or type(value) is type(FIELD[name].default)
        assert on_the_page(name, value) == value
        assert in_a_request(name, value) is value
    parse_settings({name: value for name, value in found.items() if value is not None})
    assert found["enabled"] is (MODE in parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", [field.name for field in INFOTEXT_FIELDS])
@given(value=written | scalars)
@cases(60)
def test_a_value_of_each_field(name, value):
    said(lambda: None)
    found = read({FIELD[name].infotext: value})[name]
    assert found is None or dict(parse_settings({name: found}))[name] == found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("mode", text) for text in ("Edit", "edit ", "paint", "<b>edit</b>", "")),
        *(("t_align", text) for text in ("1001", "-1", "600.0", "6e2", "nan", "9" * 5000, "0x10")),
        *(("similarity", text) for text in ("1.01", "-0.1", "nan", "inf", "1e400", "half", "0,5")),
        *(("exact", text) for text in ("true", "1", "yes", "")),
        *(("layers", text) for text in ("ALL", "8;16", "8," * 20 + "8", "fine,coarse")),
        *(("exemplar_prompt", text) for text in ("\ud800", "x" * 10_001)),
    ],
)
def test_an_invalid_value_leaves_its_control_as_it_is(name, text):
    assert read({MODE: "variation", FIELD[name].infotext: text})[name] is None


def test_no_image_and_no_path_is_taken_from_it():
    parameters = {field.infotext: "/etc/passwd" for field in FIELDS} | {"RIVAL exemplar": "http://127.0.0.1/x.png"}
    assert not {field.name for field in FIELDS if field.is_image} & PASTE_TARGETS.keys()
    taken = {name: value for name, value in read(parameters).items() if value is not None}
    assert taken == {"enabled": True, "exemplar_prompt": "/etc/passwd"}
