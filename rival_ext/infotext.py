"""An image's generation parameters as the WebUI writes and reads them (the infotext), and the settings in them.

An infotext is the prompt, then a line `Negative prompt: ...` if there is one, then one line of parameters. Of the
settings it holds the mode and the fields that differ from this mode's defaults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from rival_ext.errors import RivalError
from rival_ext.fields import FIELD_BY_NAME, Field
from rival_ext.settings import Settings, changed_values, parse_settings

REPORT = "RIVAL report"
HIRES_REPORT = "RIVAL hires report"

MODE = "RIVAL mode"
"""The parameter that every infotext of RIVAL has. It stands for the switch `enabled`."""

NEGATIVE_PROMPT = "Negative prompt:"

PARAMETER = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""A name and its value, after the WebUI's own pattern."""

FEWEST_PARAMETERS = 3
"""A last line with fewer parameters belongs to the prompt."""


class Infotext(NamedTuple):
    """The parts of an infotext. The parameters are texts by their names, without the quotes around them."""

    prompt: str
    negative_prompt: str
    parameters: Mapping[str, str]


def write_infotext(prompt: str, parameters: Mapping[str, Any]) -> str:
    """Write an infotext.

    Args:
        prompt: The prompt.
        parameters: Values by name. None is left out.

    Returns:
        The text, as the WebUI puts it into a PNG.
    """
    written = (f"{name}: {_quoted(str(value))}" for name, value in parameters.items() if value is not None)
    return f"{prompt}\n{', '.join(written)}".strip()


def read_infotext(text: str) -> Infotext:
    """Read an infotext.

    Args:
        text: Any text.

    Returns:
        Its parts. The parameters are empty if the text has no line of parameters.
    """
    *lines, last = text.strip().split("\n")
    parameters = {name: _unquoted(value) for name, value in PARAMETER.findall(last)}
    if len(parameters) < FEWEST_PARAMETERS:
        lines, parameters = [*lines, last], {}
    begin = next((index for index, line in enumerate(lines) if line.startswith(NEGATIVE_PROMPT)), len(lines))
    negative = "\n".join(lines[begin:]).removeprefix(NEGATIVE_PROMPT).strip()
    return Infotext("\n".join(lines[:begin]).strip(), negative, parameters)


def settings_to_infotext(settings: Settings) -> dict[str, Any]:
    """List what an infotext has to carry.

    Args:
        settings: The validated settings.

    Returns:
        By their names in the infotext: the mode, and the values that differ from this mode's defaults.
    """
    changed = changed_values(settings)
    return {MODE: settings.mode} | {FIELD_BY_NAME[name].infotext: value for name, value in changed.items()}


def read_value(field: Field, written: Any) -> Any:
    """Read a field's value in its own type. Anybody may have written it.

    Args:
        field: The field.
        written: What an infotext holds for it.

    Returns:
        The value, or None if the field cannot take it.
    """
    value_type = type(field.default)
    try:
        # the host would take any text for true
        value = {"True": True, "False": False}[str(written)] if value_type is bool else value_type(str(written))
        return dict(parse_settings({field.name: value}))[field.name]
    except (RivalError, ValueError, KeyError):
        return None


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if re.search("[,\n:]", text) else text


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        return text
