"""A step on a GPU: the CPU never waits, the device's random numbers are untouched, and any GPU will do."""

from __future__ import annotations

import pytest
import torch

from rival_ext.hosts.diffusers import SAMPLERS
from rival_ext.hosts.webui.patching import random_numbers_kept
from rival_ext.method.noise import scale_to_vp
from rival_ext.method.prepare import prepare
from rival_ext.method.rows import COND, UNCOND
from rival_ext.storage.store import ChainStore, NoStore
from tests.conftest import quiet
from tests.gpu.machine import (
    GPU,
    SECOND_GPU,
    host_on,
    images,
    needs_gpu,
    needs_two_gpus,
    rms,
    settings_with,
    without_synchronisation,
)

pytestmark = needs_gpu


def denoiser_of(host, latent, level):
    """A call of the UNet as a host makes it, with guidance."""
    negative, prompt, _ = host.embeddings
    prompts = torch.cat([negative, prompt])

    def denoise():
        rows = (latent * scale_to_vp(level)).expand(2, -1, -1, -1)
        uncond, cond = host.evaluate(rows, level, prompts).chunk(2)
        return uncond + 5 * (cond - uncond)

    return denoise


@pytest.mark.parametrize(
    "values",
    [{}, {"uncond_share": 1}, {"alignment": "noise", "t_align": 600}, {"exemplar_tokens": 0.5}, {"strength": 0.5}],
    ids=str,
)
def test_the_cpu_does_not_wait_inside_a_step(values):
    """The second sampling: what is made once a run may wait."""
    host = host_on(GPU, steps=8)
    guide, _ = prepare(host, settings_with(**values), NoStore())
    levels = host.noise_levels().tolist()[:0:-1]
    latent = host.start([1], guide)
    denoisers = [denoiser_of(host, latent, level) for level in levels]

    def steps():
        for level, denoise in zip(levels, denoisers, strict=True):
            guide.guided_noise(level, denoise, [UNCOND, COND])
            guide.corrected_latent(latent, level)

    with torch.no_grad():
        steps()
        with without_synchronisation():
            steps()


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler != "euler-a"])
def test_the_cpu_does_not_wait_inside_a_plain_sampling(sampler, monkeypatch):
    """What the command line's host does beside RIVAL. Euler a is left out: its noise is drawn on the CPU."""
    host = host_on(GPU, sampler=sampler, steps=8)
    monkeypatch.setattr(host, "_finite", lambda values, *_: values)
    start = host.start([1], None)
    host.sample(start, [1], None, quiet)
    with without_synchronisation():
        host.sample(start, [1], None, quiet)


def test_the_gpus_random_numbers_are_given_back():
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state(GPU)
    with random_numbers_kept(GPU):
        torch.randn(5, device=GPU)
        assert not torch.equal(torch.cuda.get_rng_state(GPU), before)
    assert torch.equal(torch.cuda.get_rng_state(GPU), before)


def test_a_run_draws_no_random_number_of_the_gpu():
    host, before = host_on(GPU), torch.cuda.get_rng_state(GPU)
    guide, _ = prepare(host, settings_with(), NoStore())
    images(host, guide, [1])
    assert torch.equal(torch.cuda.get_rng_state(GPU), before)


@needs_two_gpus
def test_a_run_on_the_second_gpu_is_that_of_the_first_and_takes_nothing_of_it():
    first, second = host_on(GPU), host_on(SECOND_GPU)
    expected = images(first, prepare(first, settings_with(), NoStore()).guide, [1])
    torch.cuda.synchronize(GPU)
    torch.cuda.reset_peak_memory_stats(GPU)
    before, store = torch.cuda.memory_allocated(GPU), ChainStore()
    for _ in ("inverted", "stored"):
        guide, _ = prepare(second, settings_with(), store)
        assert rms(images(second, guide, [1]), expected) < 3
    assert torch.cuda.max_memory_allocated(GPU) == before
