"""Settings that can be written in several ways, as a number, a list or a text. `Settings` keeps them as one text.

And what such a text means for a run. The panel reads it too, so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from rival_ext.fields import FEWEST_NODES, MOST_NODES

ALL = "all"
"""The value of `inversion_nodes` and of `feature_nodes` that leaves no level out."""

NOISED = "noised"
"""The value of `chain` for a chain without an inversion."""

EXACT_MODES = ("edit", "inpaint")
"""The modes in which a part of the images comes from the chain itself."""

MOST_SIZES = 16
"""The most token sizes in `layers`. No checkpoint has as many."""

LARGEST_SIZE = 9999
"""The largest token size in `layers`, in pixels."""

LONGEST_NUMBER = 20
"""The most characters of a number of nodes, with blanks around it."""


def written_layers(value: Any) -> str:
    """Write `layers`: "all", "fine", "coarse", or sizes with commas between them.

    Args:
        value: What a request gives.

    Returns:
        The text, empty if the value is none of these.
    """
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not 0 < len(parts) <= MOST_SIZES:
        return ""
    written = [_written_size(part) for part in parts]
    is_preset = written in (["all"], ["fine"], ["coarse"])
    return ",".join(written) if is_preset or all(part.isdecimal() for part in written) else ""


def written_nodes(fewest: int, value: Any) -> str:
    """Write a number of nodes: "all", or its digits.

    Args:
        fewest: The smallest number.
        value: What a request gives.

    Returns:
        The text, empty if the value is neither.
    """
    text = str(value) if type(value) is int and 0 <= value <= MOST_NODES else value
    text = text.strip().lower() if isinstance(text, str) and len(text) <= LONGEST_NUMBER else ""
    if text == ALL:
        return text
    return str(int(text)) if text.isascii() and text.isdecimal() and fewest <= int(text) <= MOST_NODES else ""


def number_of(nodes: str, available: int) -> int:
    """Read a number of nodes as the settings hold it.

    Args:
        nodes: "all" or a whole number in digits.
        available: How many nodes there are.

    Returns:
        At most `available`.
    """
    return available if nodes == ALL else min(int(nodes), available)


def needs_each_level(mode: str, start_mix: float, inversion_nodes: str) -> bool:
    """Tell whether an exemplar has to be evaluated at each level that the sampler visits.

    It has to where a part of the images comes from the chain itself, and not from random noise with its statistics.

    Args:
        mode: The mode.
        start_mix: The field of that name.
        inversion_nodes: The field of that name.
    """
    return mode in EXACT_MODES or start_mix < 1 or inversion_nodes == ALL


def _written_size(part: Any) -> str:
    """One part of `layers` as text. It is empty for what can be neither a size nor a name."""
    if type(part) is int and 0 <= part <= LARGEST_SIZE:
        return str(part)
    text = part.strip() if isinstance(part, str) else ""
    return text if len(text) <= len(str(LARGEST_SIZE)) or not text.isdecimal() else ""


WRITTEN: Mapping[str, Callable[[Any], str]] = {
    "layers": written_layers,
    **{name: partial(written_nodes, fewest) for name, fewest in FEWEST_NODES.items()},
}
"""What writes each of these fields."""
