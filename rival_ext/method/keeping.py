"""Keeps what an inversion records at a few of its nodes, as many as the memory budget has room for."""

from __future__ import annotations

from collections.abc import Callable

from rival_ext.method.attention import Features
from rival_ext.method.nodes import evenly
from rival_ext.method.precision import kept_bytes
from rival_ext.method.store import FeatureMemory


class FeatureKeeper:
    """Chooses the nodes of one chain whose features are kept, and keeps them (`rival_ext.method.inversion`).

    Args:
        available: How many nodes are evaluated.
        wanted: At how many of them features are wanted.
        bits: How many bits a value is kept in, 16 or 8.
        reserve: Gets the memory for a number of nodes and these bits, from the features of one node.
        has_room: Tells whether so many bytes of features fit into the budget.
        tell_fewer: Told the number of nodes if it is smaller than wanted.
    """

    def __init__(
        self,
        available: int,
        wanted: int,
        bits: int,
        reserve: Callable[[Features, int, int], FeatureMemory],
        has_room: Callable[[int], bool],
        tell_fewer: Callable[[int], None],
    ):
        self.available = available
        self.wanted = wanted
        self.bits = bits
        self.nodes: list[int] = []
        """The nodes whose features are kept. They are known after the first evaluation."""
        self._reserve = reserve
        self._has_room = has_room
        self._tell_fewer = tell_fewer
        self._memory: FeatureMemory | None = None

    def __call__(self, node: int, features: Features) -> Features | None:
        """Return what the chain keeps of a node's features, or None for nothing.

        Args:
            node: Which of the evaluated nodes this is, from 1 and ascending.
            features: As recorded at the node.
        """
        if node == 1:
            self._choose(features)
        return self._memory.keep(features) if self._memory and node in self.nodes else None

    def _choose(self, features: Features) -> None:
        size = kept_bytes(features, self.bits)
        number = next((n for n in range(self.wanted, 0, -1) if self._has_room(n * size)), 0)
        self.nodes = evenly(number, self.available)
        if number < self.wanted:
            self._tell_fewer(number)
        if number:
            self._memory = self._reserve(features, number, self.bits)
