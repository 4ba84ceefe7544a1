"""The settings of one request, parsed once and kept with the host's processing as long as that lives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import DEFAULTS, FIELD_BY_NAME, FIELDS
from rival_ext.hosts.webui.axes import cell_values, rival_arguments
from rival_ext.hosts.webui.inputs import with_strokes
from rival_ext.settings import Settings, implied_values, mode_defaults, mode_fields, parse_settings, preset_values

ATTRIBUTE = "rival_request"
"""The attribute of a processing that holds its parsed request. The host drops it with the processing."""


@dataclass(frozen=True)
class ParsedRequest:
    """What a request asks of RIVAL.

    Attributes:
        args: The script's arguments that were parsed.
        cell: What the axes of an X/Y/Z plot said.
        outcome: The validated settings, or the error that the sampling has to raise.
        given: The names of the fields that the request itself gives.
    """

    args: tuple[Any, ...]
    cell: Mapping[str, Any]
    outcome: Settings | RivalError
    given: frozenset[str]

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
    given: dict[str, Any] = {}
    try:
        given = _given_values(args, cell)
        outcome: Settings | RivalError = parse_settings({**_other_values(args, given), **given})
    except RivalError as error:
        outcome = error.with_traceback(None)
    request = ParsedRequest(tuple(args), dict(cell), outcome, frozenset(given))
    setattr(p, ATTRIBUTE, request)
    return request


def settings_of_cell(p: Any, cell: Mapping[str, Any]) -> Settings:
    """Parse what a request asks of RIVAL in one cell of a plot, without the exemplars.

    Args:
        p: The host's processing of the whole plot.
        cell: The values of RIVAL's axes in this cell, by field name.

    Returns:
        The validated settings.

    Raises:
        RivalError: A field is wrong.
    """
    args = rival_arguments(p)
    given = _given_values(args, {"enabled": True, **cell})
    values = {**_other_values(args, given), **given}
    return parse_settings({name: value for name, value in values.items() if not FIELD_BY_NAME[name].is_image})


def _is_object(args: Sequence[Any]) -> bool:
    """Whether the request gives its fields by name, in one object."""
    return bool(args) and isinstance(args[0], Mapping)


def _given_values(args: Sequence[Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """What a plot's axes say comes first, then what these stand for, then the fields of the request's own object."""
    asked = {**preset_values(cell), **cell}
    return {**args[0], **asked} if _is_object(args) else asked


def _other_values(args: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The panel's values. Beside the request's own object, those of the infotext that the request names as well.

    What the given fields stand for is left out, and so are the defaults of the infotext's mode if the request gives
    another mode.
    """
    values, surplus = dict(zip((field.name for field in FIELDS), args, strict=False)), args[len(FIELDS) :]
    if _is_object(args):
        said = _values_beside_object(values, surplus)
        usual = mode_defaults(said.get("mode", ""))
        of_mode = {name for name in mode_fields() & said.keys() if "mode" in given and said[name] == usual[name]}
        return {name: value for name, value in said.items() if name not in of_mode | implied_values(given).keys()}
    if any(value and not isinstance(value, Image.Image) for value in surplus):
        raise RivalError(f"args must be at most {len(FIELDS)} values, one for each field; remove the others.")
    return with_strokes(values, surplus)


def _values_beside_object(values: Mapping[str, Any], surplus: Sequence[Any]) -> dict[str, Any]:
    """What the host itself puts beside an object of settings: the values of the request's infotext, if it has one.

    Without an infotext these are the defaults of the controls. Anything else comes from the request.
    """
    beside = {name: value for name, value in values.items() if name != "enabled" and value not in (None, "")}
    if all(value == DEFAULTS[name] for name, value in beside.items()) and not any(surplus):
        return {}
    try:
        parse_settings(beside)
        wrong = [value for value in surplus if value]
    except RivalError:
        wrong = [value for name, value in beside.items() if value != DEFAULTS[name]]
    if wrong:
        raise RivalError(f"args must be one object with all settings and nothing after it, not {short_repr(wrong[0])}.")
    return beside
