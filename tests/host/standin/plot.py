"""The host's X/Y/Z plot: its axes, and one processing for each cell."""

from __future__ import annotations

import traceback
from copy import copy
from types import ModuleType, SimpleNamespace

from tests.host.standin import processing

OPTIONS = []
"""The axes."""

SCRIPT = SimpleNamespace(filename="scripts/xyz_grid.py", title=lambda: "X/Y/Z plot")
"""The script, as a user chooses it from the host's list."""


class AxisOption:
    """One axis: `type` reads a value as it is written, `apply` sets it for a cell."""

    def __init__(self, label, kind, apply, confirm=None, cost=0.0, choices=None):
        self.label, self.type, self.apply = label, kind, apply
        self.confirm, self.cost, self.choices = confirm, cost, choices

    def read(self, p, written):
        values = [self.type(value) for value in written.split(",")]
        if self.confirm:
            self.confirm(p, values)
        return values


def loaded_scripts():
    """Make the host's list of loaded scripts, one entry for each class. The plot has no axis of an extension yet."""
    module = ModuleType("xyz_grid.py")
    OPTIONS[:] = [
        AxisOption("Seed", int, lambda p, value, values: setattr(p, "seed", value)),
        AxisOption("Var. strength", float, lambda p, value, values: setattr(p, "subseed_strength", value)),
    ]
    module.AxisOption, module.axis_options = AxisOption, OPTIONS
    return [
        loaded(type("Script", (), {}), "loopback.py", ModuleType("loopback.py")),
        *(loaded(type(name, (), {}), "xyz_grid.py", module) for name in ("SharedSettingsStackHelper", "Script")),
    ]


def loaded(script_class, file, module, basedir="webui"):
    """Make one entry of the host's list of loaded scripts."""
    return SimpleNamespace(script_class=script_class, path=f"scripts/{file}", basedir=basedir, module=module)


def process_plot(p, axes):
    """Make the cells as `process_images` makes images. A cell that raises an error is left out."""
    images, infotexts = [], []
    (x, xs), (y, ys) = [(axis, axis.read(p, written)) for axis, written in map(_found, axes)]
    for y_value in ys:
        for x_value in xs:
            cell = copy(p)
            x.apply(cell, x_value, xs)
            y.apply(cell, y_value, ys)
            try:
                of_cell = processing.process_images(cell)
            except Exception:
                traceback.print_exc()
            else:
                images += of_cell.images[:1]
                infotexts += of_cell.infotexts[:1]
    return SimpleNamespace(images=images, infotexts=infotexts)


def _found(axis):
    label, written = axis
    return next(option for option in OPTIONS if option.label == label), written
