"""What the self-attention layers record, and what they see while an exemplar is injected."""

from __future__ import annotations

import functools

import pytest
import torch

from rival_ext.method.attention import record, suspended
from rival_ext.method.injection import concatenate, inject, replace
from rival_ext.method.layers import HookedLayer, count_rows, self_attention_layers
from tests.unit.tiny_unet import LdmAttention, hooks, tokens

# recording


def test_record_collects_the_input_of_each_layer_detached(unet, evaluate):
    layers = self_attention_layers(unet)
    with record(layers) as features:
        evaluate()
    assert list(features) == list(layers)
    assert torch.equal(features["blocks.0.attn1"], tokens(3))
    for name, layer in layers.items():
        assert torch.equal(features[name], layer.module.contexts[-1])

    unet.requires_grad_(True)
    with record(layers) as features:
        assert evaluate().requires_grad
    assert not features["blocks.1.attn1"].requires_grad


def test_record_keeps_the_last_of_several_evaluations(unet):
    with record(self_attention_layers(unet)) as features:
        for seed in (4, 5):
            unet(tokens(1, seed=seed), tokens(1, 5))
    assert torch.equal(features["blocks.0.attn1"], tokens(1, seed=5))


# injecting


def expected_context(own, exemplar, join):
    return exemplar if join is replace else torch.cat([own, exemplar], dim=1)


@pytest.mark.parametrize("join", [replace, concatenate])
@pytest.mark.parametrize("positional", [True, False])
def test_one_exemplar_is_seen_by_each_row_of_a_batch(unet, join, positional):
    layer, exemplar = unet.blocks[0].attn1, tokens(1, 7, seed=9)
    own_name = "x" if isinstance(layer, LdmAttention) else "hidden_states"
    with inject({"layer": HookedLayer(layer)}, {"layer": exemplar}, join) as seen:
        output = layer(tokens(3)) if positional else layer(**{own_name: tokens(3)})
    assert seen == {"layer"}
    for row in range(3):
        own = tokens(3)[row : row + 1]
        alone = layer(own, expected_context(own, exemplar, join))
        assert (output[row : row + 1] - alone).abs().max() < 1e-6


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("join", [replace, concatenate])
def test_rows_with_and_without_the_prompt_see_their_own_exemplar_row(unet, join, whole):
    layer, exemplars = unet.blocks[0].attn1, tokens(2, 7, seed=9)
    batch = tokens(6)
    cond_or_uncond = [1, 1, 0, 1, 0, 0]
    with inject({"layer": HookedLayer(layer)}, {"layer": exemplars}, join, cond_or_uncond):
        # the host may evaluate its rows in one call or in several
        output = layer(batch) if whole else torch.cat([layer(batch[:4]), layer(batch[4:])])
    for row, mark in enumerate(cond_or_uncond):
        own = batch[row : row + 1]
        alone = layer(own, expected_context(own, exemplars[mark : mark + 1], join))
        assert (output[row : row + 1] - alone).abs().max() < 1e-6


def test_the_other_arguments_of_the_call_are_kept(unet):
    layer = unet.blocks[0].attn1
    mask_name = "mask" if isinstance(layer, LdmAttention) else "attention_mask"
    given = {}
    forward = layer.forward

    @functools.wraps(forward)
    def spying(*args, **kwargs):
        given.update(kwargs, args=args)
        return forward(*args, **kwargs)

    layer.forward = spying
    with inject({"layer": HookedLayer(layer)}, {"layer": tokens(1, 7)}, replace):
        layer(tokens(2), **{mask_name: "a mask"})
    assert "a mask" in [*given["args"], given.get(mask_name)]
    assert torch.equal(given["args"][0], tokens(2))


def test_cross_attention_sees_the_text_as_before(unet, features, evaluate):
    with inject(self_attention_layers(unet), features, replace):
        evaluate()
    for block in unet.blocks:
        assert torch.equal(block.attn2.contexts[-1], tokens(3, 5, seed=1))


def test_a_layer_without_features_runs_untouched(unet, features, evaluate):
    with inject(self_attention_layers(unet), {"blocks.1.attn1": features["blocks.1.attn1"]}, replace) as seen:
        evaluate()
    assert seen == {"blocks.1.attn1"}
    assert torch.equal(unet.blocks[0].attn1.contexts[-1], tokens(3))
    assert torch.equal(unet.blocks[1].attn1.contexts[-1], features["blocks.1.attn1"].expand(3, -1, -1))


