"""The settings in an image's generation parameters (the infotext), and from there back into the panel.

An infotext holds the mode and the fields that differ from this mode's defaults. Pasting sets every other field to its
default in this mode. Older infotexts hold all fields and are read in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from rival_ext.errors import RivalError
from rival_ext.fields import INFOTEXT_FIELDS, Field
from rival_ext.settings import Settings, mode_defaults, parse_settings

REPORT = "RIVAL report"
HIRES_REPORT = "RIVAL hires report"

MODE = "RIVAL mode"
"""The parameter that every infotext of RIVAL has. It stands for the switch `enabled`."""

ReadPasted = Callable[[Mapping[str, str]], Any]
"""(pasted parameters) -> what a control is set to, or None to leave it as it is."""


def settings_to_infotext(settings: Settings) -> dict[str, Any]:
    """List what an infotext has to carry.

    Args:
        settings: The validated settings.

    Returns:
        By their names in the infotext: the mode, and the values that differ from this mode's defaults.
    """
    values, defaults = dict(settings), mode_defaults(settings.mode)
    differing = (field for field in INFOTEXT_FIELDS if values[field.name] != defaults[field.name])
    return {MODE: settings.mode} | {field.infotext: values[field.name] for field in differing}


def write_settings(settings: Settings, parameters: MutableMapping[str, Any]) -> None:
    """Write the settings into generation parameters, in place of those of an earlier batch.

    Args:
        settings: The validated settings.
        parameters: The generation parameters of a processing. The cells of an X/Y/Z plot may share one object.
    """
    written = settings_to_infotext(settings)
    for field in INFOTEXT_FIELDS:
        if field.infotext not in written:
            parameters.pop(field.infotext, None)
    parameters.update(written)


def clear_parameters(parameters: MutableMapping[str, Any]) -> None:
    """Remove everything of RIVAL from generation parameters, for a batch that RIVAL did not guide.

    Args:
        parameters: The generation parameters of a processing.
    """
    for name in (MODE, REPORT, HIRES_REPORT, *(field.infotext for field in INFOTEXT_FIELDS)):
        parameters.pop(name, None)


def _paste_target(field: Field) -> ReadPasted:
    def read(pasted: Mapping[str, str]) -> Any:
        if field.infotext in pasted:
            return _read_value(field, pasted[field.infotext])
        return mode_defaults(str(pasted[MODE]))[field.name] if MODE in pasted else None

    return read


def _read_value(field: Field, written: Any) -> Any:
    """Read a value in the field's own type, or None if the field cannot take it. Anybody may have written it."""
    value_type = type(field.default)
    try:
        # the host would take any text for true
        value = {"True": True, "False": False}[str(written)] if value_type is bool else value_type(str(written))
        return dict(parse_settings({field.name: value}))[field.name]
    except (RivalError, ValueError, KeyError):
        return None


PASTE_TARGETS: dict[str, ReadPasted] = {
    "enabled": lambda pasted: MODE in pasted,
    **{field.name: _paste_target(field) for field in INFOTEXT_FIELDS},
}
"""For each field what reads its value from pasted parameters. All tabs share these objects: by them the host finds a
control's counterpart in another tab when an image is sent there with its values."""
