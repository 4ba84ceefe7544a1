"""Whether an inversion is exact enough, in words, and what to change where it is not.

What the inversion records stands for the exemplar in every step of a generation. docs/inversion.md has how far images
made from a chain of so many dB are from those made with the exemplar evaluated beside them, and what helped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from rival_ext.pictures import psnr
from rival_ext.settings import Settings

GOOD, FAIR = 40.0, 30.0
"""dB. From the first on images are all but the same as those with the exemplar evaluated beside them (an RMS of 0.5 of
255 on average); from the second on the difference is small (2.6); below it is plain to see (10). Two seeds differ by 33
to 100."""

HOPELESS = 25.0
"""dB below which more iterations alone, or more steps alone, do not make it good."""

IDENTICAL = 99.0
"""dB that stand for no difference at all."""

ENOUGH_ITERATIONS = 3
"""More bring little."""

ENOUGH_STEPS = 50


@dataclass(frozen=True)
class Verdict:
    """A grade, and a sentence or two that say why and what to do."""

    grade: Literal["good", "fair", "poor"]
    sentence: str


def exactness(ceiling: Image.Image, reconstruction: Image.Image) -> float:
    """dB of an exemplar led back from its inversion, against what the VAE alone makes of it; never more than 99."""
    return round(min(psnr(ceiling, reconstruction), IDENTICAL), 2)


def judge(decibels: float, settings: Settings, steps: int) -> Verdict:
    """On an exemplar that comes back at so many dB, inverted as the settings say for so many sampling steps."""
    back = f"the exemplar comes back at {decibels:.1f} dB"
    if decibels >= GOOD:
        return Verdict("good", f"Good: {back}; nothing to change.")
    if decibels >= FAIR:
        advice = _advice(settings, settings.inversion_iterations + 1, steps, "or")
        return Verdict("fair", f"Fair: {back}; images are a little less faithful to it than they could be. {advice}")
    advice = _advice(settings, ENOUGH_ITERATIONS, steps, "or" if decibels >= HOPELESS else "and")
    return Verdict("poor", f"Poor: {back}; images will miss some of what it shows. {advice}")


def _advice(settings: Settings, iterations: int, steps: int, joint: str) -> str:
    changes = []
    if settings.inversion_iterations < ENOUGH_ITERATIONS:
        changes.append(f"Inversion iterations to {iterations}")
    if steps < ENOUGH_STEPS:
        changes.append(f"the sampling steps to {min(2 * steps, ENOUGH_STEPS)}")
    if changes:
        return f"Raise {f' {joint} '.join(changes)}."
    if settings.exemplar_prompt:
        return "Leave Exemplar prompt empty, or say in it only what the image shows."
    return "Say under Exemplar prompt what the image shows, or try a checkpoint that knows such images."
