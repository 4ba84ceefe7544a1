"""What a rehearsal sees of a sampler is what the sampler then does; nothing of it stays behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rival_ext.hosts.webui.samplers import dry_run
from tests.host.standin.samplers import SAMPLERS, create_sampler

CHECKPOINT = SimpleNamespace(
    alphas_cumprod=torch.linspace(0.999, 0.005, 1000), apply_model=lambda x, t, cond: torch.tanh(x)
)
PREDICTABLE = sorted(SAMPLERS.keys() - {"DPM adaptive"})


class Random:
    """The host's generators for one batch."""

    def __init__(self):
        self.drawn = 0

    def next(self):
        self.drawn += 1
        return torch.ones(2, 4, 8, 8)


@pytest.fixture
def p():
    return SimpleNamespace(steps=6, denoising_strength=0.75, scheduler="Automatic", cfg_scale=2.0, rng=Random())


def sampling(p, name, kind="img2img"):
    """A rehearsal of a sampler, and the function that really samples."""
    p.sampler = create_sampler(name, CHECKPOINT)
    latents = [torch.randn(2, 4, 8, 8) for _ in range(2 if kind == "img2img" else 1)]
    method = p.sampler.sample_img2img if kind == "img2img" else p.sampler.sample
    prompts = SimpleNamespace(batch=[[torch.zeros(3, 5)]] * 2), torch.zeros(2, 3, 5)

    def sample(latents):
        return method(p, *latents, *prompts, image_conditioning=torch.zeros(2, 5, 1, 1))

    return dry_run(p, sample, latents), lambda: sample(latents)


def visited(p, sample):
    """What the denoiser is told in a real sampling, and the first latent it is given."""
    clocks, latents = [], []

    def watch(_, args):
        clocks.append(float(args[1].max()))
        latents.append(args[0].clone())

    handle = p.sampler.model_wrap_cfg.register_forward_pre_hook(watch)
    sample()
    handle.remove()
    return clocks, latents[0]


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
@pytest.mark.parametrize("name", PREDICTABLE)
def test_the_denoiser_is_then_called_at_the_very_clocks_that_were_seen(p, name, kind):
    seen, sample = sampling(p, name, kind)
    assert visited(p, sample)[0] == seen.clocks


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
@pytest.mark.parametrize("name", PREDICTABLE)
def test_the_function_starts_from_the_latents_in_the_shares_that_were_seen(p, name, kind):
    p.sampler = create_sampler(name, CHECKPOINT)
    torch.manual_seed(0)
    seen, sample = sampling(p, name, kind)
    torch.manual_seed(0)
    latents = [torch.randn(2, 4, 8, 8) for _ in seen.gains]
    expected = sum(share * latent for share, latent in zip(seen.gains, latents, strict=True))
    assert torch.allclose(visited(p, sample)[1], expected, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_fresh_noise_is_noticed_where_it_reaches_the_latent(p, name):
    assert sampling(p, name)[0].adds_noise == (name == "Euler a")


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_random_number_is_drawn_and_nothing_is_evaluated(p, name, monkeypatch):
    def evaluated(*_):
        raise AssertionError("the model was evaluated")

    monkeypatch.setattr(CHECKPOINT, "apply_model", evaluated)
    random = p.rng
    torch.manual_seed(0)
    seen, _ = sampling(p, name)
    after = torch.random.get_rng_state()
    assert seen.clocks
    assert p.rng is random
    assert random.drawn == 0
    # this test's own two latents are all that was drawn
    torch.manual_seed(0)
    torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert torch.equal(torch.random.get_rng_state(), after)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampler_is_what_it_was(p, name):
    seen, _ = sampling(p, name)
    assert seen.arguments
    fresh = create_sampler(name, CHECKPOINT)
    assert p.sampler.func is fresh.func
    assert "forward" not in vars(p.sampler.model_wrap_cfg)


def test_after_an_error_everything_is_in_its_place(p):
    p.sampler = create_sampler("Euler", CHECKPOINT)
    before = p.sampler.func, p.rng

    def fail(latents):
        raise KeyError

    with pytest.raises(KeyError):
        dry_run(p, fail, [torch.zeros(1, 4, 8, 8)])
    assert (p.sampler.func, p.rng) == before
    assert "forward" not in vars(p.sampler.model_wrap_cfg)
