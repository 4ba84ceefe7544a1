"""The settings: which values each field accepts, its defaults, its presets, and exemplars in a request."""

from __future__ import annotations

import base64
import io
import random
import re
import struct
import zlib
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import FIELDS, MODES
from rival_ext.settings import SIMILARITY, Settings, parse_settings, similarity_values

DEFAULTS = {
    "enabled": False,
    "mode": "variation",
    "similarity": 0.5,
    "t_align": 800,
    "t_early": 600,
    "start": "matched",
    "start_mix": 1.0,
    "uncond_share": 0.5,
    **{"exemplar": None, "exemplar_mask": None, "weight": 1.0},
    **{"exemplar_2": None, "exemplar_mask_2": None, "weight_2": 1.0},
    **{"exemplar_3": None, "exemplar_mask_3": None, "weight_3": 1.0},
    "exemplar_prompt": "",
    "layers": "all",
    "strength": 1.0,
    "early_steps": 1000,
    "alignment": "latent",
    **{"chain": "inverted", "inversion_nodes": "10", "feature_nodes": "8"},
    "inversion_iterations": 1,
    "exemplar_tokens": 1.0,
    "features": "recorded",
    "exact": False,
    "plain_inversion": False,
}
IMAGES = [name for name in DEFAULTS if name.startswith("exemplar") and DEFAULTS[name] is None]
SHARES = ["similarity", "start_mix", "uncond_share", "weight", "weight_2", "weight_3", "strength"]
NODES = ["inversion_nodes", "feature_nodes"]
NO_NODES = ["", "some", "8.0", "8,8", "-8", "1000", "8" * 5000, "\u0664", 8.0, True, None, [8], 1000, -1, 10**5000]
some_image = st.none() | st.builds(Image.new, st.sampled_from(["RGB", "RGBA", "L"]), st.just((3, 2)))

VALID = {
    "enabled": st.booleans(),
    "mode": st.sampled_from(["variation", "text", "edit", "inpaint"]),
    **dict.fromkeys(IMAGES, some_image),
    **dict.fromkeys(SHARES, st.floats(0, 1)),
    "exemplar_prompt": st.text(),
    "layers": st.sampled_from(["all", "fine", "coarse", "8", "8,16", "64"]),
    "t_align": st.integers(0, 1000),
    "t_early": st.integers(0, 1000),
    "early_steps": st.integers(0, 1000),
    "alignment": st.sampled_from(["noise", "latent", "off"]),
    "start": st.sampled_from(["matched", "permuted"]),
    "chain": st.just("inverted"),
    **dict.fromkeys(NODES, st.sampled_from(["all", "3", "10", "999"])),
    "inversion_iterations": st.integers(1, 10),
    "exemplar_tokens": st.floats(0.25, 1),
    "features": st.sampled_from(["recorded", "live"]),
    "exact": st.booleans(),
    "plain_inversion": st.booleans(),
}

WRONG_KINDS = {
    "boolean": st.booleans(),
    "whole number": st.integers(),
    "text": st.text(),
    "other": st.one_of(
        st.none(),
        st.floats(),
        st.integers(0, 1000).map(float),
        st.integers(0, 1000).map(Decimal),
        st.integers(0, 1000).map(Fraction),
        st.binary(),
        st.lists(st.integers(0, 3), max_size=2),
        st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
        st.just(object()),
    ),
}


def wrong(*kinds):
    return st.one_of(*(WRONG_KINDS[kind] for kind in kinds), WRONG_KINDS["other"])


def other_choices(name):
    choices = next(field.choices for field in FIELDS if field.name == name)
    near = st.sampled_from([choices[0].upper(), choices[0] + " ", "", choices[0].encode(), list(choices)])
    return near | wrong("boolean", "whole number", "text").filter(lambda value: value not in choices)


def outside(minimum, maximum):
    integers = st.integers(max_value=minimum - 1) | st.integers(min_value=maximum + 1)
    digits = st.integers(minimum, maximum).map(str)
    return integers | digits | wrong("boolean", "text")


def outside_fraction(minimum):
    return (
        st.floats(max_value=minimum, exclude_max=True)
        | st.floats(min_value=1, exclude_min=True)
        | wrong("boolean", "text").filter(lambda value: not isinstance(value, (float, Decimal, Fraction)))
        | st.integers().filter(lambda value: not minimum <= value <= 1)
    )


