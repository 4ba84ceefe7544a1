"""Cross-image self-attention injection (paper section 3.2): the exemplar's keys and values in a layer's own attention.

Keys and values are the layer's own projections of a context. A projection of joined tokens is the joined projections,
so the exemplar's tokens are projected once and then stand in the place of the layer's own keys and values, or beside
them. That is a longer context and no new attention.

    with inject(layers, features, concatenate) as seen:  # one evaluation of the generation
        predict_noise(latent, sigma)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rival_ext.method.attention import Attend, LayerCall, Layers, attending
from rival_ext.method.projected import KeysValuesByLayer, ProjectedFeatures
from rival_ext.method.rows import BOTH, Attended, JoinTokens


def replace(own: Tensor, exemplar: Tensor) -> Tensor:
    """Return the exemplar's tokens alone: `K, V = W_k h_R, W_v h_R` (above t_align).

    Args:
        own: The generation's keys or values, `[rows, tokens, channels]`.
        exemplar: The exemplar's, `[rows, exemplar tokens, channels]`.

    Returns:
        `exemplar`.
    """
    return exemplar


def concatenate(own: Tensor, exemplar: Tensor) -> Tensor:
    """Return both tokens: `K, V = W_k [h_G, h_R], W_v [h_G, h_R]` (at t_align and below).

    Args:
        own: The generation's keys or values, `[rows, tokens, channels]`.
        exemplar: The exemplar's, `[rows, exemplar tokens, channels]`.

    Returns:
        `[rows, tokens + exemplar tokens, channels]`.
    """
    return torch.cat([own, exemplar], dim=1)


class InjectedStep(NamedTuple):
    """What the layers see in one step.

    Attributes:
        exemplar: The exemplar's keys and values.
        join: `replace`, `concatenate`, or another `JoinTokens`.
        cond_or_uncond: As in `inject`.
        strength: As in `inject`.
        seeing: As in `inject`.
        rows_done: For each layer how many rows of this step it has evaluated.
        seen: The names of the layers that have seen the exemplar.
    """

    exemplar: KeysValuesByLayer
    join: JoinTokens
    cond_or_uncond: Sequence[int]
    strength: float
    seeing: frozenset[int]
    rows_done: dict[str, int]
    seen: set[str]

    def attended(self, name: str, call: LayerCall) -> Attended | None:
        """Return what a layer attends to in a call, or None if it sees no exemplar in it."""
        done = self.rows_done.get(name, 0)
        self.rows_done[name] = done + len(call.context)
        marks = self.cond_or_uncond[done : self.rows_done[name]] if call.cond_or_uncond is None else call.cond_or_uncond
        if name not in self.exemplar or (marks and self.seeing.isdisjoint(marks)):
            return None
        exemplar, saw = self.exemplar.of(name, call.context), partial(self.seen.add, name)
        return Attended(exemplar, self.join, call.own_tokens, marks, self.seeing, self.strength, saw)


class Injection:
    """Lets a UNet's layers see the exemplar, step by step. Its hooks are installed once for all steps of a run.

    Args:
        layers: The UNet's self-attention layers.
    """

    def __init__(self, layers: Layers):
        self._layers = layers
        self._step: InjectedStep | None = None
        self._is_installed = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Install the hooks while the context manager is open. Between the steps they leave each call as it is."""
        with attending(self._layers, self._attend_of):
            self._is_installed = True
            try:
                yield
            finally:
                self._is_installed = False

    @contextmanager
    def step(
        self,
        exemplar: KeysValuesByLayer,
        join: JoinTokens,
        cond_or_uncond: Sequence[int] = (),
        strength: float = 1.0,
        seeing: frozenset[int] = BOTH,
    ) -> Iterator[set[str]]:
        """Let the layers see the exemplar while the context manager is open. The arguments are those of `inject`.

        Yields:
            The names of the layers that have seen the exemplar. The set grows with each call of a layer.
        """
        with nullcontext() if self._is_installed else self.installed():
            self._step = InjectedStep(exemplar, join, cond_or_uncond, strength, seeing, {}, set())
            try:
                yield self._step.seen
            finally:
                self._step = None

    def _attend_of(self, name: str) -> Attend:
        return lambda call: self._step and self._step.attended(name, call)


@contextmanager
def inject(
    layers: Layers,
    features: Mapping[str, Tensor],
    join: JoinTokens,
    cond_or_uncond: Sequence[int] = (),
    strength: float = 1.0,
    seeing: frozenset[int] = BOTH,
) -> Iterator[set[str]]:
    """Let the layers see the exemplar while the context manager is open, in one step.

    Args:
        layers: The UNet's self-attention layers.
        features: The exemplar's features, `[1 or 2, tokens, channels]`, as in `Attended`. A layer without features
            runs untouched.
        join: `replace`, `concatenate`, or another `JoinTokens`.
        cond_or_uncond: `UNCOND` or `COND` for each row of the generation, in the order in which the host evaluates
            the rows. The host may split them over several calls of a layer. Needed only if the features have two rows
            or not all rows see the exemplar, and `LayerCall.cond_or_uncond` is None.
        strength: From 0 to 1, the share of each layer's output that comes from the joined tokens.
        seeing: The marks of the rows that see the exemplar.

    Yields:
        The names of the layers that have seen the exemplar. The set grows with each call of a layer.
    """
    seen_by = {name: layer for name, layer in layers.items() if name in features}
    injection = Injection(seen_by)
    with injection.step(ProjectedFeatures(features, seen_by), join, cond_or_uncond, strength, seeing) as seen:
        yield seen
