"""Noise levels and timesteps: the two scales on which a diffusion model counts noise."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

SAME_LEVEL = 1e-4
"""Two noise levels whose relative difference is smaller are one level. Samplers count in 32 bits and reach the same
level in several ways."""


MOST_TIMESTEPS = 1000.0
"""The thresholds of the settings count timesteps from 0 (clean) to this (noise)."""


class NoiseSchedule:
    """The checkpoint's training schedule: converts timesteps `t` in [0, T) to noise levels `sigma` above 0, and back.

    A variance-preserving latent is `x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e`. Its variance-exploding form is
    `z = x_t / sqrt(a_t)` with noise level `sigma = sqrt((1 - a_t) / a_t)`. The method computes in `z`: there a
    deterministic DDIM step is an Euler step, so one inversion serves every sampler.

    Args:
        sigmas: The T training noise levels, `[T]`, ascending, each above 0.
    """

    def __init__(self, sigmas: Tensor):
        # moved to the CPU first: Apple's GPUs have no float64
        self._sigmas: list[float] = sigmas.detach().cpu().double().tolist()
        self._log_sigmas = [math.log(sigma) for sigma in self._sigmas]
        self._timesteps = [float(timestep) for timestep in range(len(self._sigmas))]

    @classmethod
    def of_alphas(cls, alphas_cumprod: Tensor) -> NoiseSchedule:
        """Make a schedule from the checkpoint's `alphas_cumprod`.

        Args:
            alphas_cumprod: The T values `a_t`, `[T]`, decreasing, each in (0, 1).

        Returns:
            The schedule.
        """
        alphas = alphas_cumprod.detach().cpu().double()
        return cls(((1 - alphas) / alphas).sqrt())

    def noise_level(self, timestep: float) -> float:
        """Convert a timestep to a noise level.

        Args:
            timestep: In [0, T). A fraction is interpolated in log sigma.

        Returns:
            The noise level, above 0.
        """
        whole = int(timestep)
        if whole == timestep:
            return self._sigmas[whole]
        return math.exp(_interpolate(timestep, self._timesteps, self._log_sigmas))

    def timestep(self, noise_level: float) -> float:
        """Convert a noise level to a timestep.

        Args:
            noise_level: 0 or more.

        Returns:
            The timestep in [0, T), interpolated in log sigma and rounded to a thousandth. Without the rounding, a
            level in float32 could fall on the other side of `t_align`.
        """
        if noise_level <= self._sigmas[0]:
            return 0.0
        return round(_interpolate(math.log(noise_level), self._log_sigmas, self._timesteps), 3)


class SamplerTimesteps:
    """Timesteps as the thresholds of the settings count them, for a sampler that visits few.

    A sampler's first timestep lies below 1000 by up to one spacing: at 951 with 20 DDIM steps. A threshold between
    the two, such as `early_steps` 960, would then act on no step. So the first timestep counts as 1000 if the sampler
    starts at full noise: a threshold below 1000 acts on one step at least.

    Args:
        schedule: The checkpoint's noise schedule.
        noise_levels: The levels that the sampler visits, ascending, and below them the clean latent's, `[N + 1]`.
    """

    def __init__(self, schedule: NoiseSchedule, noise_levels: Tensor):
        self._schedule = schedule
        second, first = noise_levels[-2:].tolist()
        spacing = schedule.timestep(first) - schedule.timestep(second)
        starts_at_full_noise = schedule.timestep(first) + spacing >= MOST_TIMESTEPS
        self._full_noise = first * (1 - SAME_LEVEL) if starts_at_full_noise else math.inf

    def of(self, noise_level: float) -> float:
        """Convert a noise level to a timestep.

        Args:
            noise_level: 0 or more.

        Returns:
            The timestep, from 0 to 1000.
        """
        return MOST_TIMESTEPS if noise_level >= self._full_noise else self._schedule.timestep(noise_level)


def scale_to_vp(noise_level: float) -> float:
    """Return the factor `sqrt(a)` that makes a variance-exploding latent variance-preserving.

    Args:
        noise_level: 0 or more.

    Returns:
        The factor, in (0, 1].
    """
    return float((1 + noise_level**2) ** -0.5)


def levels_tensor(levels: list[float]) -> Tensor:
    """Put noise levels into a tensor as the method keeps them.

    Args:
        levels: Any number N of noise levels.

    Returns:
        `[N]`, float64, on the CPU.
    """
    return torch.tensor(levels, dtype=torch.float64)


def segment_of(noise_levels: Tensor, noise_level: float) -> int:
    """Find the segment between two levels that holds a noise level.

    Args:
        noise_levels: `[N + 1]`, ascending.
        noise_level: Any level.

    Returns:
        The index of the level at the segment's upper end, from 1.
    """
    index = int(torch.searchsorted(noise_levels, noise_level * (1 - SAME_LEVEL)))
    return min(max(index, 1), len(noise_levels) - 1)


def _interpolate(at: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Linear interpolation of `ys` over ascending `xs`. The ends go on flat."""
    upper = bisect_right(xs, at)
    if upper in (0, len(xs)):
        return ys[min(upper, len(xs) - 1)]
    lower = upper - 1
    slope = (ys[upper] - ys[lower]) / (xs[upper] - xs[lower])
    return slope * (at - xs[lower]) + ys[lower]
