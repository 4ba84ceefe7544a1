"""What a store must give to the method: chains of earlier runs, and memory for features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rival_ext.method.attention import Features
from rival_ext.method.chain import Chain

Serves = Callable[[Tensor, int, str], bool]
"""(a chain's noise levels; at how many it was evaluated; its `visits`) -> whether a run can use the chain."""


class FeatureMemory(Protocol):
    """Memory for the features of one chain."""

    def keep(self, features: Features) -> Features:
        """Copy the features of the next node, in the form in which they are kept.

        Args:
            features: As recorded.

        Returns:
            The copies, `EightBits` if a value has 8 bits.
        """


class FeatureLoader(Protocol):
    """What brings kept features to the model's device during one run."""

    def load(self, current: Features, following: Features | None = None) -> Features:
        """Return a node's features on the device, in 16 bits, and start to bring the next node there.

        Args:
            current: A node's features, as they are kept or as recorded.
            following: The features that will be asked for next, if that is known.
        """


class Store(Protocol):
    """Where the chains of earlier runs are found and this run's are kept.

    Attributes:
        keeps_chains: False for a store that never finds anything.
    """

    keeps_chains: bool

    def get(self, key: str, serves: Serves) -> Chain | None:
        """Look up the chain of an earlier run. Several may have the same key, for other levels.

        Args:
            key: The chain's key (`chain_key`). It stands for all that changes an inversion but the levels.
            serves: Tells whether the run can use a chain with these levels.

        Returns:
            The latest chain that serves, or None if there is none.

        Raises:
            RivalError: The store holds the chain but cannot read it.
        """

    def put(self, key: str, chain: Chain, budget: float) -> None:
        """Keep a chain, if `budget` bytes of memory for all chains have room for it.

        It takes the place of a chain with the same key and the same `visits`.
        """

    def make_room(self, size: int, budget: float) -> bool:
        """Tell whether `size` more bytes of memory can be had within `budget` bytes. Older chains leave for them."""

    def reserve(self, features: Features, nodes: int, bits: int) -> FeatureMemory:
        """Get memory for the features of a chain.

        Args:
            features: The features of one node, as recorded.
            nodes: How many nodes will be kept.
            bits: How many bits a value is kept in, 16 or 8.
        """

    def loader(self, device: torch.device, chains: int = 1) -> FeatureLoader:
        """Make what brings kept features to a device during one run.

        Args:
            device: The model's device.
            chains: How many chains are loaded in turn.
        """
