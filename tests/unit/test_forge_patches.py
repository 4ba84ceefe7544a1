"""Injection through Forge's patcher, on a patcher and a transformer block that ask their patches as Forge does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rival_ext.hosts.webui.backends.patches import PatchedLayer, PatchState, block_key, patched_clone, replaced_blocks
from rival_ext.method.attention import concatenate, inject, record, replace, suspended
from rival_ext.method.layers import HookedLayer

PLACE = ("input", 1, 0)
GUIDED_CALL, UNCOND_CALL = [1, 0], [0]
"""Forge's chunks of a call: of the prompt 0, of the negative prompt 1."""


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(8, 8, bias=False) for _ in range(4))

    def forward(self, x, context=None, value=None, mask=None, transformer_options=None):
        context = x if context is None else context
        keys, values = self.to_k(context), self.to_v(context if value is None else value)
        return self.to_out((self.to_q(x) @ keys.mT / 8**0.5).softmax(-1) @ values)


class FaultError(Exception):
    pass


class FailingAt:
    """A hook that fails in one call."""

    def __init__(self, call):
        self.left = call

    def __call__(self, *_):
        self.left -= 1
        if self.left == 0:
            raise FaultError


class Patcher:
    """What is asked of Forge's: a clone copies its options deeply."""

    def __init__(self, options=None):
        self.model_options = options or {"transformer_options": {}}

    def clone(self):
        return Patcher(copy.deepcopy(self.model_options))

    def set_model_attn1_patch(self, function):
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches["attn1_patch"] = [*patches.get("attn1_patch", []), function]


class Block:
    """A transformer block around `attention`, in the host's order."""

    def __init__(self, attention, place=PLACE):
        self.attention = attention
        self.place = place

    def __call__(self, patcher, n, chunks=GUIDED_CALL):
        options = patcher.model_options["transformer_options"]
        extra = {"block": self.place[:2], "block_index": self.place[2], "cond_or_uncond": chunks}
        patches = options.get("patches", {})
        context = value = None
        for function in patches.get("attn1_patch", []):
            context, value = (n, n) if context is None else (context, value)
            n, context, value = function(n, context, value, extra)
        replaced = options.get("patches_replace", {}).get("attn1", {}).get(self.place)
        attention = self.attention
        if replaced is None:
            n = attention(n, context=context, value=value)
        else:
            context, value = (n, n) if context is None else (context, value)
            q, k, v = attention.to_q(n), attention.to_k(context), attention.to_v(value)
            n = attention.to_out(replaced(q, k, v, extra))
        for function in patches.get("attn1_output_patch", []):
            n = function(n, extra)
        return n


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Attention().eval().requires_grad_(False)


@pytest.fixture
def board():
    return PatchState()


def tokens(rows, number=6, seed=0):
    return torch.randn(rows, number, 8, generator=torch.Generator().manual_seed(seed))


def patched(attention, board, options=None, place=PLACE):
    return (
        patched_clone(Patcher(options), board, {place: attention}),
        {"layer": PatchedLayer(place, board)},
        Block(attention, place),
    )


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("context", [replace, concatenate])
def test_the_layer_gives_what_it_gives_with_torchs_own_hooks(attention, board, context, strength):
    patcher, layers, block = patched(attention, board)
    own, exemplar = tokens(4), tokens(1, 9, seed=1)
    with inject({"layer": HookedLayer(attention)}, {"layer": exemplar}, context, strength=strength):
        expected = attention(own)
    with inject(layers, {"layer": exemplar}, context, strength=strength) as seen:
        assert torch.equal(block(patcher, own), expected)
    assert seen == {"layer"}
    assert not torch.equal(expected, attention(own))


def test_after_a_fault_the_layer_is_as_it_was(attention, board):
    patcher, layers, block = patched(attention, board)
    own = tokens(2)
    untouched = attention(own)
    # the second call of the layer's own forward: the usual output is there, the other is not
    attention.register_forward_pre_hook(FailingAt(2))
    with inject(layers, {"layer": tokens(1)}, replace, strength=0.5), pytest.raises(FaultError):
        block(patcher, own)
    assert (board.overrides, board.usual_outputs) == ({}, {})
    assert torch.equal(block(patcher, own), untouched)


def test_what_an_exemplar_is_seen_by_is_recorded(attention, board):
    patcher, layers, block = patched(attention, board)
    with record(layers) as features:
        assert torch.equal(block(patcher, tokens(1), UNCOND_CALL), attention(tokens(1)))
    assert torch.equal(features["layer"], tokens(1))


@pytest.mark.parametrize("chunks", [[1, 0], [0, 1], [1, 0, 0]])
def test_two_rows_of_an_exemplar_are_seen_by_their_halves_as_the_host_orders_them(attention, board, chunks):
    patcher, layers, block = patched(attention, board)
    own, (ungiven, given) = tokens(2 * len(chunks)), tokens(2, 9, seed=1).split(1)
    # the order that is told in advance is not the host's
    with inject(layers, {"layer": torch.cat([ungiven, given])}, replace, cond_or_uncond=[]):
        output = block(patcher, own, chunks)
    for index, chunk in enumerate(chunks):
        rows = own[2 * index : 2 * index + 2]
        seen = (given if chunk == 0 else ungiven).expand(2, -1, -1)
        assert torch.allclose(output[2 * index : 2 * index + 2], attention(rows, seen), atol=1e-6)


