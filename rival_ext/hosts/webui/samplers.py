"""Sampler conventions of the WebUI, and the dry run that reads a sampler's noise levels from the sampler itself.

In a dry run the host's own method runs with its own schedule, options and sampler function. Only the denoiser is
replaced by one that returns zeros, so the UNet is never evaluated, and no random number is drawn. So whatever the
sampler does between its levels (midpoints, ancestral steps, churn, restarts) is not computed here a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol

import torch
from modules import shared
from torch import Tensor

from rival_ext.hosts.webui.patching import instance_attribute, random_numbers_kept
from rival_ext.method.chain import Chain
from rival_ext.method.noise import SAME_LEVEL, NoiseSchedule, scale_to_vp

ADAPTIVE = "sample_dpm_adaptive"
"""The one sampler function of k-diffusion whose levels depend on what it samples."""

UNIPC = "unipc"
"""The name of UniPC's sampler function."""

POST_CFG = "sampler_post_cfg_function"
"""The option in which the CFG++ samplers of reForge and Forge Neo give the denoiser functions that see its prediction
without the prompt."""

NO_OPTIONS: Mapping[str, Any] = {}

SENTINEL = 1e8
"""The value in place of random numbers in a dry run. A latent that holds it has been given noise."""


@dataclass
class SamplerTrace:
    """What a dry run has seen.

    Attributes:
        sigmas: What the denoiser was told as `sigma`, call by call: a noise level, or a timestep in the DDIM family.
        arguments: What the sampler's function was given by name.
        input_scales: For each latent that the host's method is given, its factor in the latent where the sampler's
            function starts.
        adds_noise: Whether fresh noise reaches the latent on the way.
    """

    sigmas: list[float] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    input_scales: list[float] = field(default_factory=list)
    adds_noise: bool = False


