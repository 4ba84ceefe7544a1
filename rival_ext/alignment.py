"""Statistics alignment (paper section 3.3, "latent chain alignment")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-5
"""Added to a variance before its root is taken, as in the authors' code."""

Statistics = tuple[Tensor, Tensor]
"""Per-channel mean and standard deviation, each `[N, C, 1, 1]`."""


def channel_statistics(latent: Tensor) -> Statistics:
    """Of `[N, C, H, W]` over the spatial axes, in float32."""
    latent = latent.float()
    mean = latent.mean(dim=(2, 3), keepdim=True)
    variance = latent.var(dim=(2, 3), keepdim=True, unbiased=True)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def blend_statistics(statistics: Sequence[Statistics], weights: Sequence[float]) -> Statistics:
    """Mean and deviation of several exemplars, each with its share; the weights need not add up to 1."""
    shares = [weight / sum(weights) for weight in weights]
    means, deviations = zip(*statistics, strict=True)
    return _weighted_sum(means, shares), _weighted_sum(deviations, shares)


def align_statistics(generation: Tensor, exemplar: Statistics) -> Tensor:
    """`generation` `[N, C, H, W]` with the exemplar's per-channel mean and deviation.

    Step-wise latent normalisation: the paper states it for latents, the authors' code applies it to the guided
    noise prediction; both are this function. Computed in float32, returned in the generation's own type.
    """
    own_mean, own_deviation = channel_statistics(generation)
    mean, deviation = (value.to(generation.device) for value in exemplar)
    aligned = (generation.float() - own_mean) / own_deviation * deviation + mean
    return aligned.to(generation.dtype)


def _weighted_sum(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum(0)
