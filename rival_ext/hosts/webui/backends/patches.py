"""Injection through the UNet patcher of Forge and reForge: functions registered on a clone (paper section 3.2).

The attention blocks of these hosts call functions that are listed in a patcher's options. A clone copies its options
deeply, so only functions are registered there. What they share is a `PatchState` beside the clone. The clone is dropped
after the run, so nothing has to be undone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor, nn

from rival_ext.method.attention import Attend, LayerCall, suspended
from rival_ext.method.layers import HookedLayer, joined_projections
from rival_ext.method.rows import COND, UNCOND, Attended, mixed_output

BlockKey = tuple[str, int, int]
"""How the hosts name a transformer block: "input", "middle" or "output", the index of the UNet's block, and the index
of the transformer block in it."""

PROMPT_CHUNK = 0
"""The hosts' mark on a part of a batch that has the prompt. A part with the negative prompt has another mark."""

MIDDLE = "middle"
"""The block whose self-attention SAG and PAG remove in evaluations of their own."""

TAKES_A_LONGER_CONTEXT = ("forge_stylealign.py", "forge_reference.py")
"""Forge's names for the modules of replaced attention functions that accept a context of any length."""


@dataclass
class PatchState:
    """What the functions on all clones of a run share.

    Attributes:
        overrides: What a layer is asked at present, by its block.
        calls: The calls of layers that run now and see the exemplar, by block.
        own_tokens: How many tokens the layer that is called now has.
        is_prompt_pass: Whether the host evaluates the prompts at present. False in the evaluations that SAG and PAG
            make afterwards.
    """

    overrides: dict[BlockKey, Attend] = field(default_factory=dict)
    calls: dict[BlockKey, PatchedCall] = field(default_factory=dict)
    own_tokens: int = 0
    is_prompt_pass: bool = True

    def attended(self, key: BlockKey) -> Attended | None:
        """Return what a layer attends to in the call that runs now, or None if it sees no exemplar in it."""
        call = self.calls.get(key)
        return call and call.attended


class PatchedCall(NamedTuple):
    """A call of a layer that sees the exemplar, with what the layer was given."""

    attended: Attended
    n: Tensor
    context: Tensor
    value: Tensor


class PatchedLayer(HookedLayer):
    """A layer whose calls are told by the patcher (`rival_ext.method.attention.SelfAttention`).

    Args:
        key: The layer's block.
        module: The layer's module.
        state: What the patched clones share.
    """

    def __init__(self, key: BlockKey, module: nn.Module, state: PatchState):
        super().__init__(module)
        self.key = key
        self.state = state

    @contextmanager
    def attending(self, attend: Attend) -> Iterator[None]:
        with (
            _item(self.state.overrides, self.key, attend),
            joined_projections(self.module, lambda: self.state.attended(self.key)),
        ):
            try:
                yield
            finally:
                self.state.calls.pop(self.key, None)


def block_key(name: str) -> BlockKey:
    """Derive the block of a self-attention layer from the layer's name.

    Args:
        name: The name in the UNet, such as `input_blocks.4.1.transformer_blocks.0.attn1`.

    Returns:
        The block, such as `("input", 4, 0)`.
    """
    block, *numbers = name.removesuffix(".attn1").split(".")
    part = block.removesuffix("_blocks").removesuffix("_block")
    return part, 0 if part == MIDDLE else int(numbers[0]), int(numbers[-1])


def patched_clone(unet: Any, state: PatchState, modules: Mapping[BlockKey, nn.Module]) -> Any:
    """Clone a patcher of the host so that its self-attention layers attend as `state` says.

    Args:
        unet: The host's patcher. It stays as it is.
        state: What the patched clones share.
        modules: The self-attention modules by block.

    Returns:
        The clone.
    """
    clone = unet.clone()
    options = clone.model_options
    replaced = replaced_blocks(options)

    def count_tokens(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        state.own_tokens = n.shape[1]
        return n, context, value

    def attend(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        key = _current_block(extra)
        # what a call that failed has left
        state.calls.pop(key, None)
        ask = state.overrides.get(key)
        if ask is None or key in replaced or (key[0] == MIDDLE and not state.is_prompt_pass):
            return n, context, value
        attended = ask(LayerCall(context, state.own_tokens, _cond_or_uncond(tuple(extra["cond_or_uncond"]), len(n))))
        if attended is not None:
            state.calls[key] = PatchedCall(attended, n, context, value)
        return n, context, value

    def mix(n: Tensor, extra: dict[str, Any]) -> Tensor:
        key = _current_block(extra)
        call = state.calls.pop(key, None)
        if call is None or not call.attended.is_partial:
            return n
        return mixed_output(n, modules[key](call.n, context=call.context, value=call.value), call.attended.share)

    clone.set_model_attn1_patch(attend)
    patches = options["transformer_options"]["patches"]
    # before the other extensions' patches: token merging then removes queries, while all tokens stay in the context
    patches["attn1_patch"] = [count_tokens, *patches["attn1_patch"]]
    # before the other extensions' patches: these undo what they have done to the tokens
    patches["attn1_output_patch"] = [mix, *patches.get("attn1_output_patch", [])]
    # these evaluate images of their own, which must not see the exemplar
    options["conditioning_modifiers"] = [_suspending(one) for one in options.get("conditioning_modifiers", [])]
    return clone


def replaced_blocks(options: Mapping[str, Any]) -> set[BlockKey]:
    """List the blocks that the exemplar cannot reach.

    Args:
        options: The options of a patcher.

    Returns:
        The blocks whose self-attention another extension has replaced by one that accepts only one image's tokens.
    """
    replacements = options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    return {
        key if len(key) == 3 else (*key, 0)
        for key, function in replacements.items()
        if getattr(function, "__module__", None) not in TAKES_A_LONGER_CONTEXT
    }


@contextmanager
def _item(items: dict[BlockKey, Attend], key: BlockKey, value: Attend) -> Iterator[None]:
    """A value in a dictionary, and afterwards the earlier one or none."""
    before = items.get(key)
    items[key] = value
    try:
        yield
    finally:
        del items[key]
        if before is not None:
            items[key] = before


def _suspending(modifier: Any) -> Any:
    def modify(*asked: Any) -> Any:
        with suspended():
            return modifier(*asked)

    return modify


def _current_block(extra: dict[str, Any]) -> BlockKey:
    return *extra["block"], extra["block_index"]


@lru_cache
def _cond_or_uncond(chunks: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The mark of each row. All layers of one evaluation have the same rows."""
    return tuple(COND if chunk == PROMPT_CHUNK else UNCOND for chunk in chunks for _ in range(rows // len(chunks)))
