"""Kept features on their way back: a node is on the model's device before it is needed."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

from rival_ext.method.attention import Features
from rival_ext.method.precision import dtype_of, of_stored, read_features, stored_tensors
from rival_ext.storage.layout import Layout, Tensors

PART_LEFT_FREE = 4
"""A fourth of a GPU's memory stays free for the model's activations and the VAE."""


class _Uploaded(NamedTuple):
    """A node on the device.

    Attributes:
        kept: The node in the CPU's memory. It must not go while the copy runs, nor may another node take its address.
        memory: `[bytes]`, what the node takes on the device.
        features: The node there, in the same form.
        arrival: What a reader waits for. None if the copy has been made.
    """

    kept: Features
    memory: Tensor
    features: Features
    arrival: torch.cuda.Event | None


class NodeLoader:
    """Brings the nodes of one run's chains to the model's device. All copies share one stream.

    A node that was uploaded stays on the device while there is room, else until `2 * chains` others were asked for
    after it. The features that a caller holds are valid as long as the caller holds them.

    Args:
        device: The model's device.
        chains: How many chains are loaded in turn.
    """

    def __init__(self, device: torch.device, chains: int = 1):
        self._device = device
        self._fewest = 2 * chains
        self._uploaded: OrderedDict[tuple[int, ...], _Uploaded] = OrderedDict()
        self._stream = copy_stream(device)
        self._room: int | None = None

    def load(self, current: Features, following: Features | None = None) -> Features:
        """Return a node's features on the device, and start to bring the next node there.

        Args:
            current: A node's features, as they are kept or as recorded on the device.
            following: The features that will be asked for next, if that is known.

        Returns:
            The features on the device, in 16 bits; `current` itself if it lies there and has them.
        """
        if self._is_there(current):
            return read_features(current)
        loaded = self._at(current)
        if following is not None and not self._is_there(following):
            self._at(following)
        self._drop_oldest()
        if loaded.arrival is not None:
            reader = torch.cuda.current_stream(self._device)
            reader.wait_event(loaded.arrival)
            loaded.memory.record_stream(reader)
        return read_features(loaded.features)

    def _is_there(self, features: Features) -> bool:
        # what lies on an accelerator was recorded on the model's
        return self._device.type == "cpu" or not features or next(iter(features.values())).device.type != "cpu"

    def _at(self, kept: Features) -> _Uploaded:
        """The node on the device. Its upload starts now if it is not there."""
        key = tuple(h.data_ptr() for h in kept.values())
        if key not in self._uploaded:
            self._uploaded[key] = self._upload(kept)
        self._uploaded.move_to_end(key)
        return self._uploaded[key]

    def _upload(self, kept: Features) -> _Uploaded:
        tensors = stored_tensors(kept)
        layout = Layout(tensors)
        # of the current stream's memory, so that the next node finds the place of one that was dropped
        memory = torch.empty(layout.bytes, dtype=torch.uint8, device=self._device)
        views = layout.views(memory)
        features = of_stored(views, dtype_of(kept))
        pairs = _copies(layout, tensors, memory, views)
        if self._stream is None:
            for there, here in pairs:
                there.copy_(here)
            return _Uploaded(kept, memory, features, None)
        # whoever used the place before is done when the current stream is
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for there, here in pairs:
                there.copy_(here, non_blocking=True)
        memory.record_stream(self._stream)
        return _Uploaded(kept, memory, features, self._stream.record_event())

    def _drop_oldest(self) -> None:
        if self._room is None:
            self._room = room_on(self._device)
        taken = sum(len(node.memory) for node in self._uploaded.values())
        while len(self._uploaded) > self._fewest and taken > self._room:
            taken -= len(self._uploaded.popitem(last=False)[1].memory)


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """Make a stream in which a GPU copies while it computes in another.

    Args:
        device: The model's device.

    Returns:
        None for a device that is no GPU of CUDA or ROCm.
    """
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def room_on(device: torch.device) -> int:
    """Say how many bytes of features may stay on a device: what is free beyond a fourth of its memory.

    Args:
        device: The device.

    Returns:
        0 for a device that is no GPU of CUDA or ROCm.
    """
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return max(0, free - total // PART_LEFT_FREE)


def _copies(layout: Layout, tensors: Tensors, memory: Tensor, views: Tensors) -> list[tuple[Tensor, Tensor]]:
    """The copies that bring a node to the device: one if it lies in one piece, else one a tensor."""
    in_one_piece = layout.memory_of(tensors)
    if in_one_piece is not None:
        return [(memory, in_one_piece)]
    return [(views[name], tensor) for name, tensor in tensors.items()]
