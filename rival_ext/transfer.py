"""Recorded features on their way from the CPU's memory to the model's device, ahead of use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rival_ext.attention import Features


def to_sixteen_bits(features: Features) -> Features:
    """Copies in the CPU's memory, in 16 bits, pinned where there is a GPU to copy to later."""
    pinned = torch.cuda.is_available()
    kept = {}
    for name, h in features.items():
        dtype = h.dtype if h.element_size() == 2 else torch.float16
        copy = h.to("cpu", dtype, copy=True)
        kept[name] = copy.pin_memory() if pinned else copy
    return kept


class Ahead(Mapping[str, Tensor]):
    """Features on a device, where each layer's copy is started while the layer before it computes.

    Layers are asked for in network order, as they were recorded; on the CPU nothing is copied.
    """

    def __init__(self, features: Features, device: torch.device):
        self._features = features
        self._device = device
        self._following = dict(zip(features, list(features)[1:], strict=False))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._moved: Features = {}

    def __getitem__(self, name: str) -> Tensor:
        h = self._moved.pop(name) if name in self._moved else self._move(name)
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            h.record_stream(current)
        if name in self._following:
            following = self._following[name]
            self._moved[following] = self._move(following)
        return h

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def _move(self, name: str) -> Tensor:
        if self._stream is None:
            return self._features[name].to(self._device)
        with torch.cuda.stream(self._stream):
            return self._features[name].to(self._device, non_blocking=True)
