"""Whatever is sent as settings gives settings, or a sentence that names the field."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import FIELDS
from rival_ext.infotext import settings_to_infotext
from rival_ext.settings import Settings, parse_settings
from rival_ext.written import WRITTEN
from tests.bad_input import IMAGES, NAMES, cases, names, nested, objects, said, two_colours, values


def checked(asked):
    """Check that an object gives settings whose values are in their fields' domains, or a sentence."""
    settings, sentence = said(parse_settings, asked)
    if settings is None:
        # the sentence about a painted exemplar may name its region
        regions = [name.replace("exemplar", "exemplar_mask") for name in asked if name in IMAGES]
        assert names(sentence, [*asked, *regions]), sentence
        return
    given_values = dict(settings)
    for field in FIELDS:
        value = given_values[field.name]
        if field.maximum is not None:
            assert field.minimum <= value <= field.maximum
        if field.choices:
            assert value in field.choices
    # every accepted value can be written into an infotext
    json.dumps(settings_to_infotext(settings), allow_nan=False).encode()


@pytest.mark.slow
@given(objects)
@cases(900)
def test_any_object_gives_settings_or_a_sentence(asked):
    checked(asked)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(value=values)
@cases(100)
def test_any_value_of_a_field_is_taken_or_refused_in_a_sentence(name, value):
    checked({name: value})


@pytest.mark.parametrize("depth", [10, 300, 900])
@pytest.mark.parametrize("name", NAMES)
def test_a_deeply_nested_value_of_a_field_is_refused_in_a_sentence(name, depth):
    checked({name: nested(depth)})
    checked({name: nested(depth, {"image": 1})})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "exemplar_prompt"])
def test_a_text_of_many_megabytes_is_shown_short(name):
    _, sentence = said(parse_settings, {name: "x" * 10**7})
    assert len(sentence) < 300


@pytest.mark.slow
@given(values)
@cases(500)
def test_a_value_is_shown_in_one_short_line(value):
    said(lambda: None)
    assert len(short_repr(value)) <= 60
    assert short_repr(value).isprintable()


def test_an_exemplar_prompt_of_more_than_10000_characters_is_refused():
    assert parse_settings({"exemplar_prompt": "x" * 10_000}).exemplar_prompt
    with pytest.raises(RivalError, match="exemplar_prompt must be a text of at most 10000 characters"):
        parse_settings({"exemplar_prompt": "x" * 10_001})


def test_text_with_half_a_character_is_refused():
    with pytest.raises(
        RivalError, match=re.escape(r"exemplar_prompt must be text that UTF-8 can encode, not 'a\ud800'")
    ):
        parse_settings({"exemplar_prompt": "a\ud800"})


@pytest.mark.parametrize("layers", [[8] * 17, ",".join(["8"] * 17), [10**5000], [[8]], [None], {"8": 8}, [-8], [8.0]])
def test_too_many_or_too_long_token_sizes_are_refused(layers):
    with pytest.raises(RivalError, match="layers must be "):
        parse_settings({"layers": layers})


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(NAMES), values, min_size=1, max_size=2))
@cases(300)
def test_what_the_model_accepts_parse_settings_accepts_too(asked):
    """`Settings` accepts nothing that `parse_settings` refuses, except images, texts and a noised chain."""
    said(lambda: None)
    try:
        settings = dict(Settings(**asked))
    except ValueError:
        return
    excepted = (*IMAGES, *WRITTEN, "exemplar_prompt", "chain")
    others = {name: value for name, value in settings.items() if name not in excepted}
    assert dict(parse_settings(others)).items() >= others.items()


@pytest.mark.parametrize("weight", [0, 5e-324, 1.4e-45, 1e-38, 9e-5])
def test_an_exemplar_of_nearly_zero_weight_is_left_out(weight):
    """In 32 bits its share would be zero, and the start could be drawn from none of its positions."""
    other = two_colours()
    assert [one.image for one in parse_settings({"weight": weight, "exemplar_2": other}).exemplar_inputs] == [other]
    assert len(parse_settings({"weight": 1e-4, "exemplar_2": other}).exemplar_inputs) == 2
