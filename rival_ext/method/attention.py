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

UNCOND, COND = 0, 1
"""Marks of a UNet row: with the negative prompt, or with the prompt. They are also the indices of the exemplar's rows
where it is evaluated with both prompts."""


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


ChooseContext = Callable[[LayerCall], Tensor | None]
"""Returns the context for a call in place of the usual one, or None to leave the call as it is."""


class SelfAttention(Protocol):
    """A self-attention layer of a host's UNet."""

    def attending(self, choose_context: ChooseContext, strength: float = 1.0) -> AbstractContextManager[None]:
        """Give the layer another context while the context manager is open.

        Args:
            choose_context: Asked at each call of the layer.
            strength: From 0 to 1, the share of the output that comes from the other context. The rest is the layer's
                usual output. Below 1 the layer is evaluated twice.
        """


Layers = Mapping[str, SelfAttention]
"""Self-attention layers by name, in network order."""

Features = dict[str, Tensor]
"""The input `h` of each self-attention layer, `[rows, tokens, channels]`, by the layer's name."""

JoinContext = Callable[[Tensor, Tensor], Tensor]
"""Joins the generation's tokens and the exemplar's into the context. The layer projects it to keys and values."""

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
) -> Iterator[set[str]]:
    """Let the layers see the exemplar while the context manager is open.

    Args:
        layers: The UNet's self-attention layers.
        features: The exemplar's features, `[1 or 2, tokens, channels]`. One row is used for every row of the
            generation. Of two, row `UNCOND` is used for the rows with the negative prompt, row `COND` for those with
            the prompt. A layer without features runs untouched.
        join: `replace`, `concatenate`, or another `JoinContext`.
        cond_or_uncond: `UNCOND` or `COND` for each row of the generation, in the order in which the host evaluates
            the rows. The host may split them over several calls of a layer. Needed only if the features have two rows
            and `LayerCall.cond_or_uncond` is None.
        strength: From 0 to 1, the share of each layer's output that comes from the joined context.

    Yields:
        The names of the layers that have seen the exemplar. The set grows with each call of a layer.
    """
    seen: set[str] = set()
    rows_done = dict.fromkeys(layers, 0)

    def injector(name: str) -> ChooseContext:
        def join_exemplar(call: LayerCall) -> Tensor:
            # what another extension has appended to the layer's own tokens stays beside the exemplar
            own, appended = call.context[:, : call.own_tokens], call.context[:, call.own_tokens :]
            exemplar = features[name].to(own)
            if len(exemplar) > 1:
                done = rows_done[name]
                rows = cond_or_uncond[done : done + len(own)] if call.cond_or_uncond is None else call.cond_or_uncond
                # slices and not an index, which would wait for the device
                exemplar = torch.cat([exemplar[row : row + 1] for row in rows])
            rows_done[name] += len(own)
            context = join(own, exemplar.expand(len(own), -1, -1))
            seen.add(name)
            return torch.cat([context, appended], dim=1) if appended.shape[1] else context

        return join_exemplar

    with _attending({name: layer for name, layer in layers.items() if name in features}, injector, strength):
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
def _attending(layers: Layers, chooser_of: Callable[[str], ChooseContext], strength: float = 1.0) -> Iterator[None]:
    def unless_suspended(choose_context: ChooseContext) -> ChooseContext:
        return lambda call: None if _suspended.get() else choose_context(call)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.attending(unless_suspended(chooser_of(name)), strength))
        yield
