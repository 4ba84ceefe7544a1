"""Statistics alignment (paper section 3.3, "latent chain alignment")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-5
"""Added to a variance before its root is taken, as in the authors' code."""

Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation of each channel, each `[N, C, 1, 1]`."""


def channel_statistics(latent: Tensor) -> Statistics:
    """Compute the mean and the standard deviation of each channel over the positions.

    Args:
        latent: `[N, C, H, W]`, one position or more. A single position is its own mean and has no deviation.

    Returns:
        Both in float32, each `[N, C, 1, 1]`.
    """
    latent = latent.float()
    mean = latent.mean(dim=(2, 3), keepdim=True)
    variance = latent.var(dim=(2, 3), keepdim=True, correction=min(1, _positions(latent) - 1))
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def blend_statistics(statistics: Sequence[Statistics], weights: Sequence[float]) -> Statistics:
    """Average the statistics of several exemplars.

    Args:
        statistics: One entry for each exemplar.
        weights: One weight for each exemplar, each above 0. Their sum may be any number.

    Returns:
        The weighted mean of the means, and of the deviations.
    """
    shares = [weight / sum(weights) for weight in weights]
    means, deviations = zip(*statistics, strict=True)
    return _weighted_sum(means, shares), _weighted_sum(deviations, shares)


def align_statistics(generation: Tensor, exemplar: Statistics) -> Tensor:
    """Give a latent or a noise prediction the exemplar's statistics (step-wise latent normalisation).

    The paper normalises the latent; the authors' code normalises the guided noise prediction. Both are this function.

    Args:
        generation: `[N, C, H, W]`.
        exemplar: The statistics to take on, `[1, C, 1, 1]` each.

    Returns:
        `[N, C, H, W]` in the type of `generation`. It is computed in float32. A single position is returned as it is:
        it is its own mean, so the exemplar's mean would take its place and nothing of it would be left.
    """
    if _positions(generation) < 2:
        return generation
    own_mean, own_deviation = channel_statistics(generation)
    mean, deviation = (value.to(generation.device) for value in exemplar)
    aligned = (generation.float() - own_mean) / own_deviation * deviation + mean
    return aligned.to(generation.dtype)


def _positions(latent: Tensor) -> int:
    return latent.shape[2] * latent.shape[3]


def _weighted_sum(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    return torch.stack([value * share for value, share in zip(values, shares, strict=True)]).sum(0)
