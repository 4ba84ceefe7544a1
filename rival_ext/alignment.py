"""Statistics alignment and the start's permutation (METHOD: paper section 3.3, "latent chain alignment")."""

from __future__ import annotations

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-5
"""Added to a variance before its root is taken, as in the authors' code."""


def channel_statistics(latent: Tensor) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation over the spatial axes of `[N, C, H, W]`, each `[N, C, 1, 1]`."""
    mean = latent.mean(dim=(2, 3), keepdim=True)
    variance = latent.var(dim=(2, 3), keepdim=True, unbiased=True)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def align_statistics(generation: Tensor, exemplar: Tensor) -> Tensor:
    """`generation` `[N, C, H, W]` with the per-channel mean and deviation of `exemplar` `[1 or N, C, H', W']`.

    Step-wise latent normalisation: the paper states it for latents, the authors' code applies it to the guided
    noise prediction; both are this function. Computed in float32, returned in the generation's own type.
    """
    own_mean, own_deviation = channel_statistics(generation.float())
    mean, deviation = channel_statistics(exemplar.float().to(generation.device))
    aligned = (generation.float() - own_mean) / own_deviation * deviation + mean
    return aligned.to(generation.dtype)


def permute_positions(latent: Tensor, seed: int) -> Tensor:
    """`latent` `[1, C, H, W]` with its positions in a random order, the same for all channels.

    Each channel keeps its values, so its statistics, and forgets the layout: the start of a generation from the
    exemplar's inverted latent (paper section 3.3). The order depends on `seed` alone, on every device.
    """
    height, width = latent.shape[2:]
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(height * width, generator=generator)
    return take_positions(latent, order)


def take_positions(latent: Tensor, order: Tensor) -> Tensor:
    """`latent` `[N, C, H, W]` with the positions `order` (`H * W` indices, row-major) read into its own shape."""
    return latent.flatten(2)[:, :, order.to(latent.device)].reshape(latent.shape)
