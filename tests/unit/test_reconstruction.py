"""The exemplar comes back from its inversion, on the trained model."""

from __future__ import annotations

import pytest
import torch

from rival_ext.images.transforms import rgb_array
from rival_ext.method.inversion import invert, lower_latent, reconstruct
from rival_ext.method.quality import psnr
from tests.conftest import quick

HELD_OUT = ["cat-face-emojione-white", "pizza-emojione-yellow", "taxi-twemoji-green"]


def inverted(host, **options):
    return invert(host.exemplar_latent(), host.noise_levels(), host.predict_noise, {}, **options)


def decibels(host, latent):
    """PSNR of a latent's image against what the VAE alone makes of the exemplar."""
    images = host.decode(host.exemplar_latent())[0], host.decode(latent)[0]
    return psnr(*(torch.from_numpy(rgb_array(image)) for image in images))


@pytest.mark.parametrize("name", quick(HELD_OUT, "pizza-emojione-yellow"))
def test_one_evaluation_a_step_brings_the_exemplar_back_at_40_db(make_host, sample, name):
    host = make_host(name, guidance=1.0)
    chain = inverted(host)
    assert chain.evaluations == 20
    assert decibels(host, sample(host, chain.top, [0], None)) >= 40


@pytest.mark.slow
def test_the_exemplar_comes_back_under_its_own_prompt(make_host, sample):
    host = make_host("house-emojione-blue", prompt="a house", exemplar_prompt="a house", guidance=1.0)
    chain = inverted(host)
    assert decibels(host, sample(host, chain.top, [0], None)) >= 40


@pytest.mark.slow
def test_the_exemplar_comes_back_through_a_sampler_with_variance_exploding_latents(make_host, sample):
    host = make_host("house-emojione-blue", guidance=1.0, sampler="euler")
    chain = inverted(host)
    assert decibels(host, sample(host, chain.top, [0], None)) >= 40


def test_reconstruction_is_what_the_sampler_does_without_guidance(make_host, sample):
    host = make_host(guidance=1.0, steps=8)
    chain = inverted(host)
    difference = reconstruct(chain, host.predict_noise) - sample(host, chain.top, [0], None)
    assert difference.abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD_OUT[:2])
def test_the_residual_falls_with_the_iterations(make_host, name):
    host = make_host(name, steps=12)
    chains = [inverted(host, iterations=iterations) for iterations in (1, 2, 3)]
    residuals = [chain.residual for chain in chains]
    assert residuals[0] > 1.5 * residuals[1]
    assert residuals[1] > 1.1 * residuals[2] > 0
    assert [chain.evaluations for chain in chains] == [12, 24, 36]


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD_OUT[:2])
def test_one_evaluation_from_the_extrapolated_guess_is_more_exact_than_two_from_the_authors_guess(make_host, name):
    host = make_host(name, steps=12)
    ours = inverted(host, iterations=1)
    authors = inverted(host, iterations=2, first_guess=lower_latent)
    clean = host.exemplar_latent()
    errors = [(reconstruct(chain, host.predict_noise) - clean).norm() for chain in (ours, authors)]
    assert errors[0] < 0.8 * errors[1]
