"""Chains kept in memory between images, so that an inversion is paid once."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import RLock
from typing import NamedTuple

from rival_ext.method.chain import Chain
from rival_ext.method.store import Serves
from rival_ext.storage.features import FeatureTransfer


@dataclass(frozen=True)
class StoreEntry:
    """A chain in the store.

    Attributes:
        chain: The chain.
        id: The chain's name for people outside. It is random, because whoever has the image could compute the key.
        made: When the entry was made, in seconds since 1970.
    """

    chain: Chain
    id: str = field(default_factory=secrets.token_urlsafe)
    made: float = field(default_factory=time.time)


class EntryKey(NamedTuple):
    """Whose chain an entry holds, the chain's key, and which sampler's levels it visits."""

    user: str | None
    key: str
    visits: str


class NoStore(FeatureTransfer):
    """A store that keeps nothing between runs (`rival_ext.method.host.Store`)."""

    keeps_chains = False

    def get(self, key: str, serves: Serves) -> Chain | None:
        """Return None: no chain is ever kept."""
        return None

    def put(self, key: str, chain: Chain, budget: float) -> None:
        """Do nothing: the chain lives as long as its run."""

    def make_room(self, size: int, budget: float) -> bool:
        """Tell whether `size` bytes fit into `budget` bytes."""
        return size <= budget


class ChainStore(FeatureTransfer):
    """One user's chains in memory (`rival_ext.method.host.Store`). All users share the memory.

    When memory is short, the least recently used chain of all users leaves first. Nobody finds, lists or releases
    another user's chains. The page and the routes release chains while a run of another thread looks one up, so each
    method holds a lock.

    Args:
        user: Whose chains these are. None stands for everybody who has not logged in.
    """

    keeps_chains = True

    def __init__(self, user: str | None = None) -> None:
        self._user = user
        self._entries: OrderedDict[EntryKey, StoreEntry] = OrderedDict()
        self._lock = RLock()

    def of(self, user: str | None) -> ChainStore:
        """Return another user's store, in the same memory.

        Args:
            user: Whose chains these are.

        Returns:
            The store of that user.
        """
        store = ChainStore(user)
        store._entries, store._lock = self._entries, self._lock
        return store

    @property
    def bytes(self) -> int:
        """The memory that the user's chains hold, in bytes."""
        return _bytes(self.entries)

    @property
    def entries(self) -> list[StoreEntry]:
        """The user's chains, the least recently used first."""
        return [entry for _, entry in self._own_items()]

    def get(self, key: str, serves: Serves) -> Chain | None:
        """Look a chain up.

        Args:
            key: The chain's key.
            serves: Tells whether the run can use a chain with these levels.

        Returns:
            The chain used latest of those that serve, or None if the user has none.
        """
        with self._lock:
            for own_key, entry in reversed(self._own_items()):
                if own_key.key == key and serves(entry.chain.noise_levels, entry.chain.evaluated, entry.chain.visits):
                    self._entries.move_to_end(own_key)
                    return entry.chain
        return None

    def id_of(self, chain: Chain) -> str | None:
        """Return the id of the entry that holds this chain object, or None if no entry of the user does.

        Another chain with the same content, such as one made again under the same key, does not count.
        """
        return next((entry.id for entry in self.entries if entry.chain is chain), None)

    def remove(self, id: str) -> bool:  # noqa: A002  what it is called everywhere
        """Release the memory of one chain.

        Args:
            id: The id of the entry.

        Returns:
            False if the user has no chain with this id.
        """
        with self._lock:
            own_key = next((own_key for own_key, entry in self._own_items() if entry.id == id), None)
            return own_key is not None and self._entries.pop(own_key, None) is not None

    def make_room(self, size: int, budget: float) -> bool:
        """Release the oldest chains of all users until more bytes fit.

        Args:
            size: How many more bytes are needed.
            budget: How many bytes all chains together may take.

        Returns:
            False if `size` bytes never fit into the budget.
        """
        fits = size <= budget
        with self._lock:
            while self._entries and _bytes(self._entries.values()) + size * fits > budget:
                self._entries.popitem(last=False)
        return fits

    def put(self, key: str, chain: Chain, budget: float) -> None:
        """Keep a chain. The oldest chains of all users make room for it.

        Args:
            key: The chain's key.
            chain: The chain. It takes the place of one with the same key and the same `visits`.
            budget: How many bytes all chains together may take. A larger chain is not kept.
        """
        own_key = EntryKey(self._user, key, chain.visits)
        with self._lock:
            self._entries.pop(own_key, None)
            if self.make_room(chain.bytes, budget):
                self._entries[own_key] = StoreEntry(chain)

    def clear(self) -> None:
        """Release the memory of all the user's chains."""
        with self._lock:
            for own_key, _ in self._own_items():
                del self._entries[own_key]

    def clear_for_all(self) -> None:
        """Release the memory of every user's chains."""
        with self._lock:
            self._entries.clear()

    def _own_items(self) -> list[tuple[EntryKey, StoreEntry]]:
        with self._lock:
            return [(own_key, entry) for own_key, entry in self._entries.items() if own_key.user == self._user]


def _bytes(entries: Iterable[StoreEntry]) -> int:
    return sum(entry.chain.bytes for entry in entries)
