"""The settings in an image's generation parameters, and back into the panel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rival_ext.settings import PASTED, Settings

REPORT = "RIVAL report"
REPORT_OF_HIRES = "RIVAL hires report"
PRESENT = "RIVAL mode"


def settings_to_infotext(settings: Settings) -> dict[str, Any]:
    """What the infotext carries; a field that is empty is left out, since the host's format has no empty value."""
    values = dict(settings)
    return {field.infotext: values[field.name] for field in PASTED if values[field.name] != ""}


def _paste_targets() -> dict[str, Callable[[Mapping[str, str]], Any]]:
    def reader(name: str, default: Any) -> Callable[[Mapping[str, str]], Any]:
        def read(pasted: Mapping[str, str]) -> Any:
            value = pasted.get(name, default if PRESENT in pasted else None)
            # the host would take any text for true
            return value == "True" if isinstance(default, bool) and isinstance(value, str) else value

        return read

    targets: dict[str, Callable[[Mapping[str, str]], Any]] = {"enabled": lambda pasted: PRESENT in pasted}
    return targets | {field.name: reader(field.infotext, field.default) for field in PASTED}


PASTE_TARGETS = _paste_targets()
"""By field, what reads its value from pasted parameters; None leaves the control as it is. The same objects for all
tabs: by them the host finds one tab's control for another's, where an image is sent over with its values."""