def test_tokens_that_a_neighbour_merges_before_are_apart_again_after(attention, board):
    def merge(n, context, value, extra):
        return n[:, ::2], context[:, ::2], value[:, ::2]

    def part(n, extra):
        return n.repeat_interleave(2, dim=1)

    options = {"transformer_options": {"patches": {"attn1_patch": [merge], "attn1_output_patch": [part]}}}
    patcher, layers, block = patched(attention, board, options)
    own = tokens(2)
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate, strength=0.5):
        assert block(patcher, own).shape == own.shape
    assert board.usual_outputs == {}


@pytest.mark.parametrize("context", [replace, concatenate])
def test_what_a_neighbour_leaves_to_attend_to_counts_as_the_layers_own_though_it_merges_queries(
    attention, board, context
):
    def merge(n, context, value, extra):
        return n[:, ::2], context, value

    options = {"transformer_options": {"patches": {"attn1_patch": [merge]}}}
    patcher, layers, block = patched(attention, board, options)
    own, exemplar = tokens(1), tokens(1, 9, seed=1)
    with inject(layers, {"layer": exemplar}, context):
        output = block(patcher, own, UNCOND_CALL)
    seen = exemplar if context is replace else torch.cat([own, exemplar], 1)
    assert torch.equal(output, attention(own[:, ::2], seen))


def test_keys_that_a_neighbour_has_changed_stay_apart_from_the_values(attention, board):
    def louder(n, context, value, extra):
        return n, 2 * context, value

    options = {"transformer_options": {"patches": {"attn1_patch": [louder]}}}
    patcher, layers, block = patched(attention, board, options)
    own, exemplar = tokens(1), tokens(1, 3, seed=1)
    with inject(layers, {"layer": exemplar}, concatenate):
        output = block(patcher, own, UNCOND_CALL)
    keys, values = torch.cat([2 * own, exemplar], 1), torch.cat([own, exemplar], 1)
    assert torch.equal(output, attention(own, keys, values))


def square_only(q, k, v, extra):
    assert q.shape == k.shape == v.shape
    return v


@pytest.mark.parametrize("module", [None, "forge_stylealign.py"])
def test_a_replacement_that_knows_one_images_tokens_keeps_its_layer(attention, board, module):
    seen_keys = []

    def standing_in(q, k, v, extra):
        seen_keys.append(k.shape[1])
        return q

    standing_in.__module__ = module
    options = {"transformer_options": {"patches_replace": {"attn1": {PLACE: standing_in}}}}
    patcher, layers, block = patched(attention, board, options)
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate) as seen:
        block(patcher, tokens(2))
    longer = module is not None
    assert seen_keys == [6 + 9 * longer]
    assert (seen == {"layer"}) == longer
    assert (PLACE in replaced_blocks(patcher.model_options)) != longer


def test_a_guidances_own_pass_finds_the_middle_as_it_is(attention, board):
    place = ("middle", 0, 0)
    # as perturbed attention guidance adds it after the prompts' pass
    patcher, layers, block = patched(attention, board, place=place)
    perturbed = patcher.clone()
    perturbed.model_options["transformer_options"]["patches_replace"] = {"attn1": {place: square_only}}
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate) as seen:
        block(patcher, tokens(2))
        assert seen == {"layer"}
        seen.clear()
        board.is_prompt_pass = False
        block(perturbed, tokens(2))
    assert seen == set()


def test_neighbours_pictures_of_their_own_see_no_exemplar(attention, board):
    outputs = []
    patcher, layers, block = patched(attention, board)

    def modifier(*asked):
        outputs.append(block(patcher, tokens(2)))
        return asked

    patcher = patched_clone(
        Patcher({"transformer_options": {}, "conditioning_modifiers": [modifier]}), board, {PLACE: attention}
    )
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate) as seen:
        assert patcher.model_options["conditioning_modifiers"][0]("x") == ("x",)
    assert torch.equal(outputs[0], attention(tokens(2)))
    assert seen == set()


def test_a_suspended_layer_sees_nothing(attention, board):
    patcher, layers, block = patched(attention, board)
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate) as seen, suspended():
        assert torch.equal(block(patcher, tokens(2)), attention(tokens(2)))
    assert seen == set()


def test_the_hosts_own_patcher_and_a_clone_of_the_clone_have_functions_only(attention, board):
    host = Patcher()
    clone = patched_clone(host, board, {PLACE: attention})
    assert host.model_options == {"transformer_options": {}}
    assert clone.model_options != host.model_options
    assert clone.clone().model_options == clone.model_options


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("input_blocks.4.1.transformer_blocks.0.attn1", ("input", 4, 0)),
        ("middle_block.1.transformer_blocks.9.attn1", ("middle", 0, 9)),
        ("output_blocks.11.1.transformer_blocks.1.attn1", ("output", 11, 1)),
    ],
)
def test_a_layers_place_by_its_name(name, place):
    assert block_key(name) == place
