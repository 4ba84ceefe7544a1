"""Cross-image self-attention injection (paper section 3.2): a longer context for the layer's own forward.

Keys and values are the layer's own projections of its context, so the exemplar is let in by handing the layer
another context; queries, projections, attention backend, LoRA and hypernetworks stay the host's. Everything here
is a context manager, gone after any exit; how a layer is reached is the host's (`SelfAttention`).

    with record(layers) as features:                    # one evaluation of the exemplar
        predict_noise(exemplar_latent, sigma)
    with inject(layers, features, concatenate) as seen:  # one evaluation of the generation
        predict_noise(latent, sigma)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rival_ext.errors import RivalError


class Call(NamedTuple):
    """One call of a self-attention layer.

    tokens: `[rows, tokens, channels]`, what it would attend to: its own, then whatever somebody has appended to them.
    own: how many are its own. halves: of each row which half of a guided prediction it is, where the host says so.
    """

    tokens: Tensor
    own: int
    halves: Sequence[int] | None = None


Attend = Callable[[Call], Tensor | None]
"""What a layer shall attend to in place of its `tokens`; None leaves it as it is."""


class SelfAttention(Protocol):
    """A self-attention layer of a host's UNet."""

    def attending(self, attend: Attend, strength: float = 1.0) -> AbstractContextManager[None]:
        """While this runs the layer attends to what `attend` says, with this share (0 to 1) of its output; the rest is
        its usual one, which below 1 is evaluated as well."""


Layers = Mapping[str, SelfAttention]
"""By name, in network order."""

Features = dict[str, Tensor]
"""A self-attention layer's input `[rows, tokens, channels]`, by the layer's name."""

Context = Callable[[Tensor, Tensor], Tensor]
"""(the generation's tokens, the exemplar's) -> the context whose projections are the layer's keys and values."""

SCATTER_SEED = 32
"""One with which a quarter of the tokens of a square picture, 8 to 39 wide or of a usual width, has all its columns."""


_suspended = ContextVar("suspended", default=False)


def self_attention_modules(unet: nn.Module) -> dict[str, nn.Module]:
    """The UNet's self-attention; `attn1` in ldm, sgm and diffusers alike (16 layers in SD 1.x, 70 in SDXL)."""
    return {name: module for name, module in unet.named_modules() if name.rsplit(".", 1)[-1] == "attn1"}


def self_attention_layers(unet: nn.Module) -> dict[str, HookedLayer]:
    """Each of `self_attention_modules`, reached by torch's own hooks."""
    return {name: HookedLayer(module) for name, module in self_attention_modules(unet).items()}


