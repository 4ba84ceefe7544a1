"""The fields as axes of the WebUI's X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import FIELDS, INVERSION_FIELDS, Field

PLOT_FILE = "xyz_grid.py"
"""The file of the host's script that makes the plot."""

CHOSEN = "rival_axes"
"""The attribute of a plot's processing that holds the values of the axes that the host has checked so far."""

CELL = "rival_cell"
"""The attribute of a cell's own processing that holds the values of the axes."""

COST_OF_INVERSION = 0.3
"""The cost of an axis that needs another inversion for each value. The host changes the costliest axis least often:
this one less often than a seed (0), more often than a VAE (0.7) or a checkpoint (1)."""

SWITCH_CHOICES = ["True", "False"]


ValidateCell = Callable[[Any, Mapping[str, Any]], None]
"""(processing of the plot, values of a cell by field name) -> None. Raises RivalError for what cannot be honoured."""


def add_axes(validate: ValidateCell) -> None:
    """Add an axis for each field that is no image to the host's plot, if the host has the plot and the axes are new.

    Args:
        validate: Checks each cell before the host makes the first one.
    """
    # imported late: the other functions here need no host
    from modules import scripts

    for plot in {data.module for data in scripts.scripts_data if Path(data.path).name == PLOT_FILE}:
        present = {option.label for option in plot.axis_options}
        plot.axis_options += [axis for axis in axes(plot.AxisOption, validate) if axis.label not in present]


def axes(axis_option: Callable[..., Any], validate: ValidateCell) -> list[Any]:
    """Make the axes.

    Args:
        axis_option: The host's class of an axis.
        validate: Checks each cell before the host makes the first one.

    Returns:
        One axis for each field that is no image, in the panel's order.
    """
    return [
        axis_option(
            axis_label(field),
            AxisType(field),
            _apply(field),
            confirm=_confirm(field, validate),
            cost=COST_OF_INVERSION if field.name in INVERSION_FIELDS else 0.0,
            choices=_choices(field),
        )
        for field in FIELDS
        if not field.is_image
    ]


def axis_label(field: Field) -> str:
    """Return the label of a field's axis. The label of the switch itself is the panel's title, so "Enabled" stands for
    it."""
    return f"[RIVAL] {'Enabled' if field.name == 'enabled' else field.label}"


def cell_values(p: Any) -> Mapping[str, Any]:
    """Return the values of a plot's axes for one cell.

    Args:
        p: The host's processing.

    Returns:
        Values by field name, empty outside of a plot.
    """
    return getattr(p, CELL, {})


def rival_arguments(p: Any) -> Sequence[Any]:
    """Return RIVAL's part of a processing's script arguments."""
    script = _rival_script(p)
    arguments: Sequence[Any] = p.script_args[script.args_from : script.args_to]
    return arguments


@dataclass(frozen=True, eq=False)
class AxisType:
    """The type of an axis: converts one value, as it was written or as the host counted it up from a range.

    It is equal to the type of the field's values, because the host writes out ranges for `int` and `float` alone.

    Raises:
        RivalError: The value has the wrong type.
    """

    field: Field

    @property
    def value_type(self) -> type:
        """The type of the field's values: bool, float, int or str."""
        return type(self.field.default)

    def __eq__(self, other: object) -> bool:
        return other is self.value_type

    def __hash__(self) -> int:
        return hash(self.value_type)

    def __call__(self, written: Any) -> Any:
        try:
            if self.value_type is bool:
                return {"true": True, "false": False}[str(written).strip().lower()]
            # the host adds up a range in floats, which leaves rounding errors
            return round(float(written), 6) if self.value_type is float else self.value_type(written)
        except (ValueError, KeyError):
            axis = axis_label(self.field)
            raise RivalError(f"the axis {axis} must be {self.field.expects}, not {short_repr(written)}.") from None


def _choices(field: Field) -> Callable[[], list[str]] | None:
    """What the host offers in a list. None makes it a field to write values in."""
    names = SWITCH_CHOICES if type(field.default) is bool else list(field.choices)
    return (lambda: names) if names else None


def _confirm(field: Field, validate: ValidateCell) -> Callable[[Any, Sequence[Any]], None]:
    """Make the function with which the host checks an axis before it makes the first cell.

    The function raises RivalError for no values at all, and for the first cell that cannot be honoured. The host calls
    it for one axis after the other, so the last call checks all combinations of RIVAL's axes.
    """

    def confirm(p: Any, values: Sequence[Any]) -> None:
        if not values:
            raise RivalError(f"the axis {axis_label(field)} has no values; give it some.")
        chosen = {**getattr(p, CHOSEN, {}), field.name: values}
        setattr(p, CHOSEN, chosen)
        for combination in product(*chosen.values()):
            validate(p, dict(zip(chosen, combination, strict=True)))

    return confirm


def _apply(field: Field) -> Callable[[Any, Any, Sequence[Any]], None]:
    """Make the function that sets the field for one cell. It also switches RIVAL on, unless another axis says no."""

    def apply(p: Any, value: Any, values: Sequence[Any]) -> None:
        cell = {"enabled": True, **cell_values(p), field.name: value}
        setattr(p, CELL, cell)
        _switch(p, cell["enabled"])
        # all cells share one object, so what this cell writes would stand in the next cell's infotext
        p.extra_generation_params = dict(p.extra_generation_params)

    return apply


def _switch(p: Any, enabled: bool) -> None:
    """Set the panel's switch, or the request's, in the arguments of this cell alone."""
    script = _rival_script(p)
    switch = p.script_args[script.args_from]
    args = list(p.script_args)
    args[script.args_from] = {**switch, "enabled": enabled} if isinstance(switch, Mapping) else enabled
    p.script_args = args


def _rival_script(p: Any) -> Any:
    return next(script for script in p.scripts.alwayson_scripts if script.title() == "RIVAL")
