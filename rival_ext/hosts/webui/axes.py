"""The fields as axes of the WebUI's X/Y/Z plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rival_ext.errors import RivalError
from rival_ext.fields import FIELDS, INVERSION_FIELDS, Field
from rival_ext.settings import MASK_MISSING, parse_settings

SCRIPT = "xyz_grid.py"
"""The host's file of the plot, whose module it keeps among its scripts."""

CELL = "rival_cell"
"""The attribute of a cell's own processing that holds what its axes say."""

COST_OF_INVERSION = 0.3
"""The host changes the costliest axis least often: less often than a seed, more often than a VAE or a checkpoint."""

SWITCHED = ["True", "False"]


def add_axes() -> None:
    """Adds an axis for each field but the pictures to the host's plot, if it has one, and once."""
    # imported late: nothing else here needs the host
    from modules import scripts

    for plot in {data.module for data in scripts.scripts_data if Path(data.path).name == SCRIPT}:
        present = {option.label for option in plot.axis_options}
        plot.axis_options += [axis for axis in axes(plot.AxisOption) if axis.label not in present]


def axes(make: Callable[..., Any]) -> list[Any]:
    """The axes, in the panel's order; `make` is the host's class of them."""
    return [
        make(
            axis_label(field),
            AxisType(field),
            _apply(field),
            confirm=_confirm(field),
            cost=COST_OF_INVERSION if field.name in INVERSION_FIELDS else 0.0,
            choices=_choices(field),
        )
        for field in FIELDS
        if not field.is_image
    ]


def axis_label(field: Field) -> str:
    """An axis by its field's label; the switch, whose label is the panel's title, by its name."""
    return f"[RIVAL] {'Enabled' if field.name == 'enabled' else field.label}"


def cell_values(p: Any) -> Mapping[str, Any]:
    """By field, what the axes of a plot say for the cell that `p` makes; empty outside of a plot."""
    return getattr(p, CELL, {})


@dataclass(frozen=True, eq=False)
class AxisType:
    """The type of an axis: reads one value as it was written, or as the host counted it up from a range.

    It passes for the number's own type, for which alone the host writes out ranges. Raises RivalError.
    """

    field: Field

    @property
    def kind(self) -> type:
        """bool, float, int or str."""
        return type(self.field.default)

    def __eq__(self, other: object) -> bool:
        return other is self.kind

    def __hash__(self) -> int:
        return hash(self.kind)

    def __call__(self, written: Any) -> Any:
        try:
            if self.kind is bool:
                return {"true": True, "false": False}[str(written).strip().lower()]
            # what adds up a range leaves rounding errors
            return round(float(written), 6) if self.kind is float else self.kind(written)
        except (ValueError, KeyError):
            axis = axis_label(self.field)
            raise RivalError(f"the axis {axis} must be {self.field.expects}, not {written!r}.") from None


def _choices(field: Field) -> Callable[[], list[str]] | None:
    """What the host offers in a list; None lets the values be written."""
    names = SWITCHED if type(field.default) is bool else list(field.choices)
    return (lambda: names) if names else None


def _confirm(field: Field) -> Callable[[Any, Sequence[Any]], None]:
    """Before anything is made: raises RivalError for no values, and for the first that the field cannot take."""

    def confirm(p: Any, values: Sequence[Any]) -> None:
        if not values:
            raise RivalError(f"the axis {axis_label(field)} has no values; give it some.")
        for value in values:
            settings = parse_settings({field.name: value})
            # said now, since the host leaves a cell black that fails
            if settings.mode == "inpaint" and getattr(p, "image_mask", None) is None:
                raise RivalError(MASK_MISSING)

    return confirm


def _apply(field: Field) -> Callable[[Any, Any, Sequence[Any]], None]:
    """Sets the field for one cell, and switches RIVAL on there unless another axis says otherwise."""

    def apply(p: Any, value: Any, values: Sequence[Any]) -> None:
        cell = {"enabled": True, **cell_values(p), field.name: value}
        setattr(p, CELL, cell)
        _switch(p, cell["enabled"])
        # the cells share one: what this cell writes would be in the next one's
        p.extra_generation_params = dict(p.extra_generation_params)

    return apply


def _switch(p: Any, enabled: bool) -> None:
    """Sets the panel's switch, or the request's, in the arguments of this cell alone."""
    script = next(script for script in p.scripts.alwayson_scripts if script.title() == "RIVAL")
    switch = p.script_args[script.args_from]
    args = list(p.script_args)
    args[script.args_from] = {**switch, "enabled": enabled} if isinstance(switch, Mapping) else enabled
    p.script_args = args