INVALID = {
    "enabled": wrong("whole number", "text") | st.sampled_from([0, 1, "true", "false"]),
    "mode": other_choices("mode"),
    **dict.fromkeys(IMAGES, wrong("boolean", "whole number", "text").filter(lambda value: value is not None)),
    **dict.fromkeys(SHARES, outside_fraction(0)),
    "exemplar_prompt": wrong("boolean", "whole number"),
    "layers": st.sampled_from(
        ["", "ALL", "fine,coarse", "8,", "-8", "8.5", "8;16", "12345", None, 8, True, ["fine", 8], []]
    ),
    "t_align": outside(0, 1000),
    "t_early": outside(0, 1000),
    "early_steps": outside(0, 1000),
    "start": other_choices("start"),
    "alignment": other_choices("alignment"),
    "chain": other_choices("chain"),
    "inversion_nodes": st.sampled_from([2, "2", *NO_NODES]),
    "feature_nodes": st.sampled_from([0, "0", *NO_NODES]),
    "inversion_iterations": outside(1, 10),
    "exemplar_tokens": outside_fraction(0.25),
    "features": other_choices("features"),
    "exact": wrong("whole number", "text"),
    "plain_inversion": wrong("whole number", "text"),
}

NAMES = list(DEFAULTS)


def some_valid_values():
    return st.fixed_dictionaries({}, optional=VALID)


def png(size=(3, 2)):
    """Return a small image and the bytes of its file."""
    image = Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3))
    file = io.BytesIO()
    image.save(file, "PNG")
    return image, file.getvalue()


def refusal(**values):
    """Return the sentence with which the values are refused."""
    with pytest.raises(RivalError) as error:
        parse_settings(values)
    assert error.value.status_code == 422
    assert error.value.detail == str(error.value)
    return str(error.value)


# domains


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_value_outside_its_domain_is_refused_with_the_fields_name(name, data):
    others = data.draw(some_valid_values())
    assert refusal(**others | {name: data.draw(INVALID[name])}).startswith(f"RIVAL: {name} must be ")


@given(some_valid_values(), st.text().filter(lambda name: name not in DEFAULTS), st.sampled_from([None, 1, "noise"]))
def test_an_unknown_field_is_refused_with_its_name_and_those_that_exist(values, name, value):
    sentence = refusal(**values | {name: value})
    assert short_repr(name) in sentence
    assert ", ".join(NAMES) in sentence


@given(some_valid_values())
def test_valid_values_are_kept_and_the_others_take_their_defaults(values):
    settings = parse_settings(values)
    similarity = similarity_values(values["similarity"]) if "similarity" in values else {}
    assert dict(settings) == DEFAULTS | MODES[settings.mode] | similarity | values
    assert {name: type(value) for name, value in dict(settings).items()} == {
        name: type(value) for name, value in (DEFAULTS | values).items()
    }
    assert parse_settings(dict(settings)) == settings


def test_fields_that_are_left_out_take_their_defaults():
    assert dict(parse_settings({})) == DEFAULTS


def test_settings_cannot_be_changed():
    with pytest.raises((ValidationError, TypeError)):
        parse_settings({}).t_align = 1


def test_the_whole_number_1_counts_as_the_fraction_1():
    assert repr(parse_settings({"exemplar_tokens": 1}).exemplar_tokens) == "1.0"


def test_a_whole_number_beyond_all_floats_is_refused():
    assert refusal(exemplar_tokens=10**400).startswith("RIVAL: exemplar_tokens must be ")


def test_a_long_wrong_value_is_shown_short():
    assert len(refusal(mode="x" * 5000)) < 200


# one table


def test_the_fields_are_those_of_the_settings_in_the_same_order():
    assert [field.name for field in FIELDS] == list(dict(Settings())) == NAMES
    assert {field.name: field.default for field in FIELDS} == DEFAULTS


@pytest.mark.parametrize(
    "field", [field for field in FIELDS if field.maximum is not None], ids=lambda field: field.name
)
def test_the_bounds_of_a_field_are_those_that_the_settings_check(field):
    for value in (field.minimum, field.maximum):
        assert dict(parse_settings({field.name: value}))[field.name] == value
    for value in (field.minimum - 1, field.maximum + 1):
        assert refusal(**{field.name: value}).endswith(f"from {field.minimum} to {field.maximum}, not {value}.")


