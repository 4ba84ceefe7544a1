"""A chain without an inversion: one fixed noise at every level (METHOD.md section 7, not in the paper).

`z_R(sigma) = z_0 + sigma e`. No node depends on another, so a few nodes give the features, and they are evaluated
together. What must come back exactly needs the inversion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rival_ext.errors import is_out_of_memory
from rival_ext.method.alignment import align_statistics
from rival_ext.method.attention import Features, Layers, record
from rival_ext.method.chain import Chain
from rival_ext.method.inversion import KeepFeatures, Progress, refuse_not_finite, refuse_unreached
from rival_ext.method.noise import scale_to_vp

NOISE_SEED = 12345
"""The seed of the fixed noise. It is no image's own, so that the seeds of images stay different."""

PredictNoises = Callable[[Tensor, Sequence[float]], Tensor]
"""(latents `[n, C, H, W]`, variance-exploding; the noise level of each) -> `eps` of each, for one prompt, unguided."""


def noised_chain(
    latent: Tensor,
    noise_levels: Tensor,
    nodes: Sequence[int],
    predict_noises: PredictNoises,
    layers: Layers,
    *,
    keep: KeepFeatures = lambda node, features: features,
    progress: Progress = lambda done, total: None,
) -> Chain:
    """Add one fixed noise to a clean latent at each level, and record the features at some of them.

    Args:
        latent: `[1, C, H, W]`, as in `rival_ext.method.inversion.invert`.
        noise_levels: The nodes of the chain, `[N + 1]`, ascending.
        nodes: The nodes to evaluate, ascending, from 1. Often few, because between them the chain is exact.
        predict_noises: Evaluates the exemplar at several levels together.
        layers: The layers to record. If there are none, nothing is evaluated.
        keep: Asked what to keep of each evaluated node's features, counted from 1.
        progress: Told before each evaluation.

    Returns:
        The chain.

    Raises:
        RivalError: A prediction holds NaN or infinity, or an evaluation has reached none of the layers.
    """
    levels = noise_levels.tolist()
    clean = latent.float() / scale_to_vp(levels[0])
    latents = clean + (noise_levels - levels[0]).to(clean)[:, None, None, None] * fixed_noise(clean)
    kept: dict[int, Features] = {}
    total = len(nodes) if layers else 0
    together, done = total, 0
    while done < total:
        progress(done, total)
        batch = nodes[done : done + together]
        try:
            with record(layers) as features:
                predicted = predict_noises(latents[list(batch)], [levels[node] for node in batch])
        except Exception as error:  # only CUDA's lack of memory has an error class of its own
            if together == 1 or not is_out_of_memory(error):
                raise
            together //= 2
            continue
        refuse_unreached(features)
        refuse_not_finite(bool(predicted.isfinite().all()))
        for row, node in enumerate(batch):
            of_node = keep(done + row + 1, {name: h[row : row + 1] for name, h in features.items()})
            if of_node is not None:
                kept[node] = of_node
        done += len(batch)
    progress(total, total)
    return Chain(noise_levels, latents, kept, total, evaluated=len(nodes))


def fixed_noise(latent: Tensor) -> Tensor:
    """Make the noise of a latent's size, with mean 0 and deviation 1 in each channel.

    Args:
        latent: `[1, C, H, W]`.

    Returns:
        The same size. It is the same on every device.
    """
    noise = torch.randn(latent.shape, generator=torch.Generator("cpu").manual_seed(NOISE_SEED)).to(latent)
    mean = torch.zeros_like(noise[:, :, :1, :1])
    return align_statistics(noise, (mean, mean + 1))
