"""The generation's start: `x_T^R` with its positions permuted, as inverted, or between (paper section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rival_ext.alignment import align_statistics, channel_statistics
from rival_ext.chain import Chain
from rival_ext.exemplar import Canvas, Exemplar, joint_statistics


def start_latents(
    exemplars: Sequence[Exemplar],
    seeds: Sequence[int],
    mix: float,
    size: tuple[int, int],
    canvas: Canvas | None = None,
) -> Tensor:
    """`[len(seeds), C, *size]` in variance-exploding form, each drawn from its image's own seed alone.

    mix: from 0, as the first exemplar was inverted, to 1, positions permuted; between them the variance is kept.
    canvas: only its hole starts from the exemplars, the rest as the canvas was inverted.
    """
    layout = exemplars[0].chain.top
    if layout.shape[2:] != torch.Size(size):
        # nearest, since an average of noise has less variance
        layout = interpolate(layout, size=size, mode="nearest")
    background = layout if canvas is None else canvas.chain.top
    places = torch.arange(size[0] * size[1]) if canvas is None else canvas.positions
    return torch.cat([_start(exemplars, layout, background, places, mix, seed) for seed in seeds])


def noise_latents(chain: Chain, seeds: Sequence[int], size: tuple[int, int], canvas: Canvas | None = None) -> Tensor:
    """As `start_latents`, but from fresh noise at the chain's highest level: nothing gives positions."""
    top = chain.top if canvas is None else canvas.chain.top
    shape = (1, top.shape[1], *size)
    generators = (torch.Generator("cpu").manual_seed(seed) for seed in seeds)
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(top)
    noise = noise * float(chain.noise_levels[-1])
    return noise if canvas is None else torch.where(canvas.hole > 0, noise, top)


def permute_positions(exemplar: Exemplar, seed: int) -> Tensor:
    """`[1, C, n, 1]`: the seen values of `x_T^R` in random order, the same for all channels, each of them once.

    Depends on `seed` alone, on every device.
    """
    values = exemplar.seen(exemplar.chain.top)
    order = torch.randperm(values.shape[2], generator=torch.Generator("cpu").manual_seed(seed))
    return values[:, :, order.to(values.device)]


def draw_positions(exemplars: Sequence[Exemplar], number: int, seed: int) -> Tensor:
    """`[1, C, number, 1]`: as `permute_positions`, but drawn with replacement, of several exemplars by weight."""
    pools = [exemplar.seen(exemplar.chain.top) for exemplar in exemplars]
    shares = [
        torch.full((pool.shape[2],), exemplar.weight / pool.shape[2])
        for exemplar, pool in zip(exemplars, pools, strict=True)
    ]
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.multinomial(torch.cat(shares), number, replacement=True, generator=generator)
    return torch.cat(pools, dim=2)[:, :, order.to(pools[0].device)]


def _drawn(exemplars: Sequence[Exemplar], number: int, seed: int) -> Tensor:
    if len(exemplars) == 1 and len(exemplars[0].positions) == number:
        return permute_positions(exemplars[0], seed)
    # a draw with replacement misses the statistics that the alignment will pull to, and pictures come out spotted
    joint = joint_statistics(exemplars, [exemplar.chain.top for exemplar in exemplars])
    return align_statistics(draw_positions(exemplars, number, seed), joint)


def _start(
    exemplars: Sequence[Exemplar], layout: Tensor, background: Tensor, places: Tensor, mix: float, seed: int
) -> Tensor:
    places = places.to(background.device)
    inverted = layout.flatten(2)[:, :, places, None]
    drawn = _drawn(exemplars, len(places), seed) if mix > 0 else inverted
    start = background.flatten(2).clone()
    start[:, :, places] = _between(inverted, drawn, mix)[..., 0]
    return start.view_as(background)


def _between(inverted: Tensor, drawn: Tensor, mix: float) -> Tensor:
    if mix in (0, 1):
        return drawn
    angle = mix * math.pi / 2
    blend = math.cos(angle) * inverted + math.sin(angle) * drawn
    # the two are not quite independent, and their means would add up
    return align_statistics(blend, channel_statistics(drawn))