@pytest.mark.parametrize("field", [field for field in FIELDS if field.choices], ids=lambda field: field.name)
def test_the_choices_of_a_field_are_those_that_the_settings_accept(field):
    assert field.default == field.choices[0]
    for choice in field.choices:
        assert dict(parse_settings({field.name: choice}))[field.name] == choice
    # the choices that the type allows, as the validator's message lists them
    with pytest.raises(ValidationError) as error:
        Settings(**{field.name: "no such choice"})
    allowed = re.findall(r"'([a-z]+)'", error.value.errors()[0]["msg"])
    assert tuple(allowed) == field.choices


def test_only_switches_texts_and_images_have_neither_bounds_nor_choices():
    free = [field.name for field in FIELDS if not field.choices and field.maximum is None]
    assert [name for name in free if name not in IMAGES] == [
        *("enabled", "exemplar_prompt", "layers", "inversion_nodes", "feature_nodes", "exact", "plain_inversion")
    ]


@pytest.mark.parametrize(
    ("written", "kept"), [(8, "8"), ("8", "8"), (" 08 ", "8"), ("all", "all"), (" All ", "all"), (999, "999")]
)
def test_a_number_of_nodes_may_be_a_number_or_its_text(written, kept):
    settings = parse_settings({"inversion_nodes": written, "feature_nodes": written})
    assert (settings.inversion_nodes, settings.feature_nodes) == (kept, kept)


@pytest.mark.parametrize(
    ("fields", "because"),
    [
        ({"mode": "edit"}, "in mode edit"),
        ({"mode": "inpaint"}, "in mode inpaint"),
        ({"start_mix": 0.5}, "with start_mix 0.5"),
        ({"exact": True, "exemplar_prompt": "a pizza"}, "with exact guidance"),
    ],
)
def test_a_noised_chain_is_refused_where_the_exemplar_has_to_come_back(fields, because):
    assert refusal(**fields, chain="noised") == f"RIVAL: chain must be inverted {because}, not noised."
    assert parse_settings({"mode": "text", "chain": "noised"}).chain == "noised"


# the exemplar in a request


@pytest.mark.parametrize("head", ["", "data:image/png;base64,"])
def test_an_exemplar_may_be_base64_or_a_data_url(head):
    image, file = png()
    decoded = parse_settings({"exemplar": head + base64.b64encode(file).decode()}).exemplar
    assert decoded.tobytes() == image.tobytes()
    assert decoded.size == image.size


@given(st.text(min_size=1))
def test_text_that_is_no_base64_of_an_image_is_refused(text):
    assert refusal(exemplar=text).startswith("RIVAL: exemplar must be an image")


@given(st.binary(), st.sampled_from(["", "data:image/png;base64,"]))
def test_base64_of_data_that_is_no_image_is_refused(data, head):
    assert refusal(exemplar=head + base64.b64encode(data).decode()).startswith("RIVAL: exemplar must be an image")


