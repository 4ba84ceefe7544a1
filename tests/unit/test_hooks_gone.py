"""After any exit, no hook of RIVAL is left and the UNet computes what it computed before."""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager

import pytest
import torch

from rival_ext.errors import Interrupted, RivalError
from rival_ext.method.attention import record
from rival_ext.method.injection import concatenate, inject, replace
from rival_ext.method.layers import HookedLayer, count_rows, self_attention_layers, self_attention_modules
from rival_ext.method.prepare import prepare
from rival_ext.settings import parse_settings
from rival_ext.storage.store import NoStore
from tests.conftest import quick
from tests.unit.tiny_unet import LdmAttention, hooks, tokens


class OtherInterrupt(BaseException):
    """Derives from BaseException alone, as KeyboardInterrupt does."""


FAULTS = {
    "an exception": ValueError("fault"),
    "a keyboard interrupt": KeyboardInterrupt(),
    "another BaseException": OtherInterrupt(),
    "out of memory": torch.OutOfMemoryError("fault"),
    "a generator's exit": GeneratorExit(),
}

QUICK_FAULTS = (FAULTS["an exception"], FAULTS["another BaseException"])
"""The faults of the quick run on the trained UNet; the small one meets them all."""

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
def evaluate_trained(make_host):
    """(the trained UNet, a function that evaluates two rows with it, the features of one exemplar)."""
    host = make_host()
    level = host.noise_levels()[8].item()
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with record(self_attention_layers(host.unet)) as features:
        host.predict_noise(latents[:1] + 1, level)
    prompts = torch.cat([host.embeddings.negative, host.embeddings.prompt])
    return host.unet, torch.no_grad()(lambda: host.evaluate(latents, level, prompts)), features


@pytest.mark.parametrize("fault", quick([None, *FAULTS.values()], None, *QUICK_FAULTS), ids=["no fault", *FAULTS])
def test_after_any_exit_the_trained_unet_is_as_before(evaluate_trained, fault):
    unet, evaluate, features = evaluate_trained
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


@pytest.mark.parametrize("fault", quick(FAULTS.values(), *QUICK_FAULTS), ids=FAULTS.keys())
def test_a_fault_in_a_guided_evaluation_leaves_no_hook(make_host, make_live_guide, sample, fault):
    host = make_host(steps=3)
    guide = make_live_guide(host, alignment="off")
    start = host.start([1], guide)
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


def test_if_a_layer_refuses_its_hook_no_hook_stays_on_the_layers_before(unet, features):
    class Refusing(LdmAttention):
        def register_forward_pre_hook(self, *args, **kwargs):
            raise RuntimeError("no hooks here")

    layers = self_attention_layers(unet) | {"refusing": HookedLayer(Refusing())}
    for manager in (record(layers), inject(layers, features | {"refusing": tokens(1)}, replace)):
        with pytest.raises(RuntimeError, match="no hooks here"), manager:
            pass
        assert hooks(unet) == []


def test_hooks_of_other_extensions_stay(unet, features, evaluate):
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


@pytest.mark.parametrize("features", ["recorded", "live"])
def test_layers_that_are_never_called_are_noticed_in_the_first_evaluation(make_host, features):
    """torch.compile and other extensions can replace the forward that calls them."""
    host = make_host(steps=4)
    calls = []

    def predict(latent, level):
        calls.append(level)
        return latent * 0.1

    host.predict_noise = predict
    with pytest.raises(RivalError, match="no self-attention layer saw the exemplar"):
        prepare(host, parse_settings({"features": features}), NoStore())
    assert len(calls) == 1
    assert hooks(host.unet) == []


def test_if_no_layer_runs_the_guide_raises_an_error_and_leaves_no_hook(make_host, make_live_guide):
    host = make_host(steps=3)
    guide = make_live_guide(host, alignment="off")
    with pytest.raises(RivalError, match="no self-attention layer saw the exemplar"):
        guide.guided_noise(host.noise_levels()[-1].item(), lambda: torch.zeros(1, 4, 16, 16))
    assert hooks(host.unet) == []
