"""The product against the outputs of the authors' own code (tests/data/golden/README.md)."""

from __future__ import annotations

import pytest
import torch

from rival_ext.method.exemplars import Exemplar, InpaintCanvas
from rival_ext.method.guide import Guide
from rival_ext.method.inversion import invert, lower_latent
from rival_ext.method.layers import self_attention_layers
from rival_ext.method.noise import scale_to_vp
from rival_ext.settings import parse_settings
from tests.conftest import golden

MODES = ["variation-panda", "variation-pizza", "text-panda-apple", "edit-house"]


def host_of(make_host, meta):
    # exact: their exemplar branch takes the empty prompt in the unguided half
    return make_host(
        prompt=meta["prompt"],
        exemplar_prompt=meta["inversion_prompt"],
        guidance=meta["cfg"],
        steps=meta["steps"],
        exact=True,
    )


@pytest.mark.parametrize("name", MODES)
def test_chain_start_and_generation_agree_with_the_authors(make_host, name):
    theirs = golden(name)
    meta = theirs["meta"]
    host = host_of(make_host, meta)
    assert host.scheduler.timesteps.tolist() == meta["timesteps"]
    levels = host.noise_levels()

    # their inversion: the lower latent's evaluation taken for the higher level, once
    chain = invert(theirs["latent"], levels, host.predict_noise, {}, iterations=1, first_guess=lower_latent)
    scales = torch.tensor([scale_to_vp(level) for level in levels.tolist()]).view(-1, 1, 1, 1)
    assert (chain.latents * scales - theirs["chain"]).abs().max() < 1e-4

    # their clock in the attention is one below the timestep
    settings = parse_settings(
        {"t_align": meta["t_align"] + 1, "t_early": meta["t_early"], "early_steps": min(meta["early_steps"] + 1, 1000)}
    )
    start = chain.top
    if meta["mode"] != "edit":
        start = start.flatten(2)[:, :, theirs["permutation"]].view_as(start)
    assert (start * scales[-1] - theirs["start"][1:]).abs().max() < 1e-4

    # no features are recorded: the exemplar is evaluated live at the chain's points, as theirs
    layers = self_attention_layers(host.unet)
    guide = Guide([Exemplar(chain)], settings, host.schedule, layers, host.predict_noise)
    final = host.sample(start, [0], guide, lambda done, total: None)
    assert (final - theirs["final"][1:]).abs().max() < 1e-4
    assert (guide.counts.layers, guide.counts.evaluated_live, guide.counts.steps.total) == (10, True, 20)


def test_inpainting_agrees_with_the_authors(make_host):
    """The mask's own positions permuted, the rest overwritten with the chain after each step."""
    theirs = golden("inpaint-pizza")
    meta = theirs["meta"]
    host = host_of(make_host, meta)
    chain = invert(theirs["latent"], host.noise_levels(), host.predict_noise, {}, first_guess=lower_latent)
    # theirs is 1 where the picture is kept
    canvas = InpaintCanvas(chain, 1 - theirs["mask"][None, None])
    mask = canvas.mask.flatten().nonzero().flatten()
    start = chain.top.flatten(2).clone()
    start[:, :, mask] = start[:, :, mask[theirs["permutation"]]]
    start = start.view_as(chain.top)
    scale = scale_to_vp(host.noise_levels().tolist()[-1])
    assert (start * scale - theirs["start"][1:]).abs().max() < 1e-4

    settings = parse_settings({"mode": "inpaint", "t_align": meta["t_align"] + 1, "t_early": meta["t_early"]})
    layers = self_attention_layers(host.unet)
    guide = Guide([Exemplar(chain)], settings, host.schedule, layers, host.predict_noise, canvas=canvas)
    final = host.sample(start, [0], guide, lambda done, total: None)
    assert (final - theirs["final"][1:]).abs().max() < 1e-4
