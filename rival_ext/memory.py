"""Whether an error is a lack of memory, on whichever device."""

from __future__ import annotations

import torch

WORDS = ("out of memory", "not enough memory", "can't allocate memory", "not enough gpu video memory", "alloc_failed")
"""What torch says of a lack of memory on the CPU, Apple's GPUs, DirectML and in CUDA's libraries, where it has no class
for it."""


def is_lack_of_memory(error: BaseException) -> bool:
    """Python's own, CUDA's, or one that only its words tell."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in WORDS)
