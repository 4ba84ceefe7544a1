"""Self-attention layers that are reached through torch's own hooks, for hosts without a way of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from rival_ext.method.attention import Attend, LayerCall, is_suspended
from rival_ext.method.rows import Attended, KeysValues, mixed_output


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
    """A layer with the projections `to_q`, `to_k` and `to_v`, as in ldm, sgm and diffusers (`SelfAttention`).

    Args:
        module: The layer's module. Its forward may have been replaced by another extension.
    """

    def __init__(self, module: nn.Module):
        self.module = module

    def project(self, h: Tensor) -> KeysValues:
        return self._projected(h, h)

    @contextmanager
    def attending(self, attend: Attend) -> Iterator[None]:
        current: list[Attended] = []

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # what a call that failed has left
            current.clear()
            own, context = _tokens_and_context(args, kwargs)
            attended = attend(LayerCall(context, own.shape[1]))
            if attended is not None:
                current.append(attended)

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            if not current:
                return None
            attended = current.pop()
            if not attended.is_partial:
                return None
            return mixed_output(output, module.forward(*args, **kwargs), attended.share)

        with joined_projections(self.module, lambda: current[0] if current else None), ExitStack() as stack:
            stack.callback(self.module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(self.module.register_forward_hook(after, with_kwargs=True).remove)
            yield

    def _projected(self, of_keys: Tensor, of_values: Tensor) -> KeysValues:
        keys, values = _projections(self.module)
        return KeysValues(keys(of_keys), values(of_values))


@contextmanager
def joined_projections(module: nn.Module, current: Callable[[], Attended | None]) -> Iterator[None]:
    """Join the exemplar's keys and values to those of a layer while the context manager is open.

    Args:
        module: The layer's module.
        current: Returns what the layer attends to in the call that runs now, or None to leave the call as it is.
    """

    def join_keys(_: nn.Module, args: tuple[Any, ...], usual: Tensor) -> Tensor | None:
        attended = None if is_suspended() else current()
        return None if attended is None else attended.keys(usual)

    def join_values(_: nn.Module, args: tuple[Any, ...], usual: Tensor) -> Tensor | None:
        attended = None if is_suspended() else current()
        return None if attended is None else attended.values(usual)

    keys, values = _projections(module)
    with ExitStack() as stack:
        stack.callback(keys.register_forward_hook(join_keys).remove)
        stack.callback(values.register_forward_hook(join_values).remove)
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


def _tokens_and_context(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The tokens with which a layer is called, and those that it would attend to: the same if no other are given."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    tokens = tensors[0]
    # the third may be a mask
    contexts = [one for one in tensors[1:2] if one.dim() == tokens.dim() and one.shape[-1] == tokens.shape[-1]]
    return tokens, contexts[0] if contexts else tokens


def _projections(module: nn.Module) -> tuple[nn.Module, nn.Module]:
    return module.get_submodule("to_k"), module.get_submodule("to_v")