@given(st.data())
def test_a_truncated_image_is_refused(data):
    _, file = png((9, 9))
    part = file[: data.draw(st.integers(0, len(file) * 3 // 4))]
    assert refusal(exemplar=base64.b64encode(part).decode()).startswith("RIVAL: exemplar must be an image")


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_header(width, height, *chunks):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


UNUSABLE = {
    "with an unreadable chunk among its pixels": png_of_header(
        3, 2, png_chunk(b"IDAT", zlib.compress(b"")[:4]), png_chunk(b"4\x1a\x9dN", b"")
    ),
}


@pytest.mark.parametrize("file", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_image_for_which_pillow_raises_another_error_is_refused(file):
    assert refusal(exemplar=base64.b64encode(file).decode()).startswith("RIVAL: exemplar must be an image")


# presets


@pytest.mark.parametrize(
    ("mode", "early_steps", "start_mix"),
    [("variation", 1000, 1), ("text", 960, 1), ("edit", 900, 0), ("inpaint", 1000, 1)],
)
def test_a_given_value_overrides_the_default_of_its_mode(mode, early_steps, start_mix):
    settings = parse_settings({"mode": mode})
    assert (settings.early_steps, settings.start_mix) == (early_steps, start_mix)
    assert (settings.t_align, settings.t_early) == (800, 600)
    given = {"early_steps": 123, "start_mix": 0.25, "t_align": 4}
    assert {name: getattr(parse_settings({"mode": mode, **given}), name) for name in given} == given


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_similarity_moves_each_value_that_it_sets_towards_the_exemplar(one, other):
    less, more = (similarity_values(similarity) for similarity in sorted([one, other]))
    assert less["strength"] <= more["strength"]
    assert all(less[name] >= more[name] for name in SIMILARITY.keys() - {"strength"})


def test_each_tenth_of_similarity_is_another_one_and_only_the_upper_half_brings_the_layout():
    tenths = [similarity_values(tenth / 10) for tenth in range(11)]
    for less, more in pairwise(tenths):
        assert sum(less[name] != more[name] for name in SIMILARITY) >= 3
    assert all(dict(parse_settings({"similarity": tenth / 10})).items() >= tenths[tenth].items() for tenth in range(11))
    mixes = [values["start_mix"] for values in tenths]
    assert mixes[:6] == [1] * 6
    # the seeds differ, even at the end
    assert mixes[5:] == sorted(set(mixes[5:]), reverse=True)
    assert mixes[10] > 0


def test_similarity_one_half_sets_the_defaults_and_a_given_value_overrides_it():
    assert similarity_values(0.5) == {name: DEFAULTS[name] for name in SIMILARITY}
    settings = parse_settings({"similarity": 1, "t_early": 700})
    assert {name: dict(settings)[name] for name in SIMILARITY} == similarity_values(1) | {"t_early": 700}


@pytest.mark.parametrize("written", ["8, 16", [8, 16], ["8", " 16"], "8,16", (8, 16)])
def test_token_sizes_may_be_written_in_several_ways(written):
    settings = parse_settings({"layers": written})
    assert settings.layers == "8,16"
    assert settings.token_pixels({8, 16, 32}) == {8, 16}


def test_fine_is_the_smallest_tokens_and_coarse_the_rest():
    sizes = {16, 32, 64}
    assert [parse_settings({"layers": name}).token_pixels(sizes) for name in ("all", "fine", "coarse")] == [
        *(sizes, {16}, {32, 64})
    ]
    with pytest.raises(RivalError, match="layers must name at least one of this checkpoint's token sizes: 16, 32, 64"):
        parse_settings({"layers": "8"}).token_pixels(sizes)
    with pytest.raises(RivalError, match="token sizes: 8 pixels"):
        parse_settings({"layers": "coarse"}).token_pixels({8})


def test_an_exemplar_without_an_image_or_with_weight_zero_is_left_out():
    image = Image.new("RGB", (3, 2))
    exemplar_inputs = parse_settings(
        {"weight": 0, "exemplar_2": image, "weight_2": 0.5, "weight_3": 0.7}
    ).exemplar_inputs
    assert exemplar_inputs == [(image, None, 0.5, "_2")]
    assert parse_settings({}).exemplar_inputs == [(None, None, 1.0, "")]


@pytest.mark.parametrize("ending", ["", "_2", "_3"])
def test_a_painted_exemplar_gives_an_image_and_a_region(ending):
    exemplar, region = "exemplar" + ending, "exemplar_mask" + ending
    image, strokes = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))
    strokes.paste("white", (2, 2, 5, 5))
    painted = dict(parse_settings({exemplar: {"image": image, "mask": strokes}}))
    assert painted[exemplar] is image
    assert painted[region] is strokes

    untouched = dict(parse_settings({exemplar: {"image": image, "mask": Image.new("RGB", (8, 8))}, region: None}))
    assert untouched[exemplar] is image
    assert untouched[region] is None

    other = Image.new("L", (8, 8), 255)
    assert dict(parse_settings({exemplar: {"image": image, "mask": strokes}, region: other}))[region] is other


@pytest.mark.parametrize("painted", [{}, {"image": None}, {"image": None, "mask": None, "other": 1}])
def test_a_painted_exemplar_that_is_not_an_image_and_a_mask_is_refused(painted):
    assert refusal(exemplar=painted).startswith("RIVAL: exemplar must be an image")


def test_the_error_of_a_wrong_mask_of_a_painted_exemplar_names_the_region():
    assert refusal(exemplar={"image": None, "mask": 3}).startswith("RIVAL: exemplar_mask must be an image")
