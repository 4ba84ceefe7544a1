"""The cases of the quick run: plain `pytest` leaves out the cases that are marked `slow`."""

from __future__ import annotations

import pytest


def quick_first(values):
    """Mark all parameters but the first as slow, so that the quick run takes the first only."""
    first, *others = values
    rows = [one if isinstance(one, tuple) else (one,) for one in others]
    return [first, *(pytest.param(*row, marks=pytest.mark.slow) for row in rows)]
