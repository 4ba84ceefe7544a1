"""A dry run sees what the sampler then does, and leaves nothing behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

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


@pytest.fixture(scope="module")
def dry_run(import_on_stand_in):
    return import_on_stand_in("rival_ext.hosts.webui.samplers").dry_run


@pytest.fixture
def sampling(p, dry_run):
    """(sampler's name, img2img or txt2img) -> (trace of its dry run, function that really samples)."""

    def start(name, kind="img2img"):
        p.sampler = create_sampler(name, CHECKPOINT)
        latents = [torch.randn(2, 4, 8, 8) for _ in range(2 if kind == "img2img" else 1)]
        method = p.sampler.sample_img2img if kind == "img2img" else p.sampler.sample
        prompts = SimpleNamespace(batch=[[torch.zeros(3, 5)]] * 2), torch.zeros(2, 3, 5)

        def sample(latents):
            return method(p, *latents, *prompts, image_conditioning=torch.zeros(2, 5, 1, 1))

        return dry_run(p, sample, latents), lambda: sample(latents)

    return start


def visited(p, sample):
    """Sample, and return each sigma that the denoiser is told and the first latent that it is given."""
    sigmas, latents = [], []

    def watch(_, args):
        sigmas.append(float(args[1].max()))
        latents.append(args[0].clone())

    handle = p.sampler.model_wrap_cfg.register_forward_pre_hook(watch)
    sample()
    handle.remove()
    return sigmas, latents[0]


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
@pytest.mark.parametrize("name", PREDICTABLE)
def test_the_sampler_visits_exactly_the_sigmas_of_the_dry_run(p, sampling, name, kind):
    trace, sample = sampling(name, kind)
    assert visited(p, sample)[0] == trace.sigmas


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
@pytest.mark.parametrize("name", PREDICTABLE)
def test_the_sampler_starts_from_the_latents_times_the_scales_of_the_dry_run(p, sampling, name, kind):
    p.sampler = create_sampler(name, CHECKPOINT)
    torch.manual_seed(0)
    trace, sample = sampling(name, kind)
    torch.manual_seed(0)
    latents = [torch.randn(2, 4, 8, 8) for _ in trace.input_scales]
    expected = sum(scale * latent for scale, latent in zip(trace.input_scales, latents, strict=True))
    assert torch.allclose(visited(p, sample)[1], expected, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_dry_run_notices_whether_fresh_noise_reaches_the_latent(sampling, name):
    assert sampling(name)[0].adds_noise == (name == "Euler a")


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_dry_run_draws_no_random_number_and_evaluates_nothing(p, sampling, name, monkeypatch):
    def evaluated(*_):
        raise AssertionError("the model was evaluated")

    monkeypatch.setattr(CHECKPOINT, "apply_model", evaluated)
    random = p.rng
    torch.manual_seed(0)
    trace, _ = sampling(name)
    after = torch.random.get_rng_state()
    assert trace.sigmas
    assert p.rng is random
    assert random.drawn == 0
    # this test's two latents are all that was drawn
    torch.manual_seed(0)
    torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    assert torch.equal(torch.random.get_rng_state(), after)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_what_a_dry_run_draws_on_the_device_is_drawn_again_afterwards(import_on_stand_in, monkeypatch, kind):
    """Some noise samplers draw on the device itself. Apple's functions take no device."""
    states = ["before"]

    def set_state(state, *which):
        assert len(which) == (kind != "mps")
        states.append(state)

    generator = SimpleNamespace(get_rng_state=lambda *which: states[-1], set_rng_state=set_state)
    monkeypatch.setattr(torch, kind, generator)
    kept = import_on_stand_in("rival_ext.hosts.webui.patching").random_numbers_kept
    with kept(torch.device(kind)):
        states.append("moved")
    assert states == ["before", "moved", "before"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_after_a_dry_run_the_sampler_is_as_before(p, sampling, name):
    trace, _ = sampling(name)
    assert trace.arguments
    fresh = create_sampler(name, CHECKPOINT)
    assert p.sampler.func is fresh.func
    assert "forward" not in vars(p.sampler.model_wrap_cfg)


def test_after_an_error_in_a_dry_run_everything_is_as_before(p, dry_run):
    p.sampler = create_sampler("Euler", CHECKPOINT)
    before = p.sampler.func, p.rng

    def fail(latents):
        raise KeyError

    with pytest.raises(KeyError):
        dry_run(p, fail, [torch.zeros(1, 4, 8, 8)])
    assert (p.sampler.func, p.rng) == before
    assert "forward" not in vars(p.sampler.model_wrap_cfg)
