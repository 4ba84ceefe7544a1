"""DDIM inversion of the exemplar, solved implicitly (paper section 3.1, appendix A), and its way back.

Each step of the chain satisfies `z_{i+1} = z_i + (sigma_{i+1} - sigma_i) * eps(z_{i+1}, sigma_{i+1})`, an Euler step
in variance-exploding form. The last evaluation of a step is the one that the exemplar's branch would need at that
noise level during generation, so its self-attention inputs are recorded and the branch is never run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rival_ext.attention import Features, Layers, record
from rival_ext.chain import Chain
from rival_ext.errors import RivalError
from rival_ext.noise import scale_to_vp
from rival_ext.transfer import to_sixteen_bits

PredictNoise = Callable[[Tensor, float], Tensor]
"""(latent `[1, C, H, W]` in variance-exploding form, noise level) -> `eps`, one prompt, guidance 1."""

Progress = Callable[[int, int], None]
"""Told (evaluations done, evaluations at most) before each one; may raise to stop."""

Preview = Callable[[Tensor], None]
"""Given the variance-preserving latent `[1, C, H, W]` after each step."""

MakeRoom = Callable[[int], bool]
"""(bytes of the chain with the next node's features) -> whether these may be kept."""

FirstGuess = Callable[[Sequence[Tensor], Sequence[float], Sequence[Tensor], float], Tensor]
"""(latents so far, their noise levels, the prediction made at each, next noise level) -> start of the iteration."""

LEAP = 10
"""A last step to so many times the noise, as with zero terminal SNR: there a prediction is the latent itself, and the
variance-preserving latent stays where it is."""

TOLERANCE = 1e-4
"""A step's iteration ends when its update is smaller than this, relative to the latent."""


def require_numbers(are_finite: bool) -> None:
    """Raises RivalError if a prediction for the exemplar is not `are_finite`: half precision overflowed."""
    if not are_finite:
        raise RivalError(
            "the inversion gave values that are not numbers; start the WebUI with --no-half or --upcast-sampling."
        )


def part_of(progress: Progress, index: int, parts: int) -> Progress:
    """Progress of one of several equal parts, told as that of the whole."""
    return lambda done, total: progress(index * total + done, parts * total)


def lower_latent(
    latents: Sequence[Tensor], levels: Sequence[float], predictions: Sequence[Tensor], level: float
) -> Tensor:
    """The authors' start: the variance-preserving latent of the lower level, taken for the higher one's."""
    return latents[-1] * scale_to_vp(levels[-1]) / scale_to_vp(level)


def extrapolated(
    latents: Sequence[Tensor], levels: Sequence[float], predictions: Sequence[Tensor], level: float
) -> Tensor:
    """The default: one step along the prediction extrapolated linearly in sigma from the last two nodes."""
    if not predictions or level > LEAP * max(levels[-1], 1):
        return lower_latent(latents, levels, predictions, level)
    slope = predictions[-1]
    if len(predictions) > 1:
        slope = slope + (slope - predictions[-2]) * ((level - levels[-1]) / (levels[-1] - levels[-2]))
    return latents[-1] + (level - levels[-1]) * slope


def invert(
    latent: Tensor,
    noise_levels: Tensor,
    predict_noise: PredictNoise,
    layers: Layers,
    *,
    iterations: int = 1,
    first_guess: FirstGuess = extrapolated,
    make_room: MakeRoom = lambda size: True,
    progress: Progress = lambda done, total: None,
    preview: Preview = lambda latent: None,
) -> Chain:
    """Chain of a clean latent `[1, C, H, W]` (VAE posterior mean, the model's scaling) over ascending noise levels.

    noise_levels: `[N + 1]`, ascending; `latent` lies at the first, the sampler visits the others.
    layers: whose inputs to record; empty records nothing.
    iterations: fixed-point iterations a step at most, 1 or more; each is one evaluation.
    make_room: asked before each node's features are kept; from the first refusal on, nodes have none.
    Raises RivalError at the first prediction that holds anything but numbers.
    """
    levels = noise_levels.tolist()
    # variance-exploding form of a latent that lies at the lowest level, which is 0 or nearly so
    latents = [latent.float() / scale_to_vp(levels[0])]
    predictions: list[Tensor] = []
    kept: dict[int, Features] = {}
    steps = len(levels) - 1
    evaluations, residual = 0, 0.0
    size = len(levels) * latents[0].nbytes

    for node in range(1, steps + 1):
        step = levels[node] - levels[node - 1]
        guess = first_guess(latents, levels[:node], predictions, levels[node])
        update = 0.0
        for iteration in range(iterations):
            progress((node - 1) * iterations + iteration, steps * iterations)
            with record(layers) as features:
                prediction = predict_noise(guess, levels[node])
            evaluations += 1
            latest = latents[-1] + step * prediction
            update = float((latest - guess).norm() / latest.norm())
            require_numbers(math.isfinite(update))
            guess = latest
            if update < TOLERANCE:
                break
        latents.append(guess)
        preview(guess * scale_to_vp(levels[node]))
        predictions = [*predictions[-1:], prediction]
        residual = max(residual, update)
        size += sum(2 * h.numel() for h in features.values())
        if features and make_room(size):
            kept[node] = to_sixteen_bits(features)
    progress(steps * iterations, steps * iterations)
    return Chain(noise_levels, torch.cat(latents), kept, evaluations, residual)


def reconstruct(chain: Chain, predict_noise: PredictNoise, progress: Progress = lambda done, total: None) -> Tensor:
    """The clean latent `[1, C, H, W]` that deterministic steps from `x_T^R` lead back to: how exact the chain is."""
    levels = chain.noise_levels.tolist()
    latent = chain.top
    steps = len(levels) - 1
    for node in range(steps, 0, -1):
        progress(steps - node, steps)
        latent = latent + (levels[node - 1] - levels[node]) * predict_noise(latent, levels[node])
    progress(steps, steps)
    return latent * scale_to_vp(levels[0])
