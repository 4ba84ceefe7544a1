"""Injection through Forge's patcher, on a stand-in for the patcher and for a transformer block."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rival_ext.hosts.webui.backends.patches import PatchedLayer, PatchState, block_key, patched_clone, replaced_blocks
from rival_ext.method.attention import record, suspended
from rival_ext.method.injection import concatenate, inject, replace
from rival_ext.method.layers import HookedLayer

BLOCK = ("input", 1, 0)
BOTH_PROMPTS, COND_ONLY = [1, 0], [0]
"""Forge's marks on the parts of a batch: 0 with the prompt, 1 with the negative prompt."""


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
    """As much of the patcher as RIVAL uses. A clone copies its options deeply."""

    def __init__(self, options=None):
        self.model_options = options or {"transformer_options": {}}

    def clone(self):
        return Patcher(copy.deepcopy(self.model_options))

    def set_model_attn1_patch(self, function):
        patches = self.model_options["transformer_options"].setdefault("patches", {})
        patches["attn1_patch"] = [*patches.get("attn1_patch", []), function]


class Block:
    """A transformer block around `attention`, in the host's order."""

    def __init__(self, attention, key=BLOCK):
        self.attention = attention
        self.key = key

    def __call__(self, patcher, n, chunks=BOTH_PROMPTS):
        options = patcher.model_options["transformer_options"]
        extra = {"block": self.key[:2], "block_index": self.key[2], "cond_or_uncond": chunks}
        patches = options.get("patches", {})
        context = value = None
        for function in patches.get("attn1_patch", []):
            context, value = (n, n) if context is None else (context, value)
            n, context, value = function(n, context, value, extra)
        replaced = options.get("patches_replace", {}).get("attn1", {}).get(self.key)
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
def state():
    return PatchState()


def tokens(rows, number=6, seed=0):
    return torch.randn(rows, number, 8, generator=torch.Generator().manual_seed(seed))


def patched(attention, state, options=None, key=BLOCK):
    return (
        patched_clone(Patcher(options), state, {key: attention}),
        {"layer": PatchedLayer(key, attention, state)},
        Block(attention, key),
    )


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("context", [replace, concatenate])
def test_the_layer_gives_what_it_gives_with_torchs_own_hooks(attention, state, context, strength):
    patcher, layers, block = patched(attention, state)
    own, exemplar = tokens(4), tokens(1, 9, seed=1)
    with inject({"layer": HookedLayer(attention)}, {"layer": exemplar}, context, strength=strength):
        expected = attention(own)
    with inject(layers, {"layer": exemplar}, context, strength=strength) as seen:
        assert torch.equal(block(patcher, own), expected)
    assert seen == {"layer"}
    assert not torch.equal(expected, attention(own))


def test_after_a_fault_the_layer_is_as_it_was(attention, state):
    patcher, layers, block = patched(attention, state)
    own = tokens(2)
    untouched = attention(own)
    # the second call of the layer's own forward: the usual output is there, the other is not
    attention.register_forward_pre_hook(FailingAt(2))
    with inject(layers, {"layer": tokens(1)}, replace, strength=0.5), pytest.raises(FaultError):
        block(patcher, own)
    assert (state.overrides, state.calls) == ({}, {})
    assert torch.equal(block(patcher, own), untouched)


def test_the_exemplars_tokens_are_recorded(attention, state):
    patcher, layers, block = patched(attention, state)
    with record(layers) as features:
        assert torch.equal(block(patcher, tokens(1), COND_ONLY), attention(tokens(1)))
    assert torch.equal(features["layer"], tokens(1))


@pytest.mark.parametrize("chunks", [[1, 0], [0, 1], [1, 0, 0]])
def test_each_row_sees_the_exemplars_row_of_the_same_prompt_in_the_hosts_order(attention, state, chunks):
    patcher, layers, block = patched(attention, state)
    own, (ungiven, given) = tokens(2 * len(chunks)), tokens(2, 9, seed=1).split(1)
    # the order that is told in advance is not the host's
    with inject(layers, {"layer": torch.cat([ungiven, given])}, replace, cond_or_uncond=[]):
        output = block(patcher, own, chunks)
    for index, chunk in enumerate(chunks):
        rows = own[2 * index : 2 * index + 2]
        seen = (given if chunk == 0 else ungiven).expand(2, -1, -1)
        assert torch.allclose(output[2 * index : 2 * index + 2], attention(rows, seen), atol=1e-6)


