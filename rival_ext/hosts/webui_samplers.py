"""The two families of samplers in the WebUI: how they count noise and in which form they hold latents."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from modules import sd_samplers_common, sd_samplers_kdiffusion, sd_samplers_timesteps, shared
from torch import Tensor

from rival_ext.noise import NoiseSchedule, scale_to_vp

SAMPLERS = ("DDIM", "Euler", "Euler a", "DPM++ 2M")
"""Those that RIVAL works with."""


class SamplerForm(Protocol):
    """A family's translation; a latent here is in the family's own form, `scale(level)` times the exploding one."""

    schedule: NoiseSchedule

    def noise_levels(self, p: Any) -> list[float]:
        """Ascending: where the clean latent lies, then those that the sampler will visit in img2img."""

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

    def noise_between(self, p: Any, clean: Tensor, start: Tensor) -> Tensor:
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

    def noise_levels(self, p: Any) -> list[float]:
        steps, t_enc = sd_samplers_common.setup_img2img_steps(p)
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

    def noise_between(self, p: Any, clean: Tensor, start: Tensor) -> Tensor:
        return (start - clean) / self.noise_levels(p)[-1]


class TimestepForm:
    """The DDIM family: counts in timesteps, holds variance-preserving latents, its denoiser returns the noise."""

    def __init__(self, sampler: Any):
        self.sampler = sampler
        self.schedule = NoiseSchedule.of_alphas(shared.sd_model.alphas_cumprod)

    def noise_levels(self, p: Any) -> list[float]:
        steps, t_enc = sd_samplers_common.setup_img2img_steps(p)
        # img2img is noised at timesteps[t_enc] but starts one below, and ends at the first without calling the model
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

    def noise_between(self, p: Any, clean: Tensor, start: Tensor) -> Tensor:
        steps, t_enc = sd_samplers_common.setup_img2img_steps(p)
        alpha = shared.sd_model.alphas_cumprod[self.sampler.get_timesteps(p, steps)[t_enc]]
        return (start * self.scale(self.noise_levels(p)[-1]) - clean * alpha.sqrt()) / (1 - alpha).sqrt()
