"""Cross-image self-attention injection (paper section 3.2): a longer context for the layer's own forward.

Keys and values are the layer's own projections of its context. So the exemplar is let in by giving the layer another
context. Queries, projections, attention backend, LoRA and hypernetworks stay the host's. Everything here is a context
manager that leaves nothing behind after any exit. How a layer is reached is the host's part (`SelfAttention`).

    with record(layers) as features:                     # one evaluation of the exemplar
        predict_noise(exemplar_latent, sigma)
    with inject(layers, features, concatenate) as seen:  # one evaluation of the generation
        predict_noise(latent, sigma)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rival_ext.method.rows import BOTH, Attended, JoinContext, attended_rows


class LayerCall(NamedTuple):
    """One call of a self-attention layer.

    Attributes:
        context: `[rows, tokens, channels]`. The layer would attend to these tokens: its own, then those that another
            extension has appended.
        own_tokens: How many of the tokens are the layer's own.
        cond_or_uncond: `UNCOND` or `COND` for each row, or None if the host does not say.
    """

    context: Tensor
    own_tokens: int
    cond_or_uncond: Sequence[int] | None = None


ChooseContext = Callable[[LayerCall], Attended | None]
"""Returns what the layer attends to in a call, or None to leave the call as it is."""


class SelfAttention(Protocol):
    """A self-attention layer of a host's UNet."""

    def attending(self, choose_context: ChooseContext) -> AbstractContextManager[None]:
        """Give the layer another context while the context manager is open.

        Args:
            choose_context: Asked at each call of the layer.
        """


Layers = Mapping[str, SelfAttention]
"""Self-attention layers by name, in network order."""

Features = dict[str, Tensor]
"""The input `h` of each self-attention layer, `[rows, tokens, channels]`, by the layer's name."""

_suspended = ContextVar("suspended", default=False)


def replace(own: Tensor, exemplar: Tensor) -> Tensor:
    """Return the exemplar's tokens alone: `K, V = W_k h_R, W_v h_R` (above t_align).

    Args:
        own: The generation's tokens, `[rows, tokens, channels]`.
        exemplar: The exemplar's tokens, `[rows, exemplar tokens, channels]`.

    Returns:
        `exemplar`.
    """
    return exemplar


def concatenate(own: Tensor, exemplar: Tensor) -> Tensor:
    """Return both tokens: `K, V = W_k [h_G, h_R], W_v [h_G, h_R]` (at t_align and below).

    Args:
        own: The generation's tokens, `[rows, tokens, channels]`.
        exemplar: The exemplar's tokens, `[rows, exemplar tokens, channels]`.

    Returns:
        `[rows, tokens + exemplar tokens, channels]`.
    """
    return torch.cat([own, exemplar], dim=1)


@contextmanager
def record(layers: Layers) -> Iterator[Features]:
    """Record the input of each layer while the context manager is open.

    If the exemplar is what is evaluated, the input is `h_R`.

    Args:
        layers: The layers to record.

    Yields:
        The features of the latest evaluation.
    """
    features: Features = {}

    def recorder(name: str) -> ChooseContext:
        def keep(call: LayerCall) -> None:
            features[name] = call.context.detach()

        return keep

    with _attending(layers, recorder):
        yield features


@contextmanager
def inject(
    layers: Layers,
    features: Mapping[str, Tensor],
    join: JoinContext,
    cond_or_uncond: Sequence[int] = (),
    strength: float = 1.0,
    seeing: frozenset[int] = BOTH,
) -> Iterator[set[str]]:
    """Let the layers see the exemplar while the context manager is open.

    Args:
        layers: The UNet's self-attention layers.
        features: The exemplar's features, `[1 or 2, tokens, channels]`, as in `attended_rows`. A layer without features
            runs untouched.
        join: `replace`, `concatenate`, or another `JoinContext`.
        cond_or_uncond: `UNCOND` or `COND` for each row of the generation, in the order in which the host evaluates
            the rows. The host may split them over several calls of a layer. Needed only if the features have two rows
            or not all rows see the exemplar, and `LayerCall.cond_or_uncond` is None.
        strength: From 0 to 1, the share of each layer's output that comes from the joined context.
        seeing: The marks of the rows that see the exemplar.

    Yields:
        The names of the layers that have seen the exemplar. The set grows with each call of a layer.
    """
    seen: set[str] = set()
    rows_done = dict.fromkeys(layers, 0)

    def injector(name: str) -> ChooseContext:
        def join_exemplar(call: LayerCall) -> Attended | None:
            done = rows_done[name]
            rows_done[name] += len(call.context)
            marks = cond_or_uncond[done : rows_done[name]] if call.cond_or_uncond is None else call.cond_or_uncond

            def join_own(usual: Tensor, exemplar: Tensor) -> Tensor:
                # what another extension has appended to the layer's own tokens stays beside the exemplar
                own, appended = usual[:, : call.own_tokens], usual[:, call.own_tokens :]
                context = join(own, exemplar)
                return torch.cat([context, appended], dim=1) if appended.shape[1] else context

            attended = attended_rows(call.context, features[name].to(call.context), join_own, marks, seeing, strength)
            if attended is not None:
                seen.add(name)
            return attended

        return join_exemplar

    with _attending({name: layer for name, layer in layers.items() if name in features}, injector):
        yield seen


@contextmanager
def suspended() -> Iterator[None]:
    """Make all layers record nothing and see no exemplar while the context manager is open.

    Hosts use it around an evaluation that another extension makes in the middle of a step.
    """
    token = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(token)


@contextmanager
def _attending(layers: Layers, chooser_of: Callable[[str], ChooseContext]) -> Iterator[None]:
    def unless_suspended(choose_context: ChooseContext) -> ChooseContext:
        return lambda call: None if _suspended.get() else choose_context(call)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.attending(unless_suspended(chooser_of(name))))
        yield
