"""Recorded features on their way: into the CPU's memory in 16 bits, and back to the model's device ahead of use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from rival_ext.method.attention import Features


class FeatureTransfer:
    """How every store of this package keeps features (`rival_ext.method.host.Store`)."""

    def keep_features(self, features: Features) -> Features:
        """Copy features into the CPU's memory, in 16 bits.

        Args:
            features: As recorded, on the model's device.

        Returns:
            The copies, pinned if there is a GPU to copy to later.
        """
        pinned = torch.cuda.is_available()
        kept = {}
        for name, h in features.items():
            dtype = h.dtype if h.element_size() == 2 else torch.float16
            copy = h.to("cpu", dtype, copy=True)
            kept[name] = copy.pin_memory() if pinned else copy
        return kept

    def load_features(self, features: Features, device: torch.device) -> Mapping[str, Tensor]:
        """Return features whose copy to a device is made layer by layer.

        Args:
            features: What `keep_features` returned.
            device: The model's device.

        Returns:
            The features by layer, still in 16 bits. A layer's copy starts when the layer before it is asked
            for, so ask in network order. On the CPU nothing is copied.
        """
        return PrefetchedFeatures(features, device)


class PrefetchedFeatures(Mapping[str, Tensor]):
    """Features on a device. The copy of each layer's features starts while the layer before it computes.

    Layers must be asked for in network order, in which they were recorded.

    Args:
        features: What `FeatureTransfer.keep_features` returned.
        device: The model's device.
    """

    def __init__(self, features: Features, device: torch.device):
        self._features = features
        self._device = device
        self._following = dict(zip(features, list(features)[1:], strict=False))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._copied: Features = {}

    def __getitem__(self, name: str) -> Tensor:
        h = self._copied.pop(name) if name in self._copied else self._copy(name)
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            h.record_stream(current)
        if name in self._following:
            following = self._following[name]
            self._copied[following] = self._copy(following)
        return h

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def _copy(self, name: str) -> Tensor:
        if self._stream is None:
            return self._features[name].to(self._device)
        with torch.cuda.stream(self._stream):
            return self._features[name].to(self._device, non_blocking=True)
