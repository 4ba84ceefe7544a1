"""Chains kept between images: an inversion is paid once."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from rival_ext.chain import Chain


@dataclass(frozen=True)
class Kept:
    """A chain in the store.

    id: its name for people outside; random, since whoever has the image could compute the key.
    made: seconds since 1970.
    """

    chain: Chain
    id: str = field(default_factory=secrets.token_urlsafe)
    made: float = field(default_factory=time.time)


class Store(Protocol):
    """Where the chains of earlier runs are found, and this one's kept."""

    def get(self, key: str) -> Chain | None:
        """The chain kept under the key, or None."""

    def put(self, key: str, chain: Chain, budget: float) -> None:
        """Keeps the chain, if `budget` bytes of memory for all have room for it."""

    def make_room(self, size: int, budget: float) -> bool:
        """Whether `size` more bytes of memory can be had within the budget."""


class ChainStore:
    """Chains in memory by key, the least recently used one leaving first."""

    def __init__(self) -> None:
        self._chains: OrderedDict[str, Kept] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Memory that the kept chains hold."""
        return sum(kept.chain.bytes for kept in self.kept)

    @property
    def kept(self) -> list[Kept]:
        """Everything in it, the least recently used first."""
        return list(self._chains.values())

    def get(self, key: str) -> Chain | None:
        """The chain kept under the key, or None."""
        if key not in self._chains:
            return None
        self._chains.move_to_end(key)
        return self._chains[key].chain

    def id_of(self, chain: Chain) -> str | None:
        """What this very chain is called outside, or None if it is not kept."""
        return next((kept.id for kept in self.kept if kept.chain is chain), None)

    def remove(self, id: str) -> bool:  # noqa: A002  what it is called everywhere
        """Gives the memory of one chain back; False if none has this id."""
        key = next((key for key, kept in self._chains.items() if kept.id == id), None)
        return key is not None and self._chains.pop(key, None) is not None

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
            self._chains[key] = Kept(chain)

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
