"""The exemplar's keys and values: features projected by the layers themselves, once a node, and between two nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rival_ext.method.attention import Layers, suspended
from rival_ext.method.rows import KeysValues
from rival_ext.method.tokens import TokenSubset


class KeysValuesByLayer(Protocol):
    """The exemplar's keys and values in each layer that sees it."""

    def __contains__(self, name: str) -> bool: ...

    def of(self, name: str, like: Tensor) -> KeysValues:
        """Return a layer's keys and values of the exemplar.

        Args:
            name: The layer's name.
            like: A tensor of the device and the type that the layer computes with.

        Returns:
            The keys and values, `[1 or 2, tokens, channels]` each.
        """


class ProjectedFeatures:
    """The keys and values of some features (`KeysValuesByLayer`). A layer projects its own when it is first called.

    Args:
        features: The exemplar's features, `[1 or 2, tokens, channels]`.
        layers: The layers that project them.
    """

    def __init__(self, features: Mapping[str, Tensor], layers: Layers):
        self._features = features
        self._layers = layers
        self._projected: dict[str, KeysValues] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._features

    def of(self, name: str, like: Tensor) -> KeysValues:
        if name not in self._projected:
            # here and not before the step: a host short of memory brings a layer's weights only for its call
            with suspended():
                self._projected[name] = self._layers[name].project(self._features[name].to(like))
        return self._projected[name]


class BetweenNodes:
    """The keys and values between two nodes (`KeysValuesByLayer`), linear from one to the other.

    Args:
        lower: Those of the lower node.
        upper: Those of the upper node.
        place: From 0 (the lower) to 1 (the upper).
    """

    def __init__(self, lower: ProjectedFeatures, upper: ProjectedFeatures, place: float):
        self._lower = lower
        self._upper = upper
        self._place = place

    def __contains__(self, name: str) -> bool:
        return name in self._lower

    def of(self, name: str, like: Tensor) -> KeysValues:
        ends = zip(self._lower.of(name, like), self._upper.of(name, like), strict=True)
        return KeysValues(*(torch.lerp(lower, upper, self._place) for lower, upper in ends))


class JoinedExemplars:
    """The keys and values of several exemplars side by side (`KeysValuesByLayer`).

    Args:
        parts: Those of each exemplar.
    """

    def __init__(self, parts: Sequence[KeysValuesByLayer]):
        self._parts = parts

    def __contains__(self, name: str) -> bool:
        return name in self._parts[0]

    def of(self, name: str, like: Tensor) -> KeysValues:
        keys, values = zip(*(part.of(name, like) for part in self._parts), strict=True)
        return KeysValues(torch.cat(keys, dim=1), torch.cat(values, dim=1))


class ThinnedTokens:
    """The keys and values of a fraction of the tokens in the finest layers (`KeysValuesByLayer`).

    These layers take nearly all of the extra time, so the others keep all of their tokens.

    Args:
        whole: The keys and values of all tokens.
        subset: The fraction.
        finest: The names of the layers with the most tokens.
    """

    def __init__(self, whole: KeysValuesByLayer, subset: TokenSubset, finest: frozenset[str]):
        self._whole = whole
        self._subset = subset
        self._finest = finest

    def __contains__(self, name: str) -> bool:
        return name in self._whole

    def of(self, name: str, like: Tensor) -> KeysValues:
        whole = self._whole.of(name, like)
        return KeysValues(*map(self._subset.of, whole)) if name in self._finest else whole
