"""The axes of the host's X/Y/Z plot, without a host."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from rival_ext.errors import RivalError
from rival_ext.fields import DEFAULTS, FIELDS, INVERSION_FIELDS, MODES
from rival_ext.hosts.webui.axes import AxisType, add_axes, axes
from rival_ext.settings import mode_fields, parse_settings, preset_values, similarity_values

FIELD = {field.name: field for field in FIELDS}


def option(label, kind, apply, **others):
    return SimpleNamespace(label=label, type=kind, apply=apply, **others)


def processing(*args):
    """As much of a processing as an axis touches. The second script is RIVAL's."""
    scripts = [SimpleNamespace(title=lambda: "Refiner"), SimpleNamespace(title=lambda: "RIVAL", args_from=2)]
    return SimpleNamespace(
        scripts=SimpleNamespace(alwayson_scripts=scripts),
        script_args=(0, "the refiner's", *args),
        extra_generation_params={},
    )


def seen(p, cell):
    """Note each cell that an axis asks to validate."""
    p.seen = [*getattr(p, "seen", []), cell]


AXES = {axis.label: axis for axis in axes(option, seen)}


def test_axes_are_added_once_to_the_plot_of_each_loading(monkeypatch):
    plot = ModuleType("xyz_grid.py")
    plot.AxisOption, plot.axis_options = option, [option("Seed", int, None)]
    own = plot.axis_options
    data = [SimpleNamespace(path="/webui/scripts/xyz_grid.py", module=plot)] * 2
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    sys.modules["modules"].scripts = SimpleNamespace(scripts_data=data)
    add_axes(seen)
    add_axes(seen)
    assert plot.axis_options is own
    assert [axis.label for axis in own] == ["Seed", *AXES]


def test_without_a_plot_nothing_is_added(monkeypatch):
    monkeypatch.setitem(sys.modules, "modules", ModuleType("modules"))
    sys.modules["modules"].scripts = SimpleNamespace(scripts_data=[])
    add_axes(seen)


def test_fields_that_need_another_inversion_change_least_often():
    costly = {axis.label for axis in AXES.values() if axis.cost}
    assert costly == {f"[RIVAL] {FIELD[name].label}" for name in INVERSION_FIELDS}


def test_names_and_switches_are_offered_in_a_list():
    offered = {label: axis.choices() for label, axis in AXES.items() if axis.choices}
    assert offered["[RIVAL] Mode"] == list(MODES)
    assert offered["[RIVAL] Exact guidance"] == offered["[RIVAL] Enabled"] == ["True", "False"]
    assert "[RIVAL] Layers" not in offered


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("similarity", " 0.5", 0.5),
        ("similarity", 0.1 + 0.2, 0.3),
        ("t_align", "600", 600),
        ("exact", " true", True),
        ("layers", "8, 16", "8, 16"),
    ],
)
def test_a_value_is_converted_to_its_fields_type(name, written, value):
    read = AxisType(FIELD[name])(written)
    assert (read, type(read)) == (value, type(value))


def test_the_host_takes_a_number_axis_for_the_numbers_type():
    kinds = [int, float]
    assert [kinds.index(AxisType(FIELD[name])) for name in ("t_align", "similarity")] == [0, 1]
    assert AxisType(FIELD["layers"]) not in kinds


@pytest.mark.parametrize("given", [(False, "variation"), ({"t_align": 500},)])
def test_a_cell_is_switched_on_and_shares_nothing_with_the_next(given):
    p = processing(*given)
    cell = SimpleNamespace(**vars(p))
    AXES["[RIVAL] Similarity"].apply(cell, 0.25, [])
    AXES["[RIVAL] Mode"].apply(cell, "edit", [])
    cell.extra_generation_params["RIVAL mode"] = "edit"
    assert cell.rival_cell == {"enabled": True, "similarity": 0.25, "mode": "edit"}
    assert cell.script_args[2] in (True, {"t_align": 500, "enabled": True})
    assert p.script_args[2:] == given
    assert p.extra_generation_params == {}
    assert not hasattr(p, "rival_cell")


@pytest.mark.parametrize("first", ["[RIVAL] Enabled", "[RIVAL] Similarity"])
def test_the_axis_of_the_switch_goes_before_the_others_in_either_order(first):
    cell = processing(True)
    values = {"[RIVAL] Enabled": False, "[RIVAL] Similarity": 0.25}
    for label in sorted(values, key=lambda label: label != first):
        AXES[label].apply(cell, values[label], [])
    assert cell.script_args[2] is False


def test_an_axis_without_values_is_refused_in_a_sentence():
    with pytest.raises(RivalError, match=r"the axis \[RIVAL\] Mode has no values"):
        AXES["[RIVAL] Mode"].confirm(None, [])


def test_the_last_of_the_axes_sees_every_combination_before_the_first_cell():
    p = SimpleNamespace()
    AXES["[RIVAL] Mode"].confirm(p, ["text", "edit"])
    assert p.seen == [{"mode": "text"}, {"mode": "edit"}]
    AXES["[RIVAL] Similarity"].confirm(p, [0.25, 0.5])
    assert p.seen[2:] == [
        {"mode": mode, "similarity": similarity} for mode in ("text", "edit") for similarity in (0.25, 0.5)
    ]


def test_a_mode_and_a_similarity_set_other_fields():
    assert preset_values({"t_align": 3}) == {}
    usual = {name: DEFAULTS[name] for name in mode_fields()}
    assert usual.keys() == {"early_steps", "start_mix", "uncond_share"}
    assert preset_values({"mode": "variation"}) == usual
    assert preset_values({"mode": "edit"}) == usual | {"early_steps": 900, "start_mix": 0.0}
    assert preset_values({"mode": "edit", "similarity": 0.75}) == {"early_steps": 900, **similarity_values(0.75)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("similarity", [0.25, 0.5, 1.0])
def test_both_choices_are_what_a_request_with_both_gives(mode, similarity):
    choices = {"mode": mode, "similarity": similarity}
    assert parse_settings({**choices, **preset_values(choices)}) == parse_settings(choices)
