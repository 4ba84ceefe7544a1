"""Which cases the quick run takes: plain `pytest` leaves out what is marked `slow`."""

from __future__ import annotations

import pytest


def quick_first(values):
    """Parameters of which the quick run takes the first alone. The others are slow."""
    first, *others = values
    rows = [one if isinstance(one, tuple) else (one,) for one in others]
    return [first, *(pytest.param(*row, marks=pytest.mark.slow) for row in rows)]
