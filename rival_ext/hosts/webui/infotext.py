"""The settings from the host's generation parameters into the panel, and into the parameters of a processing.

Pasting sets every field that an infotext does not hold to its default in the infotext's mode. Older infotexts hold all
fields and are read in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from rival_ext.fields import INFOTEXT_FIELDS, Field
from rival_ext.infotext import HIRES_REPORT, MODE, REPORT, read_value, settings_to_infotext
from rival_ext.settings import Settings, mode_defaults

ReadPasted = Callable[[Mapping[str, str]], Any]
"""(pasted parameters) -> what a control is set to, or None to leave it as it is."""


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
            return read_value(field, pasted[field.infotext])
        return mode_defaults(str(pasted[MODE]))[field.name] if MODE in pasted else None

    return read


PASTE_TARGETS: dict[str, ReadPasted] = {
    "enabled": lambda pasted: MODE in pasted,
    **{field.name: _paste_target(field) for field in INFOTEXT_FIELDS},
}
"""For each field what reads its value from pasted parameters. All tabs share these objects: by them the host finds a
control's counterpart in another tab when an image is sent there with its values."""
