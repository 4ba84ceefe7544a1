"""DDIM inversion of the exemplar, solved implicitly (paper section 3.1, appendix A), and the way back.

Each step of the chain satisfies `z_{i+1} = z_i + (sigma_{i+1} - sigma_i) * eps(z_{i+1}, sigma_{i+1})`, an Euler step
in variance-exploding form. The last evaluation of a step is the one that the exemplar's branch would need at that
noise level during generation. So its self-attention inputs are recorded, and the branch is never run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.method.attention import Features, Layers, record
from rival_ext.method.chain import Chain
from rival_ext.method.noise import scale_to_vp

PredictNoise = Callable[[Tensor, float], Tensor]
"""(latent `[1, C, H, W]`, variance-exploding; noise level) -> `eps` of one prompt at guidance 1."""

Progress = Callable[[int, int], None]
"""(evaluations done, evaluations at most) -> None. Called before each evaluation. It may raise to stop."""

Preview = Callable[[Tensor], None]
"""(variance-preserving latent `[1, C, H, W]`) -> None. Called after each step."""

KeepFeatures = Callable[[Features, int], Features | None]
"""(features of a node, bytes of the chain with them in 16 bits) -> what the chain keeps of them, None for nothing."""

FirstGuess = Callable[[Sequence[Tensor], Sequence[float], Sequence[Tensor], float], Tensor]
"""(latents so far, their noise levels, the prediction at each, next noise level) -> where the iteration starts."""

LARGE_RATIO = 10
"""A step to more than this many times the noise is the last step with zero terminal SNR. There a prediction is the
latent itself, and the variance-preserving latent stays where it is."""

TOLERANCE = 1e-4
"""A step's iteration ends when its update, relative to the latent, is smaller."""


def refuse_not_finite(are_finite: bool) -> None:
    """Raise an error if a prediction for the exemplar holds NaN or infinity.

    Args:
        are_finite: Whether all of its values are finite.

    Raises:
        RivalError: They are not, because half precision overflowed.
    """
    if not are_finite:
        raise RivalError(
            "the inversion gave values that are not numbers (NaN); start the WebUI with --no-half or --upcast-sampling."
        )


def refuse_unreached(layers: Collection[str]) -> None:
    """Raise an error if an evaluation has reached no self-attention layer.

    Args:
        layers: The names of the layers that were reached.

    Raises:
        RivalError: There is none, because the layers' forwards are not called (torch.compile, a replaced forward).
    """
    if not layers:
        raise RivalError(
            "no self-attention layer saw the exemplar; another extension may have replaced the UNet's forward: "
            "disable the other extensions one by one."
        )


def part_of(progress: Progress, index: int, parts: int) -> Progress:
    """Make the progress of one of several equal parts count as progress of the whole.

    Args:
        progress: Told the progress of the whole.
        index: Which part it is, from 0.
        parts: How many parts there are.

    Returns:
        What the part has to call.
    """
    return lambda done, total: progress(index * total + done, parts * total)


def lower_latent(
    latents: Sequence[Tensor], levels: Sequence[float], predictions: Sequence[Tensor], level: float
) -> Tensor:
    """First guess of the authors: the variance-preserving latent of the lower level, taken for the higher level."""
    return latents[-1] * scale_to_vp(levels[-1]) / scale_to_vp(level)


def extrapolated(
    latents: Sequence[Tensor], levels: Sequence[float], predictions: Sequence[Tensor], level: float
) -> Tensor:
    """First guess by default: one step along the prediction, extrapolated linearly in sigma from the last two nodes."""
    if not predictions or level > LARGE_RATIO * max(levels[-1], 1):
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
    keep: KeepFeatures = lambda features, size: features,
    progress: Progress = lambda done, total: None,
    preview: Preview = lambda latent: None,
) -> Chain:
    """Invert a clean latent.

    Args:
        latent: `[1, C, H, W]`, the mean of the VAE's posterior in the model's scaling. It lies at the lowest level.
        noise_levels: The nodes of the chain, `[N + 1]`, ascending. The sampler visits all but the lowest.
        predict_noise: Evaluates the exemplar.
        layers: The layers to record. If there are none, nothing is recorded. Each evaluation must reach one.
        iterations: The most fixed-point iterations of a step, 1 or more. Each is one evaluation.
        first_guess: Where each step's iteration starts.
        keep: Asked after each step what to keep of its features.
        progress: Told before each evaluation.
        preview: Shown each node's latent.

    Returns:
        The chain.

    Raises:
        RivalError: A prediction holds NaN or infinity, or an evaluation has reached none of the layers.
    """
    levels = noise_levels.tolist()
    # variance-exploding form of a latent at the lowest level, which is 0 or nearly 0
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
            if layers:
                refuse_unreached(features)
            evaluations += 1
            latest = latents[-1] + step * prediction
            update = float((latest - guess).norm() / latest.norm())
            refuse_not_finite(math.isfinite(update))
            guess = latest
            if update < TOLERANCE:
                break
        latents.append(guess)
        preview(guess * scale_to_vp(levels[node]))
        predictions = [*predictions[-1:], prediction]
        residual = max(residual, update)
        size += sum(2 * h.numel() for h in features.values())
        if features and (kept_features := keep(features, size)) is not None:
            kept[node] = kept_features
    progress(steps * iterations, steps * iterations)
    return Chain(noise_levels, torch.cat(latents), kept, evaluations, residual)


def reconstruct(chain: Chain, predict_noise: PredictNoise, progress: Progress = lambda done, total: None) -> Tensor:
    """Lead the exemplar back from `x_T^R` by deterministic steps. The result tells how exact the chain is.

    Args:
        chain: The exemplar's chain.
        predict_noise: Evaluates the exemplar, as in the inversion.
        progress: Told before each evaluation.

    Returns:
        The clean latent, `[1, C, H, W]`.
    """
    levels = chain.noise_levels.tolist()
    latent = chain.top
    steps = len(levels) - 1
    for node in range(steps, 0, -1):
        progress(steps - node, steps)
        latent = latent + (levels[node - 1] - levels[node]) * predict_noise(latent, levels[node])
    progress(steps, steps)
    return latent * scale_to_vp(levels[0])
