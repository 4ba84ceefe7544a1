"""The start of the generation: `x_T^R` with its positions permuted, as inverted, or between (paper section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rival_ext.method.alignment import align_statistics, channel_statistics
from rival_ext.method.chain import Chain
from rival_ext.method.exemplars import Exemplar, InpaintCanvas, joint_statistics


def start_latents(
    exemplars: Sequence[Exemplar],
    seeds: Sequence[int],
    mix: float,
    size: tuple[int, int],
    canvas: InpaintCanvas | None = None,
) -> Tensor:
    """Make the start latents of a batch. Each image depends on its own seed alone.

    Args:
        exemplars: One or more. Their `x_T^R` gives the values.
        seeds: One seed for each image.
        mix: From 0 (as the first exemplar was inverted) to 1 (positions permuted).
        size: Height and width of the latents.
        canvas: If given, only its mask starts from the exemplars. The rest starts as the canvas was inverted.

    Returns:
        `[len(seeds), C, *size]`, variance-exploding.
    """
    layout = exemplars[0].chain.top
    if layout.shape[2:] != torch.Size(size):
        # nearest, because an average of noise has less variance
        layout = interpolate(layout, size=size, mode="nearest")
    background = layout if canvas is None else canvas.chain.top
    positions = torch.arange(size[0] * size[1]) if canvas is None else canvas.positions
    positions = positions.to(background.device)
    return torch.cat([_start_latent(exemplars, layout, background, positions, mix, seed) for seed in seeds])


def noise_latents(
    chain: Chain, seeds: Sequence[int], size: tuple[int, int], canvas: InpaintCanvas | None = None
) -> Tensor:
    """Make start latents of fresh noise, for exemplars that are used for attention only.

    Args:
        chain: Its highest level is the level of the noise.
        seeds: One seed for each image.
        size: Height and width of the latents.
        canvas: If given, only its mask starts from noise.

    Returns:
        `[len(seeds), C, *size]`, variance-exploding.
    """
    top = chain.top if canvas is None else canvas.chain.top
    shape = (1, top.shape[1], *size)
    generators = (torch.Generator("cpu").manual_seed(seed) for seed in seeds)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(top)
    noise = noise * float(chain.noise_levels[-1])
    return noise if canvas is None else torch.where(canvas.mask > 0, noise, top)


def permute_positions(exemplar: Exemplar, seed: int) -> Tensor:
    """Put the seen values of `x_T^R` into random order. The order is the same for all channels.

    Args:
        exemplar: The exemplar.
        seed: The order depends on the seed alone, on every device.

    Returns:
        `[1, C, n, 1]`, each of the n values once.
    """
    values = exemplar.seen(exemplar.chain.top)
    order = torch.randperm(values.shape[2], generator=torch.Generator("cpu").manual_seed(seed))
    return values[:, :, order.to(values.device)]


def draw_positions(exemplars: Sequence[Exemplar], number: int, seed: int) -> Tensor:
    """Draw values of `x_T^R` with replacement. Each exemplar gives values in proportion to its weight.

    Args:
        exemplars: One or more.
        number: How many values to draw.
        seed: The draw depends on the seed alone, on every device.

    Returns:
        `[1, C, number, 1]`.
    """
    pools = [exemplar.seen(exemplar.chain.top) for exemplar in exemplars]
    shares = [
        torch.full((pool.shape[2],), exemplar.weight / pool.shape[2])
        for exemplar, pool in zip(exemplars, pools, strict=True)
    ]
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.multinomial(torch.cat(shares), number, replacement=True, generator=generator)
    return torch.cat(pools, dim=2)[:, :, order.to(pools[0].device)]


def slerp(inverted: Tensor, drawn: Tensor, mix: float) -> Tensor:
    """Interpolate spherically between the inverted and the drawn values, so that the variance is kept.

    Args:
        inverted: `[1, C, n, 1]`.
        drawn: `[1, C, n, 1]`.
        mix: From 0 (`inverted`) to 1 (`drawn`).

    Returns:
        `[1, C, n, 1]` with the statistics of `drawn`.
    """
    angle = mix * math.pi / 2
    blend = math.cos(angle) * inverted + math.sin(angle) * drawn
    # the two are not quite independent, and their means would add up
    return align_statistics(blend, channel_statistics(drawn))


def _start_latent(
    exemplars: Sequence[Exemplar], layout: Tensor, background: Tensor, positions: Tensor, mix: float, seed: int
) -> Tensor:
    inverted = layout.flatten(2)[:, :, positions, None]
    if mix == 0 or not len(positions):
        values = inverted
    else:
        drawn = _drawn_values(exemplars, len(positions), seed)
        values = drawn if mix == 1 else slerp(inverted, drawn, mix)
    start = background.flatten(2).clone()
    start[:, :, positions] = values[..., 0]
    return start.view_as(background)


def _drawn_values(exemplars: Sequence[Exemplar], number: int, seed: int) -> Tensor:
    if len(exemplars) == 1 and len(exemplars[0].positions) == number:
        return permute_positions(exemplars[0], seed)
    # without this, a draw with replacement misses the statistics of the alignment, and images come out spotted
    joint = joint_statistics(exemplars, [exemplar.chain.top for exemplar in exemplars])
    return align_statistics(draw_positions(exemplars, number, seed), joint)