class HookedLayer:
    """A layer whose forward takes a context: the exemplar is let in before the call (`SelfAttention`)."""

    def __init__(self, module: nn.Module):
        self.module = module

    @contextmanager
    def attending(self, attend: Attend, strength: float = 1.0) -> Iterator[None]:
        usual: list[Tensor] = []

        def look(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            bound, tokens, name_of_context = _bind(module, args, kwargs)
            context = attend(Call(tokens, next(iter(bound.arguments.values())).shape[1]))
            if context is None:
                return None
            if strength < 1:
                usual.append(module.forward(*args, **kwargs))
            bound.arguments[name_of_context] = context
            return bound.args, bound.kwargs

        def mix(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return torch.lerp(usual.pop(), output, strength) if usual else None

        with ExitStack() as stack:
            stack.callback(self.module.register_forward_pre_hook(look, with_kwargs=True).remove)
            if strength < 1:
                stack.callback(self.module.register_forward_hook(mix).remove)
            yield


def replace(own: Tensor, exemplar: Tensor) -> Tensor:
    """`K, V = W_k h_R, W_v h_R`: the generation looks at the exemplar only (t > t_align)."""
    return exemplar


def concatenate(own: Tensor, exemplar: Tensor) -> Tensor:
    """`K, V = W_k [h_G, h_R], W_v [h_G, h_R]`: at itself and at the exemplar (t <= t_align)."""
    return torch.cat([own, exemplar], dim=1)


def concatenate_part(fraction: float) -> Context:
    """As `concatenate`, with this fraction (0 to 1) of the exemplar's tokens: less to attend to, for speed."""
    return lambda own, exemplar: concatenate(own, scattered(exemplar, fraction))


def scattered(tokens: Tensor, fraction: float) -> Tensor:
    """This fraction (0 to 1) of the tokens `[rows, tokens, channels]`, one at least.

    One token at random out of each group of neighbours, always the same one: a regular pattern would leave whole
    columns out at some widths.
    """
    if fraction == 1:
        return tokens
    number = tokens.shape[1]
    kept = max(1, round(number * fraction))
    edges = (torch.arange(kept + 1) / fraction).long().clamp(max=number)
    within_group = torch.rand(kept, generator=torch.Generator().manual_seed(SCATTER_SEED))
    positions = edges[:-1] + (within_group * edges.diff()).long()
    return tokens[:, positions.clamp(max=number - 1).to(tokens.device)]


def token_grid(latent: Tensor, tokens: int) -> tuple[int, int, int]:
    """How a layer's tokens lie over a latent `[..., H, W]`: rows, columns, and a token's side in latent positions.

    Raises RivalError where they lie on no grid: token merging has taken some away.
    """
    height, width, side = *latent.shape[-2:], 1
    while height * width > tokens:
        # each level of the UNet halves the picture, rounding up
        height, width, side = -(-height // 2), -(-width // 2), 2 * side
    if height * width != tokens:
        raise RivalError(
            "token merging mixes the tokens of layers and regions; set its ratio to 0, or layers to all and no "
            "exemplar_mask."
        )
    return height, width, side


@contextmanager
def record(layers: Layers) -> Iterator[Features]:
    """Collects each layer's input while it runs: `h_R`, if what runs is the exemplar."""
    features: Features = {}

    def recorder(name: str) -> Attend:
        def see(call: Call) -> None:
            features[name] = call.tokens.detach()

        return see

    with _attending(layers, recorder):
        yield features


@contextmanager
def inject(
    layers: Layers,
    features: Mapping[str, Tensor],
    context: Context,
    rows: Sequence[int] = (),
    strength: float = 1.0,
) -> Iterator[set[str]]:
    """Lets the layers see the exemplar's `features` through `context`; yields the names of those that did.

    rows: which of the exemplar's rows each row of the generation sees, in the order in which the host evaluates
    them, in one call or several; not needed where the exemplar has one row, or where the layers say it themselves.
    strength: share (0 to 1) of the layer's output that comes from the longer context; the rest is its usual one,
    which below 1 is evaluated as well.
    A layer without features runs untouched, and so do all of them after any exit.
    """
    seen: set[str] = set()
    evaluated = dict.fromkeys(layers, 0)

    def injector(name: str) -> Attend:
        def see(call: Call) -> Tensor:
            # what somebody has appended to the layer's own tokens stays beside the exemplar
            own, appended = call.tokens[:, : call.own], call.tokens[:, call.own :]
            exemplar = features[name].to(own)
            if len(exemplar) > 1:
                due = rows[evaluated[name] : evaluated[name] + len(own)] if call.halves is None else call.halves
                exemplar = exemplar[list(due)]
            evaluated[name] += len(own)
            tokens = context(own, exemplar.expand(len(own), -1, -1))
            seen.add(name)
            return torch.cat([tokens, appended], dim=1) if appended.shape[1] else tokens

        return see

    with _attending({name: layer for name, layer in layers.items() if name in features}, injector, strength):
        yield seen


@contextmanager
def suspended() -> Iterator[None]:
    """While this runs, layers record nothing and see no exemplar: an evaluation of somebody else's in between."""
    token = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(token)


@contextmanager
def count_rows(unet: nn.Module) -> Iterator[list[int]]:
    """Counts what the UNet evaluates: one entry a call, the number of latents in it."""
    rows: list[int] = []

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).shape[0])

    handle = unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@contextmanager
def _attending(layers: Layers, attend_of: Callable[[str], Attend], strength: float = 1.0) -> Iterator[None]:
    def unless_suspended(attend: Attend) -> Attend:
        return lambda call: None if _suspended.get() else attend(call)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(layer.attending(unless_suspended(attend_of(name)), strength))
        yield


def _bind(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[inspect.BoundArguments, Tensor, str]:
    """The call's arguments, the tokens it would attend to, and the name of the argument that holds a context.

    ldm calls it `context`, diffusers `encoder_hidden_states`: in both the second one of the layer's forward.
    """
    signature = inspect.signature(layer.forward)
    if next(iter(signature.parameters.values())).kind is inspect.Parameter.VAR_POSITIONAL:
        # somebody's wrapper hides the names; the class still has them
        signature = inspect.signature(type(layer).forward.__get__(layer))
    own_name, context_name = list(signature.parameters)[:2]
    bound = signature.bind(*args, **kwargs)
    own = bound.arguments.get(context_name)
    return bound, bound.arguments[own_name] if own is None else own, context_name
