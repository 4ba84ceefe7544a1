"""Chains kept between images: an inversion is paid once."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import RLock
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
    """One user's chains in memory, by key; the least recently used one of all users leaves first.

    Nobody finds, lists or gives back another's. user: None is whoever has not logged in. The page and the routes give
    chains back while a run of another thread looks one up: each method has the memory for itself meanwhile.
    """

    def __init__(self, user: str | None = None) -> None:
        self._user = user
        self._chains: OrderedDict[tuple[str | None, str], Kept] = OrderedDict()
        self._alone = RLock()

    def of(self, user: str | None) -> ChainStore:
        """Another user's, in the same memory."""
        store = ChainStore(user)
        store._chains, store._alone = self._chains, self._alone
        return store

    @property
    def bytes(self) -> int:
        """Memory that the kept chains hold."""
        return _bytes(self.kept)

    @property
    def kept(self) -> list[Kept]:
        """Everything in it, the least recently used first."""
        return [kept for _, kept in self._own()]

    def get(self, key: str) -> Chain | None:
        """The chain kept under the key, or None."""
        own = (self._user, key)
        with self._alone:
            if own not in self._chains:
                return None
            self._chains.move_to_end(own)
            return self._chains[own].chain

    def id_of(self, chain: Chain) -> str | None:
        """What this very chain is called outside, or None if it is not kept."""
        return next((kept.id for kept in self.kept if kept.chain is chain), None)

    def remove(self, id: str) -> bool:  # noqa: A002  what it is called everywhere
        """Gives the memory of one chain back; False if none has this id."""
        with self._alone:
            own = next((own for own, kept in self._own() if kept.id == id), None)
            return own is not None and self._chains.pop(own, None) is not None

    def make_room(self, size: int, budget: float) -> bool:
        """Lets the oldest chains, whosever, go until `size` more bytes fit into `budget`; False if they never will."""
        fits = size <= budget
        with self._alone:
            while self._chains and _bytes(self._chains.values()) + size * fits > budget:
                self._chains.popitem(last=False)
        return fits

    def put(self, key: str, chain: Chain, budget: float) -> None:
        """Keeps the chain, within `budget` bytes for all: the oldest make room; one that cannot fit is not kept."""
        own = (self._user, key)
        with self._alone:
            self._chains.pop(own, None)
            if self.make_room(chain.bytes, budget):
                self._chains[own] = Kept(chain)

    def clear(self) -> None:
        """Gives the memory of all of them back."""
        with self._alone:
            for own, _ in self._own():
                del self._chains[own]

    def clear_for_all(self) -> None:
        """Gives every user's memory back."""
        with self._alone:
            self._chains.clear()

    def _own(self) -> list[tuple[tuple[str | None, str], Kept]]:
        with self._alone:
            return [(own, kept) for own, kept in self._chains.items() if own[0] == self._user]


def _bytes(several: Iterable[Kept]) -> int:
    return sum(kept.chain.bytes for kept in several)


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
