"""Recorded features on their way: into the CPU's memory, and back to the model's device ahead of use."""

from __future__ import annotations

import torch

from rival_ext.method.attention import Features
from rival_ext.method.precision import dtype_of, kept_form, of_stored, stored_tensors
from rival_ext.storage.layout import Layout, Tensors
from rival_ext.storage.loading import NodeLoader, copy_stream
from rival_ext.storage.page_locked import reserve_memory


class FeatureArena:
    """One piece of the CPU's memory for the features of all nodes of a chain (`rival_ext.method.store.FeatureMemory`).

    It is page-locked if the features come from a GPU, and as large as the nodes need.

    Args:
        features: The features of one node, as recorded.
        nodes: How many nodes will be kept.
        bits: How many bits a value is kept in, 16 or 8.
    """

    def __init__(self, features: Features, nodes: int, bits: int):
        self._device = next(iter(features.values())).device
        self._bits = bits
        self._layout = Layout(stored_tensors(kept_form(features, bits)))
        self._nodes = nodes
        self._kept = 0
        self._memory, self.bytes = reserve_memory(nodes * self._layout.stride, self._device)
        self._stream = copy_stream(self._device)
        self._arrival: torch.cuda.Event | None = None

    def keep(self, features: Features) -> Features:
        """Copy the features of the next node, in the form in which they are kept.

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
        form = kept_form(features, self._bits)
        return of_stored(self._copied(stored_tensors(form), start), dtype_of(form))

    def wait(self) -> None:
        """Wait until all features that were kept have arrived."""
        if self._arrival is not None:
            self._arrival.synchronize()
            self._arrival = None

    def _copied(self, tensors: Tensors, start: int) -> Tensors:
        if not self._layout.fits(tensors):
            apart = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
            self.bytes += sum(tensor.nbytes for tensor in apart.values())
            return apart
        copies = self._layout.views(self._memory[start : start + self._layout.bytes])
        if self._stream is None:
            for name, tensor in tensors.items():
                copies[name].copy_(tensor)
            return copies
        self._arrival = self._start_copying(tensors, copies, self._stream)
        if self._kept == self._nodes:
            self.wait()
        return copies

    def _start_copying(self, tensors: Tensors, copies: Tensors, stream: torch.cuda.Stream) -> torch.cuda.Event:
        # made contiguous on the current stream, so that the other one takes no memory of the device
        sources = {name: tensor.contiguous() for name, tensor in tensors.items()}
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for name, source in sources.items():
                copies[name].copy_(source, non_blocking=True)
                # the memory of what was recorded is not used for anything else before it is copied
                source.record_stream(stream)
        return stream.record_event()  # type: ignore[no-any-return]


class FeatureTransfer:
    """How every store of this package keeps features (`rival_ext.method.store.Store`)."""

    def reserve(self, features: Features, nodes: int, bits: int) -> FeatureArena:
        """Reserve memory for the features of a chain.

        Args:
            features: The features of one node, as recorded, on the model's device.
            nodes: How many nodes of the chain will be kept.
            bits: How many bits a value is kept in, 16 or 8.

        Returns:
            The memory.

        Raises:
            MemoryError, RuntimeError: There is not enough memory.
        """
        return FeatureArena(features, nodes, bits)

    def loader(self, device: torch.device, chains: int = 1) -> NodeLoader:
        """Make what brings kept features to a device during one run.

        Args:
            device: The model's device.
            chains: How many chains are loaded in turn.

        Returns:
            The loader.
        """
        return NodeLoader(device, chains)
