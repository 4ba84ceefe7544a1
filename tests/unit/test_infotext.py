"""The settings in an infotext, written and read as the host does it: what is written, and what a paste brings back."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rival_ext.fields import DEFAULTS, FEWEST_NODES, FIELDS, INFOTEXT_FIELDS, MODES
from rival_ext.hosts.webui.infotext import PASTE_TARGETS, write_settings
from rival_ext.infotext import MODE, settings_to_infotext
from rival_ext.settings import parse_settings, similarity_values

FIELD = {field.name: field for field in FIELDS}

HOSTS_PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""After the host's `parse_generation_parameters`."""

# the host's format has no way to keep blanks around a value, nor quotes around one that it does not quote itself
prompts = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(',:"\\ ()<>')).filter(
    lambda text: text == text.strip() and not (text.startswith('"') and not re.search("[,:]", text))
)


def values_of(field):
    """Values that a field can take, its default in some mode often among them."""
    defaults = st.sampled_from([DEFAULTS | preset for preset in MODES.values()]).map(lambda all_of: all_of[field.name])
    if field.name == "layers":
        return st.sampled_from(["all", "fine", "coarse", "8", "8,16"])
    if field.name == "exemplar_prompt":
        return prompts
    if field.name in FEWEST_NODES:
        return st.sampled_from(["all", "3", "10"])
    if field.name == "chain":
        # the other one is refused beside some of the other fields
        return st.just("inverted")
    if field.choices:
        return st.sampled_from(field.choices)
    if field.maximum is None:
        return st.booleans()
    numbers = st.integers if isinstance(field.default, int) else st.floats
    return defaults | numbers(field.minimum, field.maximum)


some_settings = st.fixed_dictionaries({}, optional={field.name: values_of(field) for field in INFOTEXT_FIELDS}).map(
    lambda values: parse_settings({"enabled": True, **values})
)


def through_the_host(parameters):
    """The parameters after the host has written them into a line of text and read them again."""

    def quoted(value):
        return json.dumps(value, ensure_ascii=False) if re.search("[,\n:]", str(value)) else value

    line = ", ".join(f"{name}: {quoted(value)}" for name, value in parameters.items())
    return {
        name: json.loads(value) if value.startswith('"') else value
        for name, value in HOSTS_PARAMETER.findall(f"Steps: 20, {line}, Version: v1.10.1")
    }


def pasted(parameters):
    """What the controls are set to, each value in its control's own type as the host makes it; None leaves it."""
    values = {name: target(parameters) for name, target in PASTE_TARGETS.items()}
    return {name: None if value is None else type(DEFAULTS[name])(value) for name, value in values.items()}


def full_infotext(settings):
    """As earlier versions wrote it: every field, but no empty prompt."""
    values = dict(settings)
    return {field.infotext: values[field.name] for field in INFOTEXT_FIELDS if values[field.name] != ""}


@given(some_settings)
def test_settings_come_back_from_their_infotext(settings):
    assert parse_settings(pasted(through_the_host(settings_to_infotext(settings)))) == settings


@given(some_settings)
def test_a_full_infotext_of_an_earlier_version_brings_the_same_settings_back(settings):
    assert parse_settings(pasted(through_the_host(full_infotext(settings)))) == settings


@pytest.mark.parametrize("mode", MODES)
def test_a_modes_defaults_are_not_written(mode):
    assert settings_to_infotext(parse_settings({"mode": mode})) == {MODE: mode}


def test_what_differs_from_the_modes_defaults_is_written():
    settings = parse_settings({"mode": "edit", "start_mix": 1, "early_steps": 900, "t_early": 400, "layers": "fine"})
    assert settings_to_infotext(settings) == {
        **{MODE: "edit", "RIVAL t_early": 400, "RIVAL start_mix": 1.0, "RIVAL layers": "fine"}
    }


def test_a_similarity_is_written_with_the_values_that_it_stands_for():
    assert settings_to_infotext(parse_settings({"similarity": 0.75})) == {
        **{MODE: "variation", "RIVAL similarity": 0.75},
        **{f"RIVAL {name}": value for name, value in similarity_values(0.75).items() if value != DEFAULTS[name]},
    }


def test_a_field_that_is_missing_is_set_to_its_modes_default():
    values = pasted({MODE: "edit", "RIVAL t_align": "450"})
    assert values == {
        **{name: DEFAULTS[name] for name in PASTE_TARGETS},
        **{"enabled": True, "mode": "edit", "early_steps": 900, "start_mix": 0.0, "t_align": 450},
    }


def test_a_value_that_cannot_be_read_leaves_its_control_and_no_other():
    values = pasted({MODE: "edit", "RIVAL early_steps": "soon"})
    assert values["early_steps"] is None
    assert values["start_mix"] == 0.0


def test_the_fields_beside_a_mode_that_cannot_be_read_are_set_to_the_defaults_of_variation():
    values = pasted({MODE: "Edit"})
    assert values["mode"] is None
    assert (values["early_steps"], values["start_mix"]) == (1000, 1.0)


def test_an_infotext_without_rival_switches_it_off_and_leaves_the_rest():
    values = pasted({"Steps": "20", "Sampler": "DDIM"})
    assert values.pop("enabled") is False
    assert set(values.values()) == {None}


def test_what_an_earlier_batch_wrote_is_replaced():
    parameters = {"Seed": 1}
    write_settings(parse_settings({"t_early": 400, "mode": "edit"}), parameters)
    assert parameters == {"Seed": 1, MODE: "edit", "RIVAL t_early": 400}
    write_settings(parse_settings({"strength": 0.5}), parameters)
    assert parameters == {"Seed": 1, MODE: "variation", "RIVAL strength": 0.5}


def test_pasting_covers_every_field_but_the_images():
    assert list(PASTE_TARGETS) == [field.name for field in FIELDS if not field.is_image]
    assert [field.name for field in INFOTEXT_FIELDS] == [name for name in PASTE_TARGETS if name != "enabled"]


def test_the_infotext_needs_neither_the_webui_nor_gradio():
    program = "import sys, rival_ext.hosts.webui.infotext; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert {"rival_ext.hosts.webui.ui.panel", "gradio", "modules", "torch"}.isdisjoint(run.stdout.split())
    assert "rival_ext.hosts.webui.infotext" in run.stdout.split()
