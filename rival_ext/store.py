"""Chains kept between images: an inversion is paid once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from torch import Tensor

from rival_ext.chain import Chain


class ChainStore:
    """Chains in memory by key, the least recently used one leaving first."""

    def __init__(self) -> None:
        self._chains: OrderedDict[str, Chain] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory that the kept chains hold."""
        return sum(chain.bytes for chain in self._chains.values())

    def get(self, key: str) -> Chain | None:
        """The chain kept under the key, or None."""
        if key in self._chains:
            self._chains.move_to_end(key)
        return self._chains.get(key)

    def make_room(self, size: int, budget: float) -> bool:
        """Lets the oldest chains go until `size` more bytes fit into `budget`; False if they never will."""
        fits = size <= budget
        while self._chains and self.bytes + size * fits > budget:
            self._chains.popitem(last=False)
        return fits

    def put(self, key: str, chain: Chain, budget: float) -> None:
        """Keeps the chain, within `budget` bytes for all: the oldest make room; one that cannot fit is not kept."""
        self._chains.pop(key, None)
        if self.make_room(chain.bytes, budget):
            self._chains[key] = chain

    def clear(self) -> None:
        """Gives all memory back."""
        self._chains.clear()


def digest(parts: Iterable[Tensor | object]) -> str:
    """One key of tensors, by their bytes, and of other values, by their `repr`."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().flatten().double().numpy().tobytes())
        else:
            sha.update(repr(part).encode())
        sha.update(b"\x00")
    return sha.hexdigest()
