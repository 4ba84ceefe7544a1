"""Self-attention layers that are reached through torch's own hooks, for hosts without a way of their own."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from rival_ext.method.attention import ChooseContext, LayerCall
from rival_ext.method.rows import mixed_output


def self_attention_modules(unet: nn.Module) -> dict[str, nn.Module]:
    """Find the UNet's self-attention modules. They are called `attn1` in ldm, sgm and diffusers alike.

    Args:
        unet: The UNet of a checkpoint.

    Returns:
        The modules by name, in network order: 16 in SD 1.x, 70 in SDXL. Empty if the UNet has none.
    """
    return {name: module for name, module in unet.named_modules() if name.rsplit(".", 1)[-1] == "attn1"}


def self_attention_layers(unet: nn.Module) -> dict[str, HookedLayer]:
    """Wrap each of `self_attention_modules`.

    Args:
        unet: The UNet of a checkpoint.

    Returns:
        The layers by name, in network order.
    """
    return {name: HookedLayer(module) for name, module in self_attention_modules(unet).items()}


class HookedLayer:
    """A layer whose forward takes a context as its second argument (`SelfAttention`).

    ldm calls the argument `context`, diffusers `encoder_hidden_states`.

    Args:
        module: The layer's module. Its forward may have been replaced by another extension.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self._signature = _signature_with_names(module)

    @contextmanager
    def attending(self, choose_context: ChooseContext) -> Iterator[None]:
        tokens_name, context_name = list(self._signature.parameters)[:2]
        usual_outputs: list[tuple[Tensor, float | Tensor]] = []

        def before(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            bound = self._signature.bind(*args, **kwargs)
            tokens = bound.arguments[tokens_name]
            usual = bound.arguments.get(context_name)
            attended = choose_context(LayerCall(tokens if usual is None else usual, tokens.shape[1]))
            if attended is None:
                return None
            if attended.is_partial:
                usual_outputs.append((module.forward(*args, **kwargs), attended.share))
            bound.arguments[context_name] = attended.context
            return bound.args, bound.kwargs

        def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return mixed_output(output, *usual_outputs.pop()) if usual_outputs else None

        with ExitStack() as stack:
            stack.callback(self.module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(self.module.register_forward_hook(after).remove)
            yield


@contextmanager
def count_rows(unet: nn.Module) -> Iterator[list[int]]:
    """Count what the UNet evaluates while the context manager is open.

    Args:
        unet: The UNet of a checkpoint.

    Yields:
        The number of latents in each call, one entry a call.
    """
    rows: list[int] = []

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows.append(next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).shape[0])

    handle = unet.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def _signature_with_names(module: nn.Module) -> inspect.Signature:
    signature = inspect.signature(module.forward)
    if next(iter(signature.parameters.values())).kind is inspect.Parameter.VAR_POSITIONAL:
        # another extension's wrapper hides the names; the class still has them
        signature = inspect.signature(type(module).forward.__get__(module))
    return signature
