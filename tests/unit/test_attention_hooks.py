"""Record, inject and count_rows: what the layers see, and that nothing is left behind after any exit."""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch import nn

from rival_ext.errors import Interrupted, RivalError
from rival_ext.method.attention import concatenate, inject, record, replace, suspended
from rival_ext.method.layers import HookedLayer, count_rows, self_attention_layers, self_attention_modules
from rival_ext.method.prepare import prepare
from rival_ext.method.tokens import TokenSubset
from rival_ext.settings import parse_settings
from rival_ext.storage.store import NoStore

WIDTH = 6


class Attention(nn.Module):
    """Attention in its plainest form; `fault` is raised in the middle of it."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.fault = None
        self.contexts = []

    def attend(self, tokens, context):
        context = tokens if context is None else context
        self.contexts.append(context)
        queries, keys, values = self.to_q(tokens), self.to_k(context), self.to_v(context)
        if self.fault is not None:
            raise self.fault
        return (queries @ keys.transpose(1, 2)).softmax(-1) @ values


class LdmAttention(Attention):
    def forward(self, x, context=None, mask=None):
        return self.attend(x, context)


class DiffusersAttention(Attention):
    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None):
        return self.attend(hidden_states, encoder_hidden_states)


class Block(nn.Module):
    """Calls its layers as ldm and diffusers do: the tokens by position, the rest by name."""

    def __init__(self, attention):
        super().__init__()
        self.attn1, self.attn2 = attention(), attention()
        self.name_of_context = "context" if attention is LdmAttention else "encoder_hidden_states"

    def forward(self, tokens, text):
        tokens = tokens + self.attn1(tokens, **{self.name_of_context: None})
        return tokens + self.attn2(tokens, **{self.name_of_context: text})


class TinyUNet(nn.Module):
    """Two blocks, each with an `attn1` on itself and an `attn2` on the text."""

    def __init__(self, attention):
        super().__init__()
        self.blocks = nn.ModuleList([Block(attention), Block(attention)])

    def forward(self, tokens, text):
        for block in self.blocks:
            tokens = block(tokens, text)
        return tokens


def tokens(rows, count=4, seed=0):
    return torch.randn(rows, count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[LdmAttention, DiffusersAttention])
def unet(request):
    torch.manual_seed(0)
    return TinyUNet(request.param).requires_grad_(False)


@pytest.fixture
def evaluate(unet):
    """One evaluation of three rows."""
    return lambda: unet(tokens(3), tokens(3, 5, seed=1))


@pytest.fixture
def features(unet):
    """What the layers see of one exemplar."""
    with record(self_attention_layers(unet)) as seen:
        unet(tokens(1, seed=2), tokens(1, 5, seed=3))
    return seen


def hooks(root):
    """Names of the modules that have a hook of any kind."""
    kinds = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_backward_hooks")
    return [name for name, module in root.named_modules() if any(getattr(module, kind) for kind in kinds)]


class OtherInterrupt(BaseException):
    """Derives from BaseException alone, as KeyboardInterrupt does."""


FAULTS = {
    "an exception": ValueError("fault"),
    "a keyboard interrupt": KeyboardInterrupt(),
    "another BaseException": OtherInterrupt(),
    "out of memory": torch.OutOfMemoryError("fault"),
    "a generator's exit": GeneratorExit(),
}

MANAGERS = {
    "record": lambda unet, layers, features: [record(layers)],
    "replace": lambda unet, layers, features: [inject(layers, features, replace)],
    "concatenate": lambda unet, layers, features: [inject(layers, features, concatenate)],
    "count_rows": lambda unet, layers, features: [count_rows(unet)],
    "all nested": lambda unet, layers, features: [
        count_rows(unet),
        inject(layers, features, concatenate),
        record(layers),
        inject(layers, features, replace),
    ],
}


@contextmanager
def entered(managers):
    with ExitStack() as stack:
        yield [stack.enter_context(manager) for manager in managers]


@contextmanager
def raising(layer, fault):
    """The real layer raises `fault` instead of its forward's result."""

    def forward(*args, **kwargs):
        type(layer).forward(layer, *args, **kwargs)
        raise fault

    layer.forward = functools.wraps(layer.forward)(forward)
    try:
        yield
    finally:
        del layer.forward


# nothing is left behind


@pytest.mark.parametrize("managers", MANAGERS.values(), ids=MANAGERS.keys())
def test_after_a_normal_exit_no_hook_is_left_and_the_output_is_bit_identical(unet, features, evaluate, managers):
    before = evaluate()
    with entered(managers(unet, self_attention_layers(unet), features)):
        assert hooks(unet) != []
        evaluate()
    assert hooks(unet) == []
    assert torch.equal(evaluate(), before)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("managers", MANAGERS.values(), ids=MANAGERS.keys())
