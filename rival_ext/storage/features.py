"""Recorded features on their way: into the CPU's memory in 16 bits, and back to the model's device ahead of use."""

from __future__ import annotations

import torch

from rival_ext.method.attention import Features
from rival_ext.storage.layout import Layout, kept_dtype
from rival_ext.storage.loading import NodeLoader, copy_stream
from rival_ext.storage.page_locked import reserve_memory


class FeatureArena:
    """One piece of the CPU's memory for the features of all nodes of a chain (`rival_ext.method.host.FeatureMemory`).

    It is page-locked if the features come from a GPU, and as large as the nodes need in 16 bits.

    Args:
        features: The features of one node, as recorded.
        nodes: How many nodes will be kept.
    """

    def __init__(self, features: Features, nodes: int):
        self._device = next(iter(features.values())).device
        self._layout = Layout(features)
        self._nodes = nodes
        self._kept = 0
        self._memory, self.bytes = reserve_memory(nodes * self._layout.stride, self._device)
        self._stream = copy_stream(self._device)
        self._arrival: torch.cuda.Event | None = None

    def keep(self, features: Features) -> Features:
        """Copy the features of the next node, in 16 bits.

        From a GPU the copy runs beside what the GPU computes next. It has arrived when `keep` is called again, after
        the last reserved node when `keep` returns, else after `wait`.

        Args:
            features: As recorded, on the device of the first ones.

        Returns:
            The copies, by layer. If another extension has changed a layer's number of tokens since the memory was
            reserved, they lie outside of it and count in `bytes` on top.

        Raises:
            IndexError: More nodes are kept than were reserved.
        """
        if self._kept == self._nodes:
            raise IndexError(f"memory was reserved for {self._nodes} nodes, and another one is to be kept")
        start = self._kept * self._layout.stride
        self._kept += 1
        self.wait()
        if not self._layout.fits(features):
            return self._kept_apart(features)
        copies = self._layout.views(self._memory[start : start + self._layout.bytes])
        if self._stream is None:
            for name, h in features.items():
                copies[name].copy_(h)
            return copies
        self._arrival = self._start_copying(features, copies, self._stream)
        if self._kept == self._nodes:
            self.wait()
        return copies

    def wait(self) -> None:
        """Wait until all features that were kept have arrived."""
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None

    def _start_copying(self, features: Features, copies: Features, stream: torch.cuda.Stream) -> torch.cuda.Event:
        # converted on the current stream, so that the other one takes no memory of the device
        sources = {name: h.to(copies[name].dtype).contiguous() for name, h in features.items()}
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for name, source in sources.items():
                copies[name].copy_(source, non_blocking=True)
                # the memory of what was recorded is not used for anything else before it is copied
                source.record_stream(stream)
        return stream.record_event()  # type: ignore[no-any-return]

    def _kept_apart(self, features: Features) -> Features:
        copies = {name: h.to("cpu", kept_dtype(h), copy=True) for name, h in features.items()}
        self.bytes += sum(copy.numel() * copy.element_size() for copy in copies.values())
        return copies


class FeatureTransfer:
    """How every store of this package keeps features (`rival_ext.method.host.Store`)."""

    def reserve(self, features: Features, nodes: int) -> FeatureArena:
        """Reserve memory for the features of a chain.

        Args:
            features: The features of one node, as recorded, on the model's device.
            nodes: How many nodes of the chain will be kept.

        Returns:
            The memory.

        Raises:
            MemoryError, RuntimeError: There is not enough memory.
        """
        return FeatureArena(features, nodes)

    def loader(self, device: torch.device, chains: int = 1) -> NodeLoader:
        """Make what brings kept features to a device during one run.

        Args:
            device: The model's device.
            chains: How many chains are loaded in turn.

        Returns:
            The loader.
        """
        return NodeLoader(device, chains)
