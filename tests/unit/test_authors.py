"""RIVAL agrees with the outputs of the authors' code (tests/data/golden/README.md)."""

from __future__ import annotations

import pytest
import torch

from rival_ext.method.chain import Chain
from rival_ext.method.exemplars import Exemplar, InpaintCanvas
from rival_ext.method.guide import Guide
from rival_ext.method.inversion import invert, lower_latent
from rival_ext.method.layers import self_attention_layers
from rival_ext.method.noise import scale_to_vp
from rival_ext.settings import PAPER, parse_settings
from tests.conftest import golden, quick

MODES = ["variation-panda", "variation-pizza", "text-panda-apple", "edit-house"]


def host_of(make_host, meta):
    # exact: the authors' exemplar has the empty prompt in the rows without the prompt
    return make_host(
        prompt=meta["prompt"],
        exemplar_prompt=meta["inversion_prompt"],
        guidance=meta["cfg"],
        steps=meta["steps"],
        exact=True,
    )


def authors_chain(host, latent):
    """The authors' inversion: one evaluation, of the lower latent, stands for the higher level.

    So its slope is only near the prediction at its own points, which the authors evaluate at every step.
    """
    inverted = invert(latent, host.noise_levels(), host.predict_noise, {}, first_guess=lower_latent)

    class EvaluatedSlope(Chain):
        def slope(self, noise_level):
            return host.predict_noise(self.latent(noise_level), noise_level)

    return EvaluatedSlope(inverted.noise_levels, inverted.latents)


@pytest.mark.parametrize("name", quick(MODES, "variation-panda"))
def test_chain_start_and_generation_agree_with_the_authors(make_host, name):
    authors = golden(name)
    meta = authors["meta"]
    host = host_of(make_host, meta)
    assert [host.schedule.timestep(level) for level in host.noise_levels().flip(0)[:-1]] == meta["timesteps"]
    levels = host.noise_levels()

    chain = authors_chain(host, authors["latent"])
    scales = torch.tensor([scale_to_vp(level) for level in levels.tolist()]).view(-1, 1, 1, 1)
    assert (chain.latents * scales - authors["chain"]).abs().max() < 1e-4

    # the authors' attention counts one below the timestep, and early_steps above the first timestep skips no step
    skips_a_step = meta["early_steps"] < max(meta["timesteps"])
    settings = parse_settings(
        {
            **PAPER,
            "t_align": meta["t_align"] + 1,
            "t_early": meta["t_early"],
            "early_steps": meta["early_steps"] + 1 if skips_a_step else 1000,
        }
    )
    start = chain.top
    if meta["mode"] != "edit":
        start = start.flatten(2)[:, :, authors["permutation"]].view_as(start)
    assert (start * scales[-1] - authors["start"][1:]).abs().max() < 1e-4

    # no features are recorded: the exemplar is evaluated live at the chain's nodes, as in the authors' code
    layers = self_attention_layers(host.unet)
    guide = Guide([Exemplar(chain)], settings, host.schedule, layers, host.predict_noise)
    final = host.sample(start, [0], guide, lambda done, total: None)
    assert (final - authors["final"][1:]).abs().max() < 1e-4
    assert (guide.counts.layers, guide.counts.evaluated_live, guide.counts.steps.total) == (10, True, 20)


@pytest.mark.slow
def test_inpainting_agrees_with_the_authors(make_host):
    """The authors permute the mask's positions, and overwrite the rest with the chain after each step."""
    authors = golden("inpaint-pizza")
    meta = authors["meta"]
    host = host_of(make_host, meta)
    chain = authors_chain(host, authors["latent"])
    # the authors' mask is 1 where the image is kept
    canvas = InpaintCanvas(Chain(chain.noise_levels, chain.latents), 1 - authors["mask"][None, None])
    mask = canvas.mask.flatten().nonzero().flatten()
    start = chain.top.flatten(2).clone()
    start[:, :, mask] = start[:, :, mask[authors["permutation"]]]
    start = start.view_as(chain.top)
    scale = scale_to_vp(host.noise_levels().tolist()[-1])
    assert (start * scale - authors["start"][1:]).abs().max() < 1e-4

    settings = parse_settings({**PAPER, "mode": "inpaint", "t_align": meta["t_align"] + 1, "t_early": meta["t_early"]})
    layers = self_attention_layers(host.unet)
    guide = Guide([Exemplar(chain)], settings, host.schedule, layers, host.predict_noise, canvas=canvas)
    final = host.sample(start, [0], guide, lambda done, total: None)
    assert (final - authors["final"][1:]).abs().max() < 1e-4
