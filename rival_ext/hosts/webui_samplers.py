"""The two families of samplers in the WebUI: how they count noise and in which form they hold latents."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from modules import sd_samplers_common, sd_samplers_kdiffusion, sd_samplers_timesteps, shared
from torch import Tensor

from rival_ext.chain import Chain
from rival_ext.noise import NoiseSchedule, scale_to_vp

SAMPLERS = ("DDIM", "Euler", "Euler a", "DPM++ 2M")
"""Those that RIVAL works with."""


class SamplerForm(Protocol):
    """A family's translation; a latent here is in the family's own form, `scale(level)` times the exploding one."""

    schedule: NoiseSchedule

    def txt2img_levels(self, p: Any, steps: int | None) -> list[float]:
        """Ascending: where the clean latent lies, then those that the sampler will visit in txt2img."""

    def img2img_levels(self, p: Any, steps: int | None) -> list[float]:
        """The same in img2img, fewer at a lower denoising strength."""

    def noise_level(self, clock: float) -> float:
        """Noise level of what the denoiser is told as `sigma`."""

    def scale(self, noise_level: float) -> float:
        """From the variance-exploding form to the family's."""

    def predict_noise(self, latent: Tensor, noise_level: float, conditioning: dict[str, Any]) -> Tensor:
        """`eps` of one prompt, unguided, from the very model that the sampler calls."""

    def noise_of(self, output: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        """`eps` of what the guided denoiser returned."""

    def output_of(self, noise: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        """The inverse of `noise_of`."""

    def kept(self, chain: Chain, noise_level: float) -> Tensor:
        """What the host has to blend into the kept region for it to follow the chain, in the form it blends in."""

    def noise_to(self, p: Any, steps: int | None, start: Tensor) -> Tensor:
        """What the host's txt2img has to be given to start at `start`, variance-exploding."""

    def noise_between(self, p: Any, steps: int | None, clean: Tensor, start: Tensor) -> Tensor:
        """The noise with which the host's img2img, given `clean`, starts at `start`, variance-exploding."""


def sampler_form(sampler: Any) -> SamplerForm:
    """The translation for a sampler that the host has created."""
    if isinstance(sampler, sd_samplers_timesteps.CompVisSampler):
        return TimestepForm(sampler)
    assert isinstance(sampler, sd_samplers_kdiffusion.KDiffusionSampler)
    return SigmaForm(sampler)


class SigmaForm:
    """k-diffusion: counts in sigma, holds variance-exploding latents, its denoiser returns the clean latent."""

    def __init__(self, sampler: Any):
        self.sampler = sampler
        self.schedule = NoiseSchedule(sampler.model_wrap.sigmas)

    def txt2img_levels(self, p: Any, steps: int | None) -> list[float]:
        return self.sampler.get_sigmas(p, steps or p.steps).double().flip(0).tolist()

    def img2img_levels(self, p: Any, steps: int | None) -> list[float]:
        steps, t_enc = sd_samplers_common.setup_img2img_steps(p, steps)
        return self.sampler.get_sigmas(p, steps)[steps - t_enc - 1 :].double().flip(0).tolist()

    def noise_level(self, clock: float) -> float:
        return clock

    def scale(self, noise_level: float) -> float:
        return 1.0

    def predict_noise(self, latent: Tensor, noise_level: float, conditioning: dict[str, Any]) -> Tensor:
        sigma = torch.full((len(latent),), noise_level, dtype=torch.float32, device=latent.device)
        return self.noise_of(self.sampler.model_wrap(latent, sigma, cond=conditioning), latent, noise_level)

    def noise_of(self, output: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        return (latent - output) / noise_level

    def output_of(self, noise: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        return latent - noise * noise_level

    def kept(self, chain: Chain, noise_level: float) -> Tensor:
        return chain.latent(noise_level) - noise_level * chain.slope(noise_level)

    def noise_to(self, p: Any, steps: int | None, start: Tensor) -> Tensor:
        highest = self.txt2img_levels(p, steps)[-1]
        return start / (math.sqrt(1 + highest**2) if shared.opts.sgm_noise_multiplier else highest)

    def noise_between(self, p: Any, steps: int | None, clean: Tensor, start: Tensor) -> Tensor:
        return (start - clean) / self.img2img_levels(p, steps)[-1]


class TimestepForm:
    """The DDIM family: counts in timesteps, holds variance-preserving latents, its denoiser returns the noise."""

    def __init__(self, sampler: Any):
        self.sampler = sampler
        self.schedule = NoiseSchedule.of_alphas(shared.sd_model.alphas_cumprod)

    def txt2img_levels(self, p: Any, steps: int | None) -> list[float]:
        # the family ends at the first timestep without calling the model
        return [self.noise_level(timestep) for timestep in self.sampler.get_timesteps(p, steps or p.steps).tolist()]

    def img2img_levels(self, p: Any, steps: int | None) -> list[float]:
        steps, t_enc = sd_samplers_common.setup_img2img_steps(p, steps)
        # img2img is noised at timesteps[t_enc] but starts one below
        visited = self.sampler.get_timesteps(p, steps)[:t_enc]
        return [self.noise_level(timestep) for timestep in visited.tolist()]

    def noise_level(self, clock: float) -> float:
        return self.schedule.noise_level(clock)

    def scale(self, noise_level: float) -> float:
        return scale_to_vp(noise_level)

    def predict_noise(self, latent: Tensor, noise_level: float, conditioning: dict[str, Any]) -> Tensor:
        timestep = self.schedule.timestep(noise_level)
        clock = torch.full((len(latent),), timestep, dtype=torch.float32, device=latent.device)
        return self.sampler.model_wrap(latent, clock, cond=conditioning)

    def noise_of(self, output: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        return output

    def output_of(self, noise: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        return noise

    def kept(self, chain: Chain, noise_level: float) -> Tensor:
        return chain.latent(noise_level) * self.scale(noise_level)

    def noise_to(self, p: Any, steps: int | None, start: Tensor) -> Tensor:
        return start * self.scale(self.txt2img_levels(p, steps)[-1])

    def noise_between(self, p: Any, steps: int | None, clean: Tensor, start: Tensor) -> Tensor:
        start = start * self.scale(self.img2img_levels(p, steps)[-1])
        steps, t_enc = sd_samplers_common.setup_img2img_steps(p, steps)
        alpha = shared.sd_model.alphas_cumprod[self.sampler.get_timesteps(p, steps)[t_enc]]
        return (start - clean * alpha.sqrt()) / (1 - alpha).sqrt()
