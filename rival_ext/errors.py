"""What the user is told when a wish cannot be honoured, and which errors are a lack of memory."""

from __future__ import annotations

import math
import reprlib
from typing import Any

MEMORY_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "not enough gpu video memory",
    "alloc_failed",
)
"""What torch says when memory runs out on the CPU, on Apple's GPUs, in DirectML and in CUDA's libraries. Torch has an
error class of its own only for CUDA's allocator."""

LONGEST_REPR = 60
"""The most characters of a wrong value that an error sentence shows."""

MOST_BITS_WRITTEN = 128
"""A longer whole number is described by its number of digits: Python refuses to write very long ones."""


class RivalError(Exception):
    """One plain sentence for the user: what is wrong, in which field, and what to do about it.

    The WebUI's API answers with `status_code` and `detail`: the request is at fault, not the server.

    Args:
        sentence: The sentence, without the prefix "RIVAL: ".
    """

    def __init__(self, sentence: str):
        super().__init__(f"RIVAL: {sentence}")
        self.sentence = sentence
        self.status_code = 422
        self.detail = str(self)


class Interrupted(Exception):
    """The user stopped the run while an exemplar was being inverted."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on any device.

    Args:
        error: Any exception.

    Returns:
        True for Python's `MemoryError`, CUDA's out-of-memory error, and a `RuntimeError` whose text says so.
    """
    # imported late: the command line answers `--help` and bad input without torch
    import torch

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in MEMORY_WORDS)


def short_repr(value: Any) -> str:
    """Write a value that a user sent, short enough for one sentence.

    Args:
        value: Anything, of any length and depth.

    Returns:
        At most 60 characters.
    """
    text = _ShortRepr().repr(value)
    return text if len(text) <= LONGEST_REPR else text[: LONGEST_REPR - 3] + "..."


class _ShortRepr(reprlib.Repr):
    """A `repr` that is never long and never deep, whatever was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxlong = self.maxother = LONGEST_REPR

    def repr_int(self, x: int, level: int) -> str:
        """Describe a very long whole number by its number of digits."""
        if x.bit_length() <= MOST_BITS_WRITTEN:
            return super().repr_int(x, level)
        return f"a number of some {int(x.bit_length() * math.log10(2)) + 1} digits"
