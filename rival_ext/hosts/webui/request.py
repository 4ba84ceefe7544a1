"""The settings of one request, parsed once and kept with the host's processing as long as that lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import DEFAULTS, FIELDS
from rival_ext.hosts.webui.axes import cell_values
from rival_ext.hosts.webui.compat import apply_controlnet_default
from rival_ext.hosts.webui.inputs import with_strokes
from rival_ext.settings import Settings, parse_settings, preset_values

ATTRIBUTE = "rival_request"
"""The attribute of a processing that holds its parsed request. The host drops it with the processing."""


@dataclass(frozen=True)
class ParsedRequest:
    """What a request asks of RIVAL.

    Attributes:
        args: The script's arguments that were parsed.
        cell: What the axes of an X/Y/Z plot said.
        outcome: The validated settings, or the error that the sampling has to raise.
    """

    args: tuple[Any, ...]
    cell: Mapping[str, Any]
    outcome: Settings | RivalError

    def is_of(self, args: Sequence[Any], cell: Mapping[str, Any]) -> bool:
        """Tell whether these very arguments were parsed. A plot copies one cell's processing for the next cell."""
        same = len(args) == len(self.args) and all(one is other for one, other in zip(args, self.args, strict=True))
        return same and cell == self.cell


def parsed_request(p: Any, args: Sequence[Any]) -> ParsedRequest:
    """Parse a request at its first batch, and return the same object at the later ones.

    Args:
        p: The host's processing.
        args: The script's arguments: one object with the fields' names, or the panel's values in its own order.

    Returns:
        The parsed request.
    """
    cell = cell_values(p)
    known: ParsedRequest | None = getattr(p, ATTRIBUTE, None)
    if known is not None and known.is_of(args, cell):
        return known
    try:
        outcome: Settings | RivalError = _read_arguments(p, args, cell)
    except RivalError as error:
        outcome = error.with_traceback(None)
    request = ParsedRequest(tuple(args), dict(cell), outcome)
    setattr(p, ATTRIBUTE, request)
    return request


def _read_arguments(p: Any, args: Sequence[Any], cell: Mapping[str, Any]) -> Settings:
    """What a plot's axes say comes first, then what these stand for, then the request's own values."""
    asked = {**preset_values(cell), **cell}
    values = dict(zip((field.name for field in FIELDS), args, strict=False))
    others = args[len(FIELDS) :]
    if args and isinstance(args[0], Mapping):
        asked = {**args[0], **asked}
        values = _values_beside_object(values, others)
    elif any(value and not isinstance(value, Image.Image) for value in others):
        raise RivalError(f"args must be at most {len(FIELDS)} values, one for each field; remove the others.")
    else:
        values = with_strokes(values, others)
    return apply_controlnet_default(p, parse_settings({**values, **asked}), asked)


def _values_beside_object(values: Mapping[str, Any], others: Sequence[Any]) -> dict[str, Any]:
    """What the host itself puts beside an object of settings: the values of the request's infotext, if it has one.

    Without an infotext these are the defaults of the controls. Anything else comes from the request.
    """
    beside = {name: value for name, value in values.items() if name != "enabled" and value not in (None, "")}
    if all(value == DEFAULTS[name] for name, value in beside.items()) and not any(others):
        return {}
    try:
        parse_settings(beside)
        wrong = [value for value in others if value]
    except RivalError:
        wrong = [value for name, value in beside.items() if value != DEFAULTS[name]]
    if wrong:
        raise RivalError(f"args must be one object with all settings and nothing after it, not {short_repr(wrong[0])}.")
    return beside
