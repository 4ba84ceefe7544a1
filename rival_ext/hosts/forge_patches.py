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

from rival_ext.attention import Attend, Call, suspended
from rival_ext.guide import GUIDED, UNGUIDED

Place = tuple[str, int, int]
"""Where Forge says that a layer is: "input", "middle" or "output", the block's number, the transformer's in it."""

CONDITIONED = 0
"""Forge's mark on the rows of a call that have the prompt, not the negative prompt."""

MIDDLE = "middle"
"""The block whose self-attention the guidances by self-attention take away in evaluations of their own."""

TAKES_A_LONGER_CONTEXT = ("forge_stylealign.py", "forge_reference.py")
"""Forge's names for the modules of replacements that attend to whatever they are handed."""


@dataclass
class Turn:
    """What a layer attends to now, and with what share of its output."""

    attend: Attend
    strength: float


@dataclass
class Board:
    """What the closures of all clones look at.

    turns: by place. usual: outputs to be mixed with. own: how many tokens came to the layer that is called now.
    is_own_pass: whether this is the host's evaluation of the prompts and not one of a guidance's that comes after it.
    """

    turns: dict[Place, Turn] = field(default_factory=dict)
    usual: dict[Place, Tensor] = field(default_factory=dict)
    own: int = 0
    is_own_pass: bool = True


class PatchedLayer:
    """A layer that is reached through the patcher (`rival_ext.attention.SelfAttention`)."""

    def __init__(self, place: Place, board: Board):
        self.place = place
        self.board = board

    @contextmanager
    def attending(self, attend: Attend, strength: float = 1.0) -> Iterator[None]:
        before = self.board.turns.get(self.place)
        self.board.turns[self.place] = Turn(attend, strength)
        try:
            yield
        finally:
            del self.board.turns[self.place]
            self.board.usual.pop(self.place, None)
            if before is not None:
                self.board.turns[self.place] = before


def place_of(name: str) -> Place:
    """Of a self-attention layer by its name in the UNet, such as `input_blocks.4.1.transformer_blocks.0.attn1`."""
    block, *numbers = name.removesuffix(".attn1").split(".")
    kind = block.removesuffix("_blocks").removesuffix("_block")
    return kind, 0 if kind == MIDDLE else int(numbers[0]), int(numbers[-1])


def patch(unet: Any, board: Board, modules: dict[Place, nn.Module]) -> Any:
    """A clone of the host's patcher whose self-attention layers attend as `board` says; the last to be asked."""
    clone = unet.clone()
    options = clone.model_options
    taken_places = taken(options)

    def count(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        board.own = n.shape[1]
        return n, context, value

    def attend(n: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        place = _place_now(extra)
        turn = board.turns.get(place)
        if turn is None or place in taken_places or (place[0] == MIDDLE and not board.is_own_pass):
            return n, context, value
        halves = _halves(extra, len(n))
        keys = turn.attend(Call(context, board.own, halves))
        if keys is None:
            return n, context, value
        # one and the same, unless a neighbour has changed one of them
        values = keys if value is context else turn.attend(Call(value, board.own, halves))
        assert values is not None
        if turn.strength < 1:
            board.usual[place] = modules[place](n, context=context, value=value)
        return n, keys, values

    def mix(n: Tensor, extra: dict[str, Any]) -> Tensor:
        place = _place_now(extra)
        usual = board.usual.pop(place, None)
        return n if usual is None else torch.lerp(usual, n, board.turns[place].strength)

    clone.set_model_attn1_patch(attend)
    patches = options["transformer_options"]["patches"]
    # before the others': token merging takes queries away and leaves all tokens to attend to
    patches["attn1_patch"] = [count, *patches["attn1_patch"]]
    # before the others': what they do to the tokens, they undo after this
    patches["attn1_output_patch"] = [mix, *patches.get("attn1_output_patch", [])]
    # they evaluate pictures of their own, in which no exemplar is let in
    options["conditioning_modifiers"] = [_suspending(one) for one in options.get("conditioning_modifiers", [])]
    return clone


def taken(options: dict[str, Any]) -> set[Place]:
    """Places where a neighbour's attention stands in for the layer's own and knows only tokens of one image."""
    replaced = options["transformer_options"].get("patches_replace", {}).get("attn1", {})
    return {
        place if len(place) == 3 else (*place, 0)
        for place, function in replaced.items()
        if getattr(function, "__module__", None) not in TAKES_A_LONGER_CONTEXT
    }


def _suspending(modifier: Any) -> Any:
    def modify(*asked: Any) -> Any:
        with suspended():
            return modifier(*asked)

    return modify


def _place_now(extra: dict[str, Any]) -> Place:
    return *extra["block"], extra["block_index"]


def _halves(extra: dict[str, Any], rows: int) -> list[int]:
    chunks = extra["cond_or_uncond"]
    return [GUIDED if chunk == CONDITIONED else UNGUIDED for chunk in chunks for _ in range(rows // len(chunks))]
