"""Switched off, or given the generation's own features, RIVAL changes nothing (METHOD section 8)."""

from __future__ import annotations

import pytest
import torch

from rival_ext.method.attention import record
from rival_ext.method.guide import Guide
from rival_ext.method.injection import concatenate, inject, replace
from rival_ext.method.layers import self_attention_layers
from rival_ext.method.noise import scale_to_vp
from rival_ext.method.prepare import prepare
from rival_ext.settings import parse_settings
from rival_ext.storage.store import NoStore
from tests.conftest import quiet
from tests.unit.synthetic import noise


def test_a_guide_with_every_switch_off_changes_no_bit(make_host):
    for sampler in ("ddim", "euler-a", "dpm++2m"):
        host = make_host(prompt="a pizza", sampler=sampler, steps=4)
        exemplars = prepare(host, parse_settings({}), NoStore()).guide.exemplars
        idle = Guide(exemplars, parse_settings({"alignment": "off"}), host.schedule, {}, host.predict_noise)
        start = host.start([5], None)
        assert torch.equal(host.sample(start, [5], idle, quiet), host.sample(start, [5], None, quiet))
        assert (idle.counts.steps.total, idle.counts.steps.injected, idle.counts.steps.aligned) == (4, 0, 0)


def test_sampling_without_a_guide_is_what_the_diffusers_pipeline_does(pipeline, make_host, sample):
    host = make_host(prompt="a taxi", steps=6)
    start = host.start([5], None)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a taxi",
        latents=start * scale_to_vp(host.noise_levels()[-1].item()),
        num_inference_steps=6,
        guidance_scale=5.0,
        output_type="latent",
    ).images
    assert (sample(host, start, [5], None) - expected).abs().max() < 1e-5


# the generation's own features


@pytest.fixture
def evaluation(make_host):
    """(the UNet's layers, a function that evaluates two latents with both prompts: four rows)."""
    host = make_host(prompt="a taxi")
    latents = noise(2, 4, 16, 16)
    prompts = torch.cat(
        [host.embeddings.negative, host.embeddings.negative, host.embeddings.prompt, host.embeddings.prompt]
    )
    level = host.noise_levels()[10].item()
    evaluate = torch.no_grad()(lambda: host.evaluate(torch.cat([latents, latents]), level, prompts))
    return self_attention_layers(host.unet), evaluate


def test_replacing_by_the_generations_own_features_changes_nothing(evaluation):
    layers, evaluate = evaluation
    with record(layers) as features:
        untouched = evaluate()
    with inject(layers, features, replace, range(4)) as seen:
        replaced = evaluate()
    assert torch.equal(replaced, untouched)
    assert seen == set(layers)


def test_concatenating_the_generations_own_features_changes_nothing(evaluation):
    layers, evaluate = evaluation
    with record(layers) as features:
        untouched = evaluate()
    with inject(layers, features, concatenate, range(4)):
        doubled = evaluate()
    assert (doubled - untouched).abs().max() < 1e-5


@pytest.mark.parametrize("context", [replace, concatenate])
def test_features_of_another_image_change_the_prediction(evaluation, context):
    layers, evaluate = evaluation
    with record(layers) as features:
        untouched = evaluate()
    others = {name: tokens.flip(0) for name, tokens in features.items()}
    with inject(layers, others, context, range(4)):
        assert (evaluate() - untouched).abs().max() > 1e-2
