"""The settings in an image's generation parameters, and back into the panel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rival_ext.errors import RivalError
from rival_ext.fields import INFOTEXT_FIELDS, Field
from rival_ext.settings import Settings, parse_settings

REPORT = "RIVAL report"
HIRES_REPORT = "RIVAL hires report"
MODE = "RIVAL mode"


def settings_to_infotext(settings: Settings) -> dict[str, Any]:
    """What the infotext carries; a field that is empty is left out, since the host's format has no empty value."""
    values = dict(settings)
    return {field.infotext: values[field.name] for field in INFOTEXT_FIELDS if values[field.name] != ""}


def _paste_targets() -> dict[str, Callable[[Mapping[str, str]], Any]]:
    def reader(field: Field) -> Callable[[Mapping[str, str]], Any]:
        def read(pasted: Mapping[str, str]) -> Any:
            if field.infotext in pasted:
                return _read(field, pasted[field.infotext])
            return field.default if MODE in pasted else None

        return read

    targets: dict[str, Callable[[Mapping[str, str]], Any]] = {"enabled": lambda pasted: MODE in pasted}
    return targets | {field.name: reader(field) for field in INFOTEXT_FIELDS}


def _read(field: Field, written: Any) -> Any:
    """The value in the field's own type, or None for what the field cannot take: anybody may have written it."""
    kind = type(field.default)
    try:
        # the host would take any text for true
        value = {"True": True, "False": False}[str(written)] if kind is bool else kind(str(written))
        return dict(parse_settings({field.name: value}))[field.name]
    except (RivalError, ValueError, KeyError):
        return None


PASTE_TARGETS = _paste_targets()
"""By field, what reads its value from pasted parameters; None leaves the control as it is. The same objects for all
tabs: by them the host finds one tab's control for another's, where an image is sent over with its values."""
