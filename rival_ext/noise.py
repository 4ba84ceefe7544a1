"""Noise levels and timesteps: the two clocks of a diffusion model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SAME_LEVEL = 1e-4
"""Noise levels that differ by less, relatively, are one: samplers count in 32 bits and come to one by several ways."""


class NoiseSchedule:
    """The checkpoint's training schedule, between timesteps `t` in [0, T) and noise levels `sigma >= 0`.

    A variance-preserving latent is `x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e`; its variance-exploding form is
    `z = x_t / sqrt(a_t)` with noise level `sigma = sqrt((1 - a_t) / a_t)`. The core computes in `z`, where a
    deterministic DDIM step is an Euler step and one inversion serves every sampler.

    sigmas: the T training noise levels, ascending, each above 0.
    """

    def __init__(self, sigmas: Tensor):
        # first to the CPU: Apple's GPUs have no float64
        self._sigmas = sigmas.detach().cpu().double().numpy()
        self._log_sigmas = np.log(self._sigmas)

    @classmethod
    def of_alphas(cls, alphas_cumprod: Tensor) -> NoiseSchedule:
        """From the T values `a_t`, decreasing, each in (0, 1)."""
        alphas = alphas_cumprod.detach().cpu().double()
        return cls(((1 - alphas) / alphas).sqrt())

    def noise_level(self, timestep: float) -> float:
        """`sigma` of a timestep in [0, T); fractions are interpolated in log sigma."""
        whole = int(timestep)
        if whole == timestep:
            return float(self._sigmas[whole])
        return float(np.exp(np.interp(timestep, np.arange(len(self._sigmas)), self._log_sigmas)))

    def timestep(self, noise_level: float) -> float:
        """The timestep in [0, T) of a noise level, interpolated in log sigma; 0 for a clean latent.

        Rounded to a thousandth, so that a sampler's float32 level does not fall on the other side of `t_align`.
        """
        if noise_level <= self._sigmas[0]:
            return 0.0
        return round(float(np.interp(np.log(noise_level), self._log_sigmas, np.arange(len(self._sigmas)))), 3)


def scale_to_vp(noise_level: float) -> float:
    """What a variance-exploding latent is multiplied by to become variance-preserving: `sqrt(a)`, in (0, 1]."""
    return float((1 + noise_level**2) ** -0.5)


def levels_tensor(levels: list[float]) -> Tensor:
    """Noise levels as the core keeps them: float64, on the CPU."""
    return torch.tensor(levels, dtype=torch.float64)