def test_after_a_fault_in_a_layer_no_hook_is_left_and_the_output_is_bit_identical(
    unet, features, evaluate, managers, fault
):
    before = evaluate()
    layer = unet.blocks[1].attn1
    layer.fault = fault
    with pytest.raises(type(fault)) as raised, entered(managers(unet, self_attention_layers(unet), features)):
        evaluate()
    assert raised.value is fault
    layer.fault = None
    assert hooks(unet) == []
    assert torch.equal(evaluate(), before)


@pytest.fixture
def evaluate_real(make_host):
    """(the trained model's UNet, one evaluation of two rows by it, features of one exemplar)."""
    host = make_host()
    level = host.noise_levels()[8].item()
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with record(self_attention_layers(host.unet)) as features:
        host.predict_noise(latents[:1] + 1, level)
    prompts = torch.cat([host.embeddings.negative, host.embeddings.prompt])
    return host.unet, torch.no_grad()(lambda: host.evaluate(latents, level, prompts)), features


@pytest.mark.parametrize("fault", [None, *FAULTS.values()], ids=["no fault", *FAULTS])
def test_the_trained_unet_is_as_before_after_any_exit(evaluate_real, fault):
    unet, evaluate, features = evaluate_real
    layers = self_attention_layers(unet)
    assert hooks(unet) == []
    before = evaluate()
    middle = list(self_attention_modules(unet).values())[len(layers) // 2]
    for managers in MANAGERS.values():
        with ExitStack() as stack:
            if fault is not None:
                stack.enter_context(pytest.raises(type(fault)))
                stack.enter_context(raising(middle, fault))
            with entered(managers(unet, layers, features)):
                assert hooks(unet) != []
                evaluate()
        assert hooks(unet) == []
    assert torch.equal(evaluate(), before)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_in_a_guided_evaluation_leaves_no_hook(make_host, make_live_guide, sample, fault):
    host = make_host(steps=3)
    guide = make_live_guide(host, alignment="off")
    start = guide.start([1], host.latent_size)
    # in the exemplar's own evaluation, then in the generation's
    for healthy in (0, 1):
        left = healthy
        evaluate = host.evaluate

        def failing(*args, evaluate=evaluate):
            nonlocal left
            left -= 1
            if left < 0:
                with raising(host.unet.mid_block.attentions[0].transformer_blocks[0].attn1, fault):
                    return evaluate(*args)
            return evaluate(*args)

        host.evaluate = failing
        with pytest.raises(type(fault)):
            sample(host, start, [1], guide)
        host.evaluate = evaluate
        assert hooks(host.unet) == []


@pytest.mark.parametrize("fault", [Interrupted("2 of 5"), *FAULTS.values()], ids=["stopped by the user", *FAULTS])
def test_a_stop_in_the_middle_of_the_inversion_leaves_no_hook(make_host, fault):
    host = make_host(steps=5)

    def progress(done, total):
        if done == 2:
            raise fault

    host.progress = progress
    with pytest.raises(type(fault)):
        prepare(host, parse_settings({}), NoStore())
    assert hooks(host.unet) == []


def test_a_layer_that_refuses_its_hook_leaves_none_on_those_before_it(unet, features):
    class Refusing(LdmAttention):
        def register_forward_pre_hook(self, *args, **kwargs):
            raise RuntimeError("no hooks here")

    layers = self_attention_layers(unet) | {"refusing": HookedLayer(Refusing())}
    for manager in (record(layers), inject(layers, features | {"refusing": tokens(1)}, replace)):
        with pytest.raises(RuntimeError, match="no hooks here"), manager:
            pass
        assert hooks(unet) == []


def test_hooks_of_others_stay(unet, features, evaluate):
    calls = []
    handles = [
        layer.register_forward_pre_hook(lambda *_: calls.append(1)) for layer in self_attention_modules(unet).values()
    ]
    with inject(self_attention_layers(unet), features, replace):
        evaluate()
    assert len(calls) == 2
    evaluate()
    assert len(calls) == 4
    for handle in handles:
        handle.remove()
    assert hooks(unet) == []


def test_an_injection_in_which_no_layer_ran_is_an_error_of_the_guide(make_host, make_live_guide):
    host = make_host(steps=3)
    guide = make_live_guide(host, alignment="off")
    with pytest.raises(RivalError, match="no self-attention layer saw the exemplar"):
        guide.guided_noise(host.noise_levels()[-1].item(), lambda: torch.zeros(1, 4, 16, 16))
    assert hooks(host.unet) == []


# what the layers see


def test_self_attention_layers_are_the_attn1_in_network_order(unet, pipeline):
    assert list(self_attention_layers(unet)) == ["blocks.0.attn1", "blocks.1.attn1"]
    names = list(self_attention_layers(pipeline.unet))
    assert len(names) == 10
    assert names == [name for name, _ in pipeline.unet.named_modules() if name.endswith(".attn1")]


def test_record_collects_each_layers_input_detached(unet, evaluate):
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


def expected_context(own, exemplar, context):
    return exemplar if context is replace else torch.cat([own, exemplar], dim=1)


@pytest.mark.parametrize("context", [replace, concatenate])
@pytest.mark.parametrize("positional", [True, False])
def test_one_exemplar_is_seen_by_each_row_of_a_batch(unet, context, positional):
    layer, exemplar = unet.blocks[0].attn1, tokens(1, 7, seed=9)
    own_name = "x" if isinstance(layer, LdmAttention) else "hidden_states"
    with inject({"layer": HookedLayer(layer)}, {"layer": exemplar}, context) as seen:
        output = layer(tokens(3)) if positional else layer(**{own_name: tokens(3)})
    assert seen == {"layer"}
    for row in range(3):
        own = tokens(3)[row : row + 1]
        alone = layer(own, expected_context(own, exemplar, context))
        assert (output[row : row + 1] - alone).abs().max() < 1e-6


@pytest.mark.parametrize("fraction", [0.25, 0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("side", [4, 8, 13, 16, 64])
def test_a_part_of_the_exemplars_tokens_is_seen_in_their_order(fraction, side):
    own = torch.full((2, 3, 1), -1.0)
    exemplar = torch.arange(float(side * side)).view(1, -1, 1).expand(2, -1, -1)
    context = concatenate(own, TokenSubset(fraction).of(exemplar))
    assert torch.equal(context[:, :3], own)
    kept = context[0, 3:, 0]
    assert torch.equal(context[1, 3:, 0], kept)
    assert len(kept) == pytest.approx(fraction * side * side, abs=2)
    assert (kept.diff() > 0).all()
    # no long gap in the reading order, nor at its end: each row of the picture is seen
    assert kept[0] < 1 / fraction
    assert kept.diff().max() <= 2 / fraction
    assert kept[-1] >= side * side - 2 / fraction


def test_a_part_of_the_exemplars_tokens_leaves_no_column_out():
    for side in (*range(8, 40), 48, 55, 64, 89, 96, 128):
        exemplar = torch.arange(side * side).view(1, -1, 1)
        columns = TokenSubset(0.25).of(exemplar) % side
        assert len(columns.unique()) == side


def test_all_of_the_exemplars_tokens_is_the_concatenated_form():
    own, exemplar = tokens(1), tokens(1, 7, seed=9)
    assert torch.equal(concatenate(own, TokenSubset(1.0).of(exemplar)), concatenate(own, exemplar))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("context", [replace, concatenate])
def test_two_exemplar_rows_are_seen_by_their_own_halves(unet, context, whole):
    layer, exemplars = unet.blocks[0].attn1, tokens(2, 7, seed=9)
    batch = tokens(6)
    halves = [1, 1, 0, 1, 0, 0]
    with inject({"layer": HookedLayer(layer)}, {"layer": exemplars}, context, halves):
        # the host may evaluate its rows in one call or in several
        output = layer(batch) if whole else torch.cat([layer(batch[:4]), layer(batch[4:])])
    for row, half in enumerate(halves):
        own = batch[row : row + 1]
        alone = layer(own, expected_context(own, exemplars[half : half + 1], context))
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


@pytest.mark.parametrize("context", [replace, concatenate])
def test_features_take_the_generations_type(unet, context):
    layer = unet.blocks[0].attn1.double()
    with inject({"layer": HookedLayer(layer)}, {"layer": tokens(1, 7).half()}, context):
        output = layer(tokens(2).double())
    assert output.dtype == torch.float64


def test_what_a_neighbour_appended_to_the_own_tokens_stays_beside_the_exemplar(unet):
    layer, own, appended, exemplar = unet.blocks[0].attn1, tokens(1), tokens(1, 2, seed=5), tokens(1, 3, seed=6)
    longer = torch.cat([own, appended], dim=1)
    for context, seen in ((replace, [exemplar]), (concatenate, [own, exemplar])):
        with inject({"layer": HookedLayer(layer)}, {"layer": exemplar}, context):
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


def test_an_inner_injection_adds_to_the_outer_ones_context(unet):
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


def test_an_inner_record_sees_the_outer_injections_context(unet):
    layer, exemplar = unet.blocks[0].attn1, tokens(1, 2, seed=5)
    with (
        inject({"layer": HookedLayer(layer)}, {"layer": exemplar}, replace),
        record({"layer": HookedLayer(layer)}) as features,
    ):
        layer(tokens(1))
    assert torch.equal(features["layer"], exemplar)


# layers whose forward is someone else's


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


# count_rows


def test_count_rows_has_one_entry_an_evaluation(unet):
    with count_rows(unet) as rows:
        unet(tokens(3), tokens(3, 5))
        unet(tokens=tokens(2), text=tokens(2, 5))
        unet(tokens(1), text=tokens(1, 5))
    unet(tokens(1), tokens(1, 5))
    assert rows == [3, 2, 1]
