"""How the features of one node lie in one contiguous piece of memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rival_ext.method.attention import Features

ALIGNMENT = 64
"""Bytes. Each layer's features start at a multiple of it, as torch's own tensors do."""


class _Piece(NamedTuple):
    """The features of one layer: where they start, in bytes, and what they are."""

    start: int
    dtype: torch.dtype
    shape: torch.Size

    @property
    def end(self) -> int:
        return self.start + self.dtype.itemsize * math.prod(self.shape)


class Layout:
    """Where the features of each layer lie, in 16 bits, in network order.

    Args:
        features: The features of one node. Those of another node fit too if they have the same layers and shapes.
    """

    def __init__(self, features: Features):
        self._pieces: dict[str, _Piece] = {}
        end = 0
        for name, h in features.items():
            piece = _Piece(_aligned(end), kept_dtype(h), h.shape)
            self._pieces[name] = piece
            end = piece.end
        self.bytes = end
        """How many bytes the features of a node take."""
        self.stride = _aligned(end)
        """How many bytes lie between the features of one node and those of the next."""

    def fits(self, features: Features) -> bool:
        """Tell whether features have the layers, shapes and types of this layout."""
        return list(features) == list(self._pieces) and all(
            (h.shape, kept_dtype(h)) == (piece.shape, piece.dtype)
            for h, piece in zip(features.values(), self._pieces.values(), strict=True)
        )

    def views(self, memory: Tensor) -> Features:
        """Read memory as features.

        Args:
            memory: `[self.bytes or more]`, uint8.

        Returns:
            By layer a tensor that shares the memory.
        """
        return {
            name: memory[piece.start : piece.end].view(piece.dtype).view(piece.shape)
            for name, piece in self._pieces.items()
        }

    def memory_of(self, features: Features) -> Tensor | None:
        """Find the one piece of memory in which features lie in this layout.

        Args:
            features: Features that fit.

        Returns:
            `[self.bytes]`, uint8, which shares their memory; None if they lie otherwise.
        """
        first = next(iter(features.values()))
        storage = first.untyped_storage()
        for h, piece in zip(features.values(), self._pieces.values(), strict=True):
            is_here = h.untyped_storage().data_ptr() == storage.data_ptr() and h.dtype == piece.dtype
            if not (is_here and h.is_contiguous() and h.data_ptr() - first.data_ptr() == piece.start):
                return None
        start = first.data_ptr() - storage.data_ptr()
        return torch.empty(0, dtype=torch.uint8, device=first.device).set_(storage, start, (self.bytes,), (1,))


def kept_dtype(h: Tensor) -> torch.dtype:
    """Say in which type features are kept: their own one if it has 16 bits, else half precision."""
    return h.dtype if h.element_size() == 2 else torch.float16


def _aligned(start: int) -> int:
    return -(-start // ALIGNMENT) * ALIGNMENT