class SamplerConvention(Protocol):
    """How one family of samplers counts noise and holds latents.

    A latent in the family's form is `scale(level)` times the variance-exploding one.

    Attributes:
        schedule: The checkpoint's noise schedule.
        sigmas_visited: The noise levels at which the denoiser will be called, call by call.
        clean_level: The noise level at which the clean latent lies.
        start_level: The noise level of the latent from which the sampler starts.
        levels_are_known: Whether the sampler visits exactly `sigmas_visited`. An adaptive sampler chooses its levels as
            it runs.
    """

    schedule: NoiseSchedule
    sigmas_visited: list[float]
    clean_level: float
    start_level: float
    levels_are_known: bool

    def noise_level(self, sigma: float) -> float:
        """Convert what the denoiser is told as `sigma` to a noise level."""

    def scale(self, noise_level: float) -> float:
        """Return the factor from the variance-exploding form to the family's form."""

    def predict_noise(self, latent: Tensor, noise_levels: Sequence[float], conditioning: dict[str, Any]) -> Tensor:
        """Evaluate the very model that the sampler calls, without guidance.

        Args:
            latent: `[rows, C, H, W]`, in the family's form.
            noise_levels: The level of each row, above 0.
            conditioning: What the host's model takes as conditioning, for each row.

        Returns:
            `eps`, `[rows, C, H, W]`.
        """

    def noise_of(self, output: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        """Convert what the guided denoiser returned to `eps`. Both tensors are in the family's form."""

    def output_of(self, noise: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        """Convert `eps` to what the guided denoiser has to return. The inverse of `noise_of`."""

    def kept_latent(self, chain: Chain, noise_level: float) -> Tensor:
        """Return the latent that makes the kept region of an inpainted image follow the image's chain.

        The host blends it into the region outside the mask at each call of the denoiser.

        Args:
            chain: The chain of the inpainted image.
            noise_level: The noise level of the call, above 0.

        Returns:
            `[1, C, H, W]`: the clean prediction, or the noisy latent in the family's form, whichever the host blends.
        """


def by_row(numbers: Sequence[float], latent: Tensor) -> Tensor:
    """Put one number for each row of a latent into a tensor that multiplies it, `[rows, 1, 1, 1]`."""
    return torch.tensor(numbers, dtype=latent.dtype, device=latent.device)[:, None, None, None]


def levels_of(convention: SamplerConvention) -> list[float]:
    """List the noise levels of a chain for a sampler.

    Args:
        convention: The convention of the sampler.

    Returns:
        Ascending, each level once: where the clean latent lies, then the visited levels above it.
    """
    levels = [convention.clean_level]
    for level in sorted(convention.sigmas_visited):
        if level > levels[-1] * (1 + SAME_LEVEL):
            levels.append(level)
    return levels


def clean_prediction(chain: Chain, noise_level: float) -> Tensor:
    """Return the clean latent that the chain predicts at a noise level, `[1, C, H, W]`."""
    return chain.latent(noise_level) - noise_level * chain.slope(noise_level)


def correct_last_noise(denoiser: Any, correction: Tensor) -> None:
    """Correct the prediction without the prompt, from which DDIM CFG++ takes its direction.

    Args:
        denoiser: The host's guided denoiser.
        correction: What was added to the denoiser's answer, `[N, C, H, W]`.
    """
    if denoiser.need_last_noise_uncond:
        denoiser.last_noise_uncond = denoiser.last_noise_uncond + correction


class SigmaConvention:
    """k-diffusion: it counts in noise levels and holds variance-exploding latents; its denoiser returns the clean
    latent (`SamplerConvention`).

    Args:
        sampler: The host's sampler.
        p: The host's processing.
        trace: What the dry run of the sampler has seen.
    """

    def __init__(self, sampler: Any, p: Any, trace: SamplerTrace):
        self.sampler = sampler
        self.schedule = NoiseSchedule.of_alphas(self.alphas(sampler))
        self.sigmas_visited = trace.sigmas
        self.levels_are_known = not self.is_adaptive(sampler)
        arguments = trace.arguments
        if "sigmas" in arguments:
            self.start_level, self.clean_level = (float(arguments["sigmas"][end]) for end in (0, -1))
        else:
            self.start_level, self.clean_level = (float(arguments[name]) for name in ("sigma_max", "sigma_min"))
        if not self.levels_are_known:
            schedule = sampler.get_sigmas(p, p.steps).tolist()
            between = [level for level in schedule if self.clean_level < level < self.start_level]
            self.sigmas_visited = [self.start_level, *between]

    @staticmethod
    def is_adaptive(sampler: Any) -> bool:
        """Tell whether the levels of a sampler depend on what it samples."""
        return bool(sampler.funcname == ADAPTIVE)

    @staticmethod
    def alphas(sampler: Any) -> Tensor:
        """Return the checkpoint's `alphas_cumprod`, by which the sampler counts its noise."""
        alphas: Tensor = shared.sd_model.alphas_cumprod
        return alphas

    def noise_level(self, sigma: float) -> float:
        return sigma

    def scale(self, noise_level: float) -> float:
        return 1.0

    def predict_noise(self, latent: Tensor, noise_levels: Sequence[float], conditioning: dict[str, Any]) -> Tensor:
        sigmas = torch.tensor(noise_levels, dtype=torch.float32, device=latent.device)
        clean = self.sampler.model_wrap(latent, sigmas, cond=conditioning)
        return (latent - clean) / by_row(noise_levels, latent)

    def noise_of(self, output: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        return (latent - output) / noise_level

    def output_of(self, noise: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        return latent - noise * noise_level

    def kept_latent(self, chain: Chain, noise_level: float) -> Tensor:
        return clean_prediction(chain, noise_level)


class TimestepConvention:
    """The DDIM family: it counts in timesteps and holds variance-preserving latents; its denoiser returns the noise
    (`SamplerConvention`).

    Args:
        sampler: The host's sampler.
        trace: What the dry run of the sampler has seen.
    """

    levels_are_known = True

    def __init__(self, sampler: Any, trace: SamplerTrace):
        self.sampler = sampler
        self.schedule = NoiseSchedule.of_alphas(shared.sd_model.alphas_cumprod)
        self.sigmas_visited = [self.noise_level(timestep) for timestep in trace.sigmas]
        # UniPC ends at its own last timestep, the others at the schedule's
        last = 0.0 if sampler.func.__name__ == UNIPC else min(map(float, trace.arguments["timesteps"]), default=0.0)
        self.clean_level = self.noise_level(last)
        # img2img adds noise for one timestep above the first that is visited
        self.start_level = self.sigmas_visited[0] if self.sigmas_visited else self.clean_level

    def noise_level(self, sigma: float) -> float:
        return self.schedule.noise_level(sigma)

    def scale(self, noise_level: float) -> float:
        return scale_to_vp(noise_level)

    def predict_noise(self, latent: Tensor, noise_levels: Sequence[float], conditioning: dict[str, Any]) -> Tensor:
        timesteps = torch.tensor(
            [self.schedule.timestep(level) for level in noise_levels], dtype=torch.float32, device=latent.device
        )
        return self.sampler.model_wrap(latent, timesteps, cond=conditioning)

    def noise_of(self, output: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        return output

    def output_of(self, noise: Tensor, latent: Tensor, noise_level: float) -> Tensor:
        return noise

    def kept_latent(self, chain: Chain, noise_level: float) -> Tensor:
        return chain.latent(noise_level) * self.scale(noise_level)


class SentinelNoise:
    """Stands in for the host's random generators in a dry run, so that these do not move.

    Args:
        device: The device of the latents.
    """

    def __init__(self, device: torch.device):
        self._value = torch.full((1,), SENTINEL, device=device)

    def next(self, *_: Any) -> Tensor:
        """Return the sentinel in place of noise."""
        return self._value


def dry_run(p: Any, sample: Callable[[Sequence[Tensor]], Tensor], latents: Sequence[Tensor]) -> SamplerTrace:
    """Run the host's sampling without the UNet and without random numbers.

    Args:
        p: The host's processing.
        sample: Calls the method of `p.sampler` that starts from the latents.
        latents: The latents that the method is given. Only their shapes count.

    Returns:
        What was seen.
    """
    sampler, denoiser = p.sampler, p.sampler.model_wrap_cfg
    trace = SamplerTrace()
    sentinel = SentinelNoise(latents[0].device)

    def denoise(x: Tensor, sigma: Tensor, *_: Any, model_options: Mapping[str, Any] = NO_OPTIONS, **__: Any) -> Tensor:
        trace.sigmas.append(float(sigma.max()))
        trace.adds_noise |= bool(x.abs().max() > SENTINEL**0.5)
        zeros = torch.zeros_like(x)
        # what CFG++ takes from its denoiser besides the answer
        denoiser.last_noise_uncond = torch.zeros_like(x)
        for see in model_options.get(POST_CFG, ()):
            see({"denoised": zeros, "uncond_denoised": torch.zeros_like(x)})
        return zeros

    function = sampler.func

    # wrapped, because the host looks up by name which arguments the function takes
    @wraps(function)
    def run_silently(model: Any, x: Tensor, **arguments: Any) -> Tensor:
        trace.arguments = arguments
        trace.input_scales = x.flatten()[: len(latents)].tolist()
        silent = {"disable": True, "callback": lambda _: None}
        if "noise_sampler" in arguments:
            silent["noise_sampler"] = sentinel.next
        return function(model, x, **{**arguments, **silent})

    with ExitStack() as stack:
        stack.enter_context(instance_attribute(denoiser, "forward", denoise))
        stack.enter_context(instance_attribute(sampler, "func", run_silently))
        stack.enter_context(instance_attribute(p, "rng", sentinel))
        # some noise samplers draw their seed from the global generator, others on the device
        stack.enter_context(random_numbers_kept(latents[0].device))
        sample([_marked(latent, index) for index, latent in enumerate(latents)])
    return trace


def _marked(latent: Tensor, index: int) -> Tensor:
    """Zeros with a one at `index`. Where the sampler's function starts, this place holds the factor of this latent."""
    mark = torch.zeros(latent.numel(), dtype=latent.dtype, device=latent.device)
    mark[index] = 1
    return mark.view(latent.shape)