def test_tokens_that_another_extension_merges_are_parted_again_after_mixing(attention, state):
    def merge(n, context, value, extra):
        return n[:, ::2], context[:, ::2], value[:, ::2]

    def part(n, extra):
        return n.repeat_interleave(2, dim=1)

    options = {"transformer_options": {"patches": {"attn1_patch": [merge], "attn1_output_patch": [part]}}}
    patcher, layers, block = patched(attention, state, options)
    own = tokens(2)
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate, strength=0.5):
        assert block(patcher, own).shape == own.shape
    assert state.calls == {}


@pytest.mark.parametrize("context", [replace, concatenate])
def test_the_context_stays_whole_if_another_extension_merges_only_the_queries(attention, state, context):
    def merge(n, context, value, extra):
        return n[:, ::2], context, value

    options = {"transformer_options": {"patches": {"attn1_patch": [merge]}}}
    patcher, layers, block = patched(attention, state, options)
    own, exemplar = tokens(1), tokens(1, 9, seed=1)
    with inject(layers, {"layer": exemplar}, context):
        output = block(patcher, own, COND_ONLY)
    seen = exemplar if context is replace else torch.cat([own, exemplar], 1)
    assert torch.equal(output, attention(own[:, ::2], seen))


def test_keys_that_another_extension_has_changed_stay_apart_from_the_values(attention, state):
    def louder(n, context, value, extra):
        return n, 2 * context, value

    options = {"transformer_options": {"patches": {"attn1_patch": [louder]}}}
    patcher, layers, block = patched(attention, state, options)
    own, exemplar = tokens(1), tokens(1, 3, seed=1)
    with inject(layers, {"layer": exemplar}, concatenate):
        output = block(patcher, own, COND_ONLY)
    keys, values = torch.cat([2 * own, exemplar], 1), torch.cat([own, exemplar], 1)
    assert torch.equal(output, attention(own, keys, values))


def square_only(q, k, v, extra):
    assert q.shape == k.shape == v.shape
    return v


@pytest.mark.parametrize("module", [None, "forge_stylealign.py"])
def test_a_replacement_that_accepts_one_images_tokens_only_keeps_its_layer(attention, state, module):
    seen_keys = []

    def standing_in(q, k, v, extra):
        seen_keys.append(k.shape[1])
        return q

    standing_in.__module__ = module
    options = {"transformer_options": {"patches_replace": {"attn1": {BLOCK: standing_in}}}}
    patcher, layers, block = patched(attention, state, options)
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate) as seen:
        block(patcher, tokens(2))
    longer = module is not None
    assert seen_keys == [6 + 9 * longer]
    assert (seen == {"layer"}) == longer
    assert (BLOCK in replaced_blocks(patcher.model_options)) != longer


def test_the_middle_block_sees_no_exemplar_outside_the_prompts_pass(attention, state):
    key = ("middle", 0, 0)
    # as perturbed attention guidance adds it after the prompts' pass
    patcher, layers, block = patched(attention, state, key=key)
    perturbed = patcher.clone()
    perturbed.model_options["transformer_options"]["patches_replace"] = {"attn1": {key: square_only}}
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate) as seen:
        block(patcher, tokens(2))
        assert seen == {"layer"}
        seen.clear()
        state.is_prompt_pass = False
        block(perturbed, tokens(2))
    assert seen == set()


def test_images_that_another_extension_evaluates_see_no_exemplar(attention, state):
    outputs = []
    patcher, layers, block = patched(attention, state)

    def modifier(*asked):
        outputs.append(block(patcher, tokens(2)))
        return asked

    patcher = patched_clone(
        Patcher({"transformer_options": {}, "conditioning_modifiers": [modifier]}), state, {BLOCK: attention}
    )
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate) as seen:
        assert patcher.model_options["conditioning_modifiers"][0]("x") == ("x",)
    assert torch.equal(outputs[0], attention(tokens(2)))
    assert seen == set()


def test_a_suspended_layer_sees_nothing(attention, state):
    patcher, layers, block = patched(attention, state)
    with inject(layers, {"layer": tokens(1, 9, seed=1)}, concatenate) as seen, suspended():
        assert torch.equal(block(patcher, tokens(2)), attention(tokens(2)))
    assert seen == set()


def test_the_hosts_patcher_stays_as_it_is_and_a_clone_can_be_cloned(attention, state):
    host = Patcher()
    clone = patched_clone(host, state, {BLOCK: attention})
    assert host.model_options == {"transformer_options": {}}
    assert clone.model_options != host.model_options
    assert clone.clone().model_options == clone.model_options


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("input_blocks.4.1.transformer_blocks.0.attn1", ("input", 4, 0)),
        ("middle_block.1.transformer_blocks.9.attn1", ("middle", 0, 9)),
        ("output_blocks.11.1.transformer_blocks.1.attn1", ("output", 11, 1)),
    ],
)
def test_a_layers_block_by_its_name(name, key):
    assert block_key(name) == key
