"""A host's self-attention layers, as the method reaches them (paper section 3.2).

Queries, projections, attention backend, LoRA and hypernetworks stay the host's. Everything here is a context manager
that leaves nothing behind after any exit. How a layer is reached is the host's part (`SelfAttention`).

    with record(layers) as features:    # one evaluation of the exemplar
        predict_noise(exemplar_latent, sigma)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

from torch import Tensor

from rival_ext.method.rows import Attended, KeysValues


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


Attend = Callable[[LayerCall], Attended | None]
"""Returns what the layer attends to in a call, or None to leave the call as it is."""


class SelfAttention(Protocol):
    """A self-attention layer of a host's UNet."""

    def attending(self, attend: Attend) -> AbstractContextManager[None]:
        """Let the layer attend to other tokens while the context manager is open.

        Args:
            attend: Asked at each call of the layer.
        """

    def project(self, h: Tensor) -> KeysValues:
        """Project tokens as the layer itself would, with all that acts on its projections now.

        Args:
            h: `[rows, tokens, channels]`.

        Returns:
            The keys and values.
        """


Layers = Mapping[str, SelfAttention]
"""Self-attention layers by name, in network order."""

Features = dict[str, Tensor]
"""The input `h` of each self-attention layer, `[rows, tokens, channels]`, by the layer's name."""

_suspended = ContextVar("suspended", default=False)


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

    def recorder(name: str) -> Attend:
        def keep(call: LayerCall) -> None:
            features[name] = call.context.detach()

        return keep

    with attending(layers, recorder):
        yield features


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


def is_suspended() -> bool:
    """Tell whether `suspended` is open."""
    return _suspended.get()


@contextmanager
def attending(layers: Layers, attend_of: Callable[[str], Attend]) -> Iterator[None]:
    """Let several layers attend to other tokens while the context manager is open.

    Args:
        layers: The layers.
        attend_of: Makes what is asked at each call of a layer, from the layer's name.
    """

    def unless_suspended(attend: Attend) -> Attend:
        return lambda call: None if _suspended.get() else attend(call)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.attending(unless_suspended(attend_of(name))))
        yield