@pytest.mark.parametrize("join", [replace, concatenate])
def test_features_take_the_type_of_the_generation(unet, join):
    layer = unet.blocks[0].attn1.double()
    with inject({"layer": HookedLayer(layer)}, {"layer": tokens(1, 7).half()}, join):
        output = layer(tokens(2).double())
    assert output.dtype == torch.float64


def test_tokens_that_another_extension_appended_stay_beside_the_exemplar(unet):
    layer, own, appended, exemplar = unet.blocks[0].attn1, tokens(1), tokens(1, 2, seed=5), tokens(1, 3, seed=6)
    longer = torch.cat([own, appended], dim=1)
    for join, seen in ((replace, [exemplar]), (concatenate, [own, exemplar])):
        with inject({"layer": HookedLayer(layer)}, {"layer": exemplar}, join):
            layer(own, longer)
        assert torch.equal(layer.contexts[-1], torch.cat([*seen, appended], dim=1))


def test_suspended_layers_neither_record_nor_see_the_exemplar(unet):
    layer, own = unet.blocks[0].attn1, tokens(1)
    with inject({"layer": HookedLayer(layer)}, {"layer": tokens(1, 3, seed=6)}, concatenate) as seen, suspended():
        layer(own)
    with record({"layer": HookedLayer(layer)}) as features, suspended():
        layer(own)
    assert torch.equal(layer.contexts[-2], own)
    assert (seen, features) == (set(), {})


def test_an_inner_injection_adds_to_the_context_of_the_outer_one(unet):
    layer, first, second = unet.blocks[0].attn1, tokens(1, 2, seed=5), tokens(1, 3, seed=6)
    own = tokens(1)
    with inject({"layer": HookedLayer(layer)}, {"layer": first}, concatenate):
        with inject({"layer": HookedLayer(layer)}, {"layer": second}, concatenate):
            layer(own)
        assert torch.equal(layer.contexts[-1], torch.cat([own, second, first], dim=1))
        layer(own)
        assert torch.equal(layer.contexts[-1], torch.cat([own, first], dim=1))
    layer(own)
    assert torch.equal(layer.contexts[-1], own)


def test_an_inner_record_keeps_the_layers_own_input_whatever_is_injected(unet):
    layer, exemplar = unet.blocks[0].attn1, tokens(1, 2, seed=5)
    with (
        inject({"layer": HookedLayer(layer)}, {"layer": exemplar}, replace),
        record({"layer": HookedLayer(layer)}) as features,
    ):
        layer(tokens(1))
    assert torch.equal(features["layer"], tokens(1))
    assert torch.equal(layer.contexts[-1], exemplar)


# layers whose forward another extension has replaced


def own_signature(layer):
    def forward(first, second=None, third=None):
        return layer.attend(first, second)

    return forward


def wrapped(layer):
    forward = layer.forward

    @functools.wraps(forward)
    def wrapper(*args, **kwargs):
        return forward(*args, **kwargs)

    return wrapper


def partial(layer):
    return functools.partial(type(layer).forward, layer)


def bare_wrapper(layer):
    forward = layer.forward
    return lambda *args, **kwargs: forward(*args, **kwargs)


@pytest.mark.parametrize(
    "replacement",
    [
        own_signature,
        wrapped,
        partial,
        bare_wrapper,
    ],
)
def test_a_layer_whose_forward_was_replaced_still_works(unet, replacement):
    layer, exemplar = unet.blocks[0].attn1, tokens(1, 7, seed=9)
    expected = layer(tokens(2), exemplar.repeat(2, 1, 1))
    layer.forward = replacement(layer)
    with (
        record({"layer": HookedLayer(layer)}) as features,
        inject({"layer": HookedLayer(layer)}, {"layer": exemplar}, replace) as seen,
    ):
        output = layer(tokens(2))
    assert torch.equal(features["layer"], tokens(2))
    assert seen == {"layer"}
    assert (output - expected).abs().max() < 1e-6
    assert "forward" in vars(layer)
    assert hooks(unet) == []


# finding layers and counting rows


def test_self_attention_layers_are_the_attn1_in_network_order(unet, pipeline):
    assert list(self_attention_layers(unet)) == ["blocks.0.attn1", "blocks.1.attn1"]
    names = list(self_attention_layers(pipeline.unet))
    assert len(names) == 10
    assert names == [name for name, _ in pipeline.unet.named_modules() if name.endswith(".attn1")]


def test_count_rows_has_one_entry_for_each_evaluation(unet):
    with count_rows(unet) as rows:
        unet(tokens(3), tokens(3, 5))
        unet(tokens=tokens(2), text=tokens(2, 5))
        unet(tokens(1), text=tokens(1, 5))
    unet(tokens(1), tokens(1, 5))
    assert rows == [3, 2, 1]
