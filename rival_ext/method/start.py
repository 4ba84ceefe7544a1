"""The start of the generation: an image part and a noise part (paper section 3.3).

A chain's latent is the image and noise: `z_R(sigma) = z_0 + n_R(sigma)`. A generation that starts at full noise keeps
no image, and its noise part has the statistics of `z_R`. One that starts below keeps an image, and only its noise part
is random, with the statistics of `n_R`. So the denoising strength leads from the image to a free variation.

The noise part is fresh noise by the image's seed with those statistics (`matched`), or the exemplar's own values in
random order (`permuted`, the authors'), or as inverted, or between (`mix`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rival_ext.method.alignment import Statistics, align_statistics, channel_statistics
from rival_ext.method.exemplars import Exemplar, InpaintCanvas, joint_statistics


def start_latents(
    exemplars: Sequence[Exemplar],
    noise: Tensor,
    seeds: Sequence[int],
    form: str,
    mix: float,
    image: Tensor | None = None,
    canvas: InpaintCanvas | None = None,
) -> Tensor:
    """Make the start latents of a batch. Each image depends on its own noise and seed alone.

    Args:
        exemplars: One or more, cut off at the level of the start. They give the noise part's values or statistics.
        noise: `[N, C, H, W]`, the images' fresh noise with deviation 1.
        seeds: One seed for each image. It orders the permuted values.
        form: "matched" or "permuted".
        mix: From 0 (the first exemplar's noise part as inverted) to 1 (random).
        image: `[1 or N, C, H, W]`, the clean latent that is kept, or None at full noise.
        canvas: If given, only its mask is started. The rest starts as the canvas was inverted.

    Returns:
        `[N, C, H, W]`, variance-exploding.
    """
    if image is not None:
        exemplars = [exemplar.without_image() for exemplar in exemplars]
    layout = exemplars[0].chain.top
    noise = noise.to(layout)
    if layout.shape[2:] != noise.shape[2:]:
        # nearest, because an average of noise has less variance
        layout = interpolate(layout, size=noise.shape[2:], mode="nearest")
    positions = torch.arange(layout[0, 0].numel()).to(layout.device) if canvas is None else canvas.positions
    parts = layout.repeat(len(noise), 1, 1, 1).flatten(2)
    if mix > 0 and len(positions):
        inverted = layout.flatten(2)[:, :, positions, None]
        for index, seed in enumerate(seeds):
            own = noise[index : index + 1].flatten(2)[:, :, positions, None]
            drawn = matched_noise(exemplars, own) if form == "matched" else permuted_noise(exemplars, own, seed)
            values = drawn if mix == 1 else slerp(inverted, drawn, mix)
            parts[index : index + 1, :, positions] = values[..., 0]
    return _with_image(parts.view_as(noise), image, canvas)


def fresh_latents(
    noise: Tensor, noise_level: float, image: Tensor | None = None, canvas: InpaintCanvas | None = None
) -> Tensor:
    """Make start latents of fresh noise alone, for exemplars that are used for attention only.

    Args:
        noise: `[N, C, H, W]`, as in `start_latents`.
        noise_level: The level of the start.
        image: As in `start_latents`.
        canvas: As in `start_latents`.

    Returns:
        `[N, C, H, W]`, variance-exploding.
    """
    return _with_image(noise.float() * noise_level, image, canvas)


def matched_noise(exemplars: Sequence[Exemplar], noise: Tensor) -> Tensor:
    """Give fresh noise the mean and the deviation of the exemplars' tops, by channel.

    The top of a flat or heavily outlined image is not Gaussian: most positions hold next to nothing, some very much.
    In random order it is impulsive noise, in which objects come out in pieces. Fresh noise keeps what the alignment
    needs, the statistics.

    Args:
        exemplars: One or more.
        noise: `[1, C, n, 1]` with deviation 1.

    Returns:
        `[1, C, n, 1]`.
    """
    mean, deviation = statistics = _top_statistics(exemplars)
    # exactly: a start whose statistics are off by chance has the alignment work against it, and shapes suffer
    return align_statistics(noise * deviation + mean, statistics)


def permuted_noise(exemplars: Sequence[Exemplar], noise: Tensor, seed: int) -> Tensor:
    """Put the exemplars' values into random order (the authors' form).

    Args:
        exemplars: One or more. If one has as many seen positions as are asked for, each of its values is used once.
        noise: `[1, C, n, 1]`, for the number of values.
        seed: The order depends on the seed alone, on every device.

    Returns:
        `[1, C, n, 1]`.
    """
    number = noise.shape[2]
    if len(exemplars) == 1 and len(exemplars[0].positions) == number:
        values = exemplars[0].seen(exemplars[0].chain.top)
        order = torch.randperm(number, generator=torch.Generator("cpu").manual_seed(seed))
        return values[:, :, order.to(values.device)]
    # without this, a draw with replacement misses the statistics of the alignment, and images come out spotted
    return align_statistics(draw_positions(exemplars, number, seed), _top_statistics(exemplars))


def draw_positions(exemplars: Sequence[Exemplar], number: int, seed: int) -> Tensor:
    """Draw values of the exemplars' tops with replacement. Each exemplar gives values in proportion to its weight.

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


def _top_statistics(exemplars: Sequence[Exemplar]) -> Statistics:
    return joint_statistics(exemplars, [exemplar.chain.top for exemplar in exemplars])


def _with_image(parts: Tensor, image: Tensor | None, canvas: InpaintCanvas | None) -> Tensor:
    start = parts if image is None else image.to(parts) + parts
    return start if canvas is None else torch.where(canvas.mask > 0, start, canvas.chain.top)
