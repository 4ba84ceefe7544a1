"""The two families of samplers in the WebUI: how they count noise and in which form they hold latents."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from modules import shared
from torch import Tensor

from rival_ext.chain import Chain
from rival_ext.hosts.webui_rehearsal import Rehearsal
from rival_ext.noise import SAME_LEVEL, NoiseSchedule, scale_to_vp

ADAPTIVE = "sample_dpm_adaptive"
"""The one function whose levels depend on what it samples."""

UNIPC = "unipc"


class SamplerForm(Protocol):
    """A family's translation; a latent here is in the family's own form, `scale(level)` times the exploding one.

    schedule: the checkpoint's.
    visits: the noise levels at which the denoiser will be called, call by call.
    clean_level, start_level: where the clean latent lies, and the latent that the sampler starts from.
    is_predictable: whether it visits just these levels; an adaptive sampler finds its own.
    """

    schedule: NoiseSchedule
    visits: list[float]
    clean_level: float
    start_level: float
    is_predictable: bool

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


def levels_of(form: SamplerForm) -> list[float]:
    """Ascending and each once: where the clean latent lies, then those that are visited above it."""
    levels = [form.clean_level]
    for level in sorted(form.visits):
        if level > levels[-1] * (1 + SAME_LEVEL):
            levels.append(level)
    return levels


def clean_prediction(chain: Chain, noise_level: float) -> Tensor:
    """The clean latent that the chain comes from, as seen at this level."""
    return chain.latent(noise_level) - noise_level * chain.slope(noise_level)


def correct_last_noise(denoiser: Any, correction: Tensor) -> None:
    """Adds a correction of the denoiser's answer to the noise that DDIM CFG++ takes its direction from."""
    if denoiser.need_last_noise_uncond:
        denoiser.last_noise_uncond = denoiser.last_noise_uncond + correction


class SigmaForm:
    """k-diffusion: counts in sigma, holds variance-exploding latents, its denoiser returns the clean latent."""

    def __init__(self, sampler: Any, p: Any, rehearsal: Rehearsal):
        self.sampler = sampler
        self.schedule = NoiseSchedule.of_alphas(self.alphas(sampler))
        self.visits = rehearsal.clocks
        self.is_predictable = not self.is_adaptive(sampler)
        arguments = rehearsal.arguments
        if "sigmas" in arguments:
            self.start_level, self.clean_level = (float(arguments["sigmas"][end]) for end in (0, -1))
        else:
            self.start_level, self.clean_level = (float(arguments[name]) for name in ("sigma_max", "sigma_min"))
        if not self.is_predictable:
            schedule = sampler.get_sigmas(p, p.steps).tolist()
            self.visits = [level for level in schedule if self.clean_level < level < self.start_level]
            self.visits.insert(0, self.start_level)

    @staticmethod
    def is_adaptive(sampler: Any) -> bool:
        """Whether its levels depend on what it samples."""
        return bool(sampler.funcname == ADAPTIVE)

    @staticmethod
    def alphas(sampler: Any) -> Tensor:
        """The checkpoint's `alphas_cumprod`, as the sampler counts its noise by."""
        alphas: Tensor = shared.sd_model.alphas_cumprod
        return alphas

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
        return clean_prediction(chain, noise_level)


class TimestepForm:
    """The DDIM family: counts in timesteps, holds variance-preserving latents, its denoiser returns the noise."""

    is_predictable = True

    def __init__(self, sampler: Any, rehearsal: Rehearsal):
        self.sampler = sampler
        self.schedule = NoiseSchedule.of_alphas(shared.sd_model.alphas_cumprod)
        self.visits = [self.noise_level(clock) for clock in rehearsal.clocks]
        # UniPC ends at its own last timestep, the others at the schedule's
        last = 0.0 if sampler.func.__name__ == UNIPC else min(map(float, rehearsal.arguments["timesteps"]), default=0.0)
        self.clean_level = self.noise_level(last)
        # img2img is noised one timestep above the first that is visited
        self.start_level = self.visits[0] if self.visits else self.clean_level

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
