"""Which of a sampler's noise levels a chain visits, and at which of them features are kept.

Features change slowly from level to level, and for a random start a chain between its nodes is good enough. So neither
the evaluations nor the memory of an inversion have to grow with the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from rival_ext.method.inversion import LARGE_RATIO
from rival_ext.settings import Settings
from rival_ext.written import NOISED, number_of

LITTLE_ABOVE = 1.35
"""A chain goes on straight up to this many times its highest noise level: from DDIM's first of 20 timesteps to the
highest level of all. With the straight end images are as near to the full form's as with an inversion of their own."""


class Nodes(NamedTuple):
    """The nodes of a run's chains.

    Attributes:
        levels: Their noise levels, `[N + 1]`, ascending.
        evaluated: The indices of the nodes at which the exemplar is evaluated.
        are_all: Whether the exemplar is evaluated at each level that the sampler visits.
        are_noised: Whether the chains are made without an inversion.
    """

    levels: Tensor
    evaluated: Sequence[int]
    are_all: bool
    are_noised: bool

    def lie_within(self, noise_levels: Tensor, evaluated: int) -> bool:
        """Tell whether another chain can stand for one with these nodes, if its levels need not be the same.

        Args:
            noise_levels: The levels of the other chain.
            evaluated: At how many of them the exemplar was evaluated.
        """
        is_high_enough = float(noise_levels[-1]) * LITTLE_ABOVE >= float(self.levels[-1])
        return is_high_enough and evaluated >= len(self.evaluated)


def nodes_of(settings: Settings, levels: Tensor, timesteps: Sequence[float], is_exact: bool) -> Nodes:
    """Choose the nodes of a run's chains.

    Args:
        settings: The validated settings.
        levels: The levels that the sampler visits and below them the clean latent's, `[N + 1]`, ascending.
        timesteps: The timestep of each of them.
        is_exact: Whether the exemplar must be evaluated at each of them.

    Returns:
        The nodes.
    """
    visited = len(levels) - 1
    if settings.chain == NOISED:
        seen = spread(number_of(settings.feature_nodes, visited), timesteps[1:])
        # a chain of one fixed noise is straight, so its ends are enough beside the evaluated nodes
        chosen = sorted({0, *seen, visited})
        return Nodes(levels[chosen], [chosen.index(node) for node in seen], False, True)
    number = visited if is_exact else number_of(settings.inversion_nodes, visited)
    evaluated = spread(number, timesteps[1:])
    if visited > 1 and float(levels[-1]) > LARGE_RATIO * max(float(levels[-2]), 1):
        # with zero terminal SNR the last step has to start from an evaluated node
        evaluated = sorted({*evaluated, visited - 1})
    return Nodes(levels, evaluated, len(evaluated) == visited, False)


def evenly(number: int, available: int) -> list[int]:
    """Choose some of the nodes 1 to `available`, evenly spread, the first and the last among them.

    Args:
        number: How many, from 0 to `available`. One alone lies in the middle.
        available: How many nodes there are.

    Returns:
        Ascending, each once.
    """
    if number == 1:
        return [(available + 1) // 2]
    return [1 + round(place * (available - 1) / (number - 1)) for place in range(number)]


def spread(number: int, timesteps: Sequence[float]) -> list[int]:
    """Choose some of the levels that a sampler visits, evenly in timesteps, the lowest and the highest among them.

    Evenly in the level or in its logarithm was tried and is worse.

    Args:
        number: How many, from 0 to the number of timesteps.
        timesteps: The timestep of each level, ascending.

    Returns:
        Their places from 1, ascending, each once.
    """
    if number < 2:
        return evenly(number, len(timesteps))
    lowest, highest = timesteps[0], timesteps[-1]
    chosen: list[int] = []
    for place in range(number):
        target = lowest + (highest - lowest) * place / (number - 1)
        # each once, and enough levels left for the others
        left = range(chosen[-1] + 1 if chosen else 0, len(timesteps) - (number - 1 - place))
        chosen.append(min(left, key=lambda index: abs(timesteps[index] - target)))
    return [index + 1 for index in chosen]
