"""How the tensors of one node lie in one contiguous piece of memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes. Each tensor starts at a multiple of it, as torch's own tensors do."""

Tensors = dict[str, Tensor]
"""The tensors of one node (`rival_ext.method.precision.stored_tensors`)."""


class _Piece(NamedTuple):
    """One tensor: where it starts, in bytes, and what it is."""

    start: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def end(self) -> int:
        return self.start + self.dtype.itemsize * math.prod(self.shape)


class Layout:
    """Where each tensor of a node lies.

    Args:
        tensors: The tensors of one node. Those of another node fit too if they have the same names, shapes and types.
    """

    def __init__(self, tensors: Tensors):
        self._pieces: dict[str, _Piece] = {}
        end = 0
        for name, tensor in tensors.items():
            piece = _Piece(_aligned(end), tensor.dtype, tensor.shape)
            self._pieces[name] = piece
            end = piece.end
        self.bytes = end
        """How many bytes the tensors of a node take."""
        self.stride = _aligned(end)
        """How many bytes lie between the start of one node and that of the next."""

    def fits(self, tensors: Tensors) -> bool:
        """Tell whether tensors have the names, shapes and types of this layout."""
        return list(tensors) == list(self._pieces) and all(
            (tensor.shape, tensor.dtype) == (piece.shape, piece.dtype)
            for tensor, piece in zip(tensors.values(), self._pieces.values(), strict=True)
        )

    def views(self, memory: Tensor) -> Tensors:
        """Read memory as tensors.

        Args:
            memory: `[self.bytes or more]`, uint8.

        Returns:
            By name a tensor that shares the memory.
        """
        return {
            name: memory[piece.start : piece.end].view(piece.dtype).view(piece.shape)
            for name, piece in self._pieces.items()
        }

    def memory_of(self, tensors: Tensors) -> Tensor | None:
        """Find the one piece of memory in which tensors lie in this layout.

        Args:
            tensors: Tensors that fit.

        Returns:
            `[self.bytes]`, uint8, which shares their memory; None if they lie otherwise.
        """
        first = next(iter(tensors.values()))
        storage = first.untyped_storage()
        for tensor, piece in zip(tensors.values(), self._pieces.values(), strict=True):
            is_here = tensor.untyped_storage().data_ptr() == storage.data_ptr()
            if not (is_here and tensor.is_contiguous() and tensor.data_ptr() - first.data_ptr() == piece.start):
                return None
        start = first.data_ptr() - storage.data_ptr()
        return torch.empty(0, dtype=torch.uint8, device=first.device).set_(storage, start, (self.bytes,), (1,))


def _aligned(start: int) -> int:
    return -(-start // ALIGNMENT) * ALIGNMENT
