"""Memory of the CPU that stays in its place ("pinned"), so that a GPU copies it while the CPU goes on."""

from __future__ import annotations

import contextlib
from typing import NamedTuple
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

PAGE = 4096
"""Bytes. CUDA locks whole pages, and refuses to lock one that is locked already."""

PORTABLE = 1
"""`cudaHostRegisterPortable`: the memory is locked for every GPU."""


class Reserved(NamedTuple):
    """A piece of the CPU's memory, `[bytes]`, uint8, and how many bytes are really taken for it."""

    memory: Tensor
    bytes: int


def reserve_memory(size: int, device: torch.device) -> Reserved:
    """Reserve memory for copies from and to a device.

    Args:
        size: How many bytes are needed.
        device: The device. For a GPU the memory is page-locked, else it is ordinary memory.

    Returns:
        The memory. It is free again when the last tensor that uses it is gone.

    Raises:
        MemoryError, RuntimeError: There is not enough memory.
    """
    if device.type != "cuda":
        return Reserved(torch.empty(size, dtype=torch.uint8), size)
    return _locked_exactly(size, device) or _locked_by_torch(size)


def _locked_exactly(size: int, device: torch.device) -> Reserved | None:
    """Lock the pages of an ordinary array. torch's own pinned memory is rounded up to a power of two, and torch keeps
    it when it is no longer used."""
    pages = -(-size // PAGE) * PAGE
    array = np.empty(pages + PAGE, dtype=np.uint8)
    start = -array.ctypes.data % PAGE
    with torch.cuda.device(device):
        refused = int(torch.cuda.cudart().cudaHostRegister(array.ctypes.data + start, pages, PORTABLE))  # type: ignore[no-untyped-call]
    if refused:
        _forget_error(device)
        return None
    # the memory of a tensor that is made from an array keeps the array, so the array goes after the last such tensor
    release = finalize(array, _unlock, array.ctypes.data + start, device)
    # at the end of the process CUDA may be gone already
    release.atexit = False
    return Reserved(torch.from_numpy(array[start : start + pages])[:size], pages)


def _locked_by_torch(size: int) -> Reserved:
    return Reserved(torch.empty(size, dtype=torch.uint8, pin_memory=True), 1 << (size - 1).bit_length())


def _unlock(address: int, device: torch.device) -> None:
    # a copy may still be on its way
    torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


def _forget_error(device: torch.device) -> None:
    """CUDA gives the error of a refused call once more to the next operation. Let an operation without effect have
    it."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
        torch.cuda.synchronize(device)
