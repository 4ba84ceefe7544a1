"""Whether an inversion is exact enough, in words, and what to change if it is not.

What the inversion records stands for the exemplar in every step of a generation. docs/inversion.md tells how far
images made from a chain of a given PSNR are from images made with the exemplar evaluated beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from rival_ext.settings import Settings

GOOD, FAIR = 40.0, 30.0
"""PSNR in dB. From 40 on, images differ from those with the exemplar evaluated beside them by an RMS of 0.5 of 255 on
average. From 30 on they differ by 2.6, below that by 10. Two seeds differ by 33 to 100."""

HOPELESS = 25.0
"""PSNR in dB. Below it, neither more iterations alone nor more steps alone make the inversion good."""

IDENTICAL = 99.0
"""The PSNR in dB that stands for no difference at all."""

ENOUGH_ITERATIONS = 3
"""More fixed-point iterations bring little."""

ENOUGH_STEPS = 50
"""More sampling steps bring little."""


@dataclass(frozen=True)
class Verdict:
    """A grade, and a sentence or two that say why and what to do."""

    grade: Literal["good", "fair", "poor"]
    sentence: str


def psnr(one: Tensor, other: Tensor) -> float:
    """Compute the peak signal-to-noise ratio of two images.

    Args:
        one: Values from 0 to 255, of any shape.
        other: Values from 0 to 255, of the same shape.

    Returns:
        The PSNR in dB, infinite if the images are equal.
    """
    error = float(((one.double() - other.double()) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def exactness(ceiling: Tensor, reconstruction: Tensor) -> float:
    """Measure how exactly an exemplar comes back from its inversion.

    Args:
        ceiling: What the VAE alone makes of the exemplar, values from 0 to 255.
        reconstruction: The exemplar led back from its inversion, of the same shape.

    Returns:
        The PSNR in dB, at most 99, rounded to hundredths.
    """
    return round(min(psnr(ceiling, reconstruction), IDENTICAL), 2)


def judge(decibels: float, settings: Settings, steps: int) -> Verdict:
    """Judge an inversion.

    Args:
        decibels: The PSNR at which the exemplar comes back.
        settings: The settings of the inversion.
        steps: The sampling steps of the run, 1 or more.

    Returns:
        The grade, why, and what to change.
    """
    back = f"the exemplar comes back at {decibels:.1f} dB"
    if decibels >= GOOD:
        return Verdict("good", f"Good: {back}; nothing to change.")
    if decibels >= FAIR:
        advice = _advice(settings, settings.inversion_iterations + 1, steps, "or")
        return Verdict("fair", f"Fair: {back}; images are a little less faithful to it than they could be. {advice}")
    advice = _advice(settings, ENOUGH_ITERATIONS, steps, "or" if decibels >= HOPELESS else "and")
    return Verdict("poor", f"Poor: {back}; images will miss some of what it shows. {advice}")


def _advice(settings: Settings, iterations: int, steps: int, conjunction: str) -> str:
    changes = []
    if settings.inversion_iterations < ENOUGH_ITERATIONS:
        changes.append(f"Inversion iterations to {iterations}")
    if steps < ENOUGH_STEPS:
        changes.append(f"the sampling steps to {min(2 * steps, ENOUGH_STEPS)}")
    if changes:
        return f"Raise {f' {conjunction} '.join(changes)}."
    if settings.exemplar_prompt:
        return "Leave Exemplar prompt empty, or say in it only what the image shows."
    return "Say under Exemplar prompt what the image shows, or try a checkpoint that knows such images."
