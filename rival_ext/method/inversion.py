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
from rival_ext.method.path import Path

PredictNoise = Callable[[Tensor, float], Tensor]
"""(latent `[1, C, H, W]`, variance-exploding; noise level) -> `eps` of one prompt at guidance 1."""

Progress = Callable[[int, int], None]
"""(evaluations done, evaluations at most) -> None. Called before each evaluation. It may raise to stop."""

Preview = Callable[[Tensor], None]
"""(variance-preserving latent `[1, C, H, W]`) -> None. Called after each step."""

KeepFeatures = Callable[[int, Features], Features | None]
"""(node, its features) -> what the chain keeps of them, None for nothing."""

FirstGuess = Callable[[Path, float], Tensor]
"""(the path so far, next noise level) -> where the iteration starts, if no level lies between."""

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


def lower_latent(path: Path, level: float) -> Tensor:
    """First guess of the authors: the variance-preserving latent of the lower level, taken for the higher level."""
    return path.latents[-1] * scale_to_vp(path.levels[-1]) / scale_to_vp(level)


def extrapolated(path: Path, level: float) -> Tensor:
    """First guess by default: one step along the prediction, extrapolated linearly in sigma from the last two nodes."""
    if not path.predictions or level > LARGE_RATIO * max(path.levels[-1], 1):
        return lower_latent(path, level)
    return path.latents[-1] + (level - path.levels[-1]) * path.extrapolated_prediction(level)


def invert(
    latent: Tensor,
    noise_levels: Tensor,
    predict_noise: PredictNoise,
    layers: Layers,
    *,
    evaluated: Sequence[int] = (),
    iterations: int = 1,
    first_guess: FirstGuess = extrapolated,
    keep: KeepFeatures = lambda node, features: features,
    progress: Progress = lambda done, total: None,
    preview: Preview = lambda latent: None,
) -> Chain:
    """Invert a clean latent.

    Args:
        latent: `[1, C, H, W]`, the mean of the VAE's posterior in the model's scaling. It lies at the lowest level.
        noise_levels: The nodes of the chain, `[N + 1]`, ascending. The sampler visits all but the lowest.
        predict_noise: Evaluates the exemplar.
        layers: The layers to record. If there are none, nothing is recorded. Each evaluation must reach one.
        evaluated: The nodes at which the exemplar is evaluated, ascending, from 1 to N, the last one N. Between two of
            them the prediction is interpolated linearly in sigma. Empty for all nodes.
        iterations: The most fixed-point iterations of a step, 1 or more. Each is one evaluation.
        first_guess: Where each step's iteration starts.
        keep: Asked after each step what to keep of its features. It is told which of the evaluated nodes it is, from 1.
        progress: Told before each evaluation.
        preview: Shown the latent of each evaluated node.

    Returns:
        The chain.

    Raises:
        RivalError: A prediction holds NaN or infinity, or an evaluation has reached none of the layers.
    """
    levels = noise_levels.tolist()
    nodes = evaluated or range(1, len(levels))
    # variance-exploding form of a latent at the lowest level, which is 0 or nearly 0
    path = Path([latent.float() / scale_to_vp(levels[0])], levels[:1])
    kept: dict[int, Features] = {}
    evaluations, residual = 0, 0.0

    for index, node in enumerate(nodes):
        ahead = levels[len(path.levels) : node + 1]
        guess = path.guess(ahead, first_guess)
        for iteration in range(iterations):
            progress(index * iterations + iteration, len(nodes) * iterations)
            with record(layers) as features:
                prediction = predict_noise(guess, levels[node])
            if layers:
                refuse_unreached(features)
            evaluations += 1
            latents = path.walk(ahead, prediction)
            update = float((latents[-1] - guess).norm() / latents[-1].norm())
            refuse_not_finite(math.isfinite(update))
            guess = latents[-1]
            if update < TOLERANCE:
                break
        path.extend(latents, ahead, prediction)
        preview(guess * scale_to_vp(levels[node]))
        residual = max(residual, update)
        if features and (of_node := keep(index + 1, features)) is not None:
            kept[node] = of_node
    progress(len(nodes) * iterations, len(nodes) * iterations)
    bend = path.bend if len(nodes) < len(levels) - 1 else 0.0
    return Chain(noise_levels, torch.cat(path.latents), kept, evaluations, residual, bend, len(nodes))


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
