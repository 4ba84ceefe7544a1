"""The UNet patcher of Forge and reForge: the exemplar is a longer context (section 3.2), by closures on a clone.

A clone copies its options deeply, so that only functions are registered, and what they share lives beside them. The
clone is dropped after the run: there is nothing to be undone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rival_ext.method.attention import COND, UNCOND, ChooseContext, LayerCall, suspended

BlockKey = tuple[str, int, int]
"""Where Forge says that a layer is: "input", "middle" or "output", the block's number, the transformer's in it."""

CONDITIONED = 0
"""Forge's mark on the rows of a call that have the prompt, not the negative prompt."""

MIDDLE = "middle"
"""The block whose self-attention the guidances by self-attention take away in evaluations of their own."""

TAKES_A_LONGER_CONTEXT = ("forge_stylealign.py", "forge_reference.py")
"""Forge's names for the modules of replacements that attend to whatever they are handed."""


@dataclass
class LayerOverride:
    """What a layer attends to now, and with what share of its output."""

    choose_context: ChooseContext
    strength: float


@dataclass
class PatchState:
    """What the closures of all clones look at.

    overrides: by key. usual: outputs to be mixed with. own: how many tokens came to the layer that is called now.
    is_own_pass: whether this is the host's evaluation of the prompts and not one of a guidance's that comes after it.
    """

    overrides: dict[BlockKey, LayerOverride] = field(default_factory=dict)
    usual: dict[BlockKey, Tensor] = field(default_factory=dict)
    own: int = 0
    is_own_pass: bool = True


class PatchedLayer:
    """A layer that is reached through the patcher (`rival_ext.method.attention.SelfAttention`)."""

    def __init__(self, key: BlockKey, state: PatchState):
        self.key = key
        self.state = state

    @contextmanager
    def attending(self, choose_context: ChooseContext, strength: float = 1.0) -> Iterator[None]:
        before = self.state.overrides.get(self.key)
        self.state.overrides[self.key] = LayerOverride(choose_context, strength)
        try:
            yield
        finally:
            del self.state.overrides[self.key]
            self.state.usual.pop(self.key, None)
            if before is not None:
                self.state.overrides[self.key] = before


def block_key(name: str) -> BlockKey:
    """Of a self-attention layer by its name in the UNet, such as `input_blocks.4.1.transformer_blocks.0.attn1`."""
    block, *numbers = name.removesuffix(".attn1").split(".")
    kind = block.removesuffix("_blocks").removesuffix("_block")
    return kind, 0 if kind == MIDDLE else int(numbers[0]), int(numbers[-1])


def patch(unet: Any, state: PatchState, modules: dict[BlockKey, nn.Module]) -> Any:
    """A clone of the host's patcher whose self-attention layers attend as `state` says; the last to be asked."""
    clone = unet.clone()
    options = clone.model_options
    taken_keys = taken(options)

    def count(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        state.own = n.shape[1]
        return n, context, value

    def attend(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        key = _current_key(extra)
        override = state.overrides.get(key)
        if override is None or key in taken_keys or (key[0] == MIDDLE and not state.is_own_pass):
            return n, context, value
        cond_or_uncond = _cond_or_uncond(extra, len(n))
        keys = override.choose_context(LayerCall(context, state.own, cond_or_uncond))
        if keys is None:
            return n, context, value
        # one and the same, unless a neighbour has changed one of them
        values = keys if value is context else override.choose_context(LayerCall(value, state.own, cond_or_uncond))
        assert values is not None
        if override.strength < 1:
            state.usual[key] = modules[key](n, context=context, value=value)
        return n, keys, values

    def mix(n: Tensor, extra: dict[str, Any]) -> Tensor:
        key = _current_key(extra)
        usual = state.usual.pop(key, None)
        return n if usual is None else torch.lerp(usual, n, state.overrides[key].strength)

    clone.set_model_attn1_patch(attend)
    patches = options["transformer_options"]["patches"]
    # before the others': token merging takes queries away and leaves all tokens to attend to
    patches["attn1_patch"] = [count, *patches["attn1_patch"]]
    # before the others': what they do to the tokens, they undo after this
    patches["attn1_output_patch"] = [mix, *patches.get("attn1_output_patch", [])]
    # they evaluate pictures of their own, in which no exemplar is let in
    options["conditioning_modifiers"] = [_suspending(one) for one in options.get("conditioning_modifiers", [])]
    return clone


def taken(options: dict[str, Any]) -> set[BlockKey]:
    """Places where a neighbour's attention stands in for the layer's own and knows only tokens of one image."""
    replaced = options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    return {
        key if len(key) == 3 else (*key, 0)
        for key, function in replaced.items()
        if getattr(function, "__module__", None) not in TAKES_A_LONGER_CONTEXT
    }


def _suspending(modifier: Any) -> Any:
    def modify(*asked: Any) -> Any:
        with suspended():
            return modifier(*asked)

    return modify


def _current_key(extra: dict[str, Any]) -> BlockKey:
    return *extra["block"], extra["block_index"]


def _cond_or_uncond(extra: dict[str, Any], rows: int) -> list[int]:
    chunks = extra["cond_or_uncond"]
    return [COND if chunk == CONDITIONED else UNCOND for chunk in chunks for _ in range(rows // len(chunks))]
