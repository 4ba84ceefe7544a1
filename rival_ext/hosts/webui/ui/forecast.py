"""What a run with the panel's present values will do, in words, and what speaks against these values.

Words and figures are nodes of their own, so that the WebUI's localisation finds the words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from rival_ext.settings import GUIDANCE

NOTES = {
    "DPM adaptive": "DPM adaptive finds its own steps: the exemplar is evaluated beside every one of them, "
    "which takes half as long again and stores no features.",
}
"""By sampler: what there is to know before sampling."""

WITHOUT_GUIDANCE = ("LCM", "DDIM CFG++")
"""Samplers that are meant for a low guidance scale."""

HIGHEST_GUIDANCE = 7


@dataclass(frozen=True)
class Plan:
    """What the panel and the host's controls say of the next run.

    uploads: exemplars in the panel. is_stored: whether its inversions are known to be kept. denoising_strength: None in
    txt2img.
    """

    enabled: bool
    mode: str
    steps: int
    images: int
    uploads: int
    is_stored: bool
    sampler: str
    cfg_scale: float
    denoising_strength: float | None
    t_align: int
    t_early: int
    start_mix: float


def forecast(plan: Plan) -> str:
    """HTML: a line on what will happen, one on the three values, and a hint for each that works against the rest."""
    if not plan.enabled:
        return _line("rival-hint", "RIVAL is switched off: tick the box in its title.")
    lines = [
        _line("rival-plan", *_inversion(plan), *_images(plan)),
        _line(
            "rival-values",
            *("t_align", plan.t_align, "· t_early", plan.t_early, "· start_mix", f"{plan.start_mix:g}"),
        ),
    ]
    return "".join(lines + [_line("rival-hint", hint) for hint in hints(plan)])


def hints(plan: Plan) -> Iterator[str]:
    """What to change for better images, a sentence each."""
    if plan.denoising_strength is None and not plan.uploads:
        yield "There is no exemplar yet: upload one below."
    if plan.denoising_strength is not None and plan.denoising_strength < 1 and plan.mode != "inpaint":
        yield "Denoising strength below 1 keeps more of the image itself: RIVAL is made for 1."
    best = GUIDANCE[plan.mode]
    if plan.sampler not in WITHOUT_GUIDANCE and plan.cfg_scale > HIGHEST_GUIDANCE:
        yield "A high CFG scale drives the images away from the exemplar: 5 to 7 works best."
    elif plan.sampler not in WITHOUT_GUIDANCE and 1 < plan.cfg_scale < min(best, 5):
        yield "A low CFG scale leaves the prompt little say: 5 to 7 works best."
    if plan.sampler in NOTES:
        yield NOTES[plan.sampler]


def recommended(mode: str, is_img2img: bool) -> dict[str, float]:
    """Values of the host's own controls that suit a mode best, by their names here."""
    strength = {"denoising_strength": 1.0} if is_img2img else {}
    return {"cfg_scale": GUIDANCE[mode], **strength}


def _inversion(plan: Plan) -> tuple[object, ...]:
    if plan.is_stored:
        return ("Uses the stored inversion; makes",)
    if plan.uploads > 1:
        return ("Inverts", plan.uploads, "exemplars in", plan.steps, "steps each, then makes")
    exemplar = "the uploaded exemplar" if plan.uploads else "the img2img image"
    if not plan.uploads and plan.denoising_strength is None:
        exemplar = "the exemplar"
    return (f"Inverts {exemplar} in", plan.steps, "steps, then makes")


def _images(plan: Plan) -> tuple[object, ...]:
    return (plan.images, "image." if plan.images == 1 else "images.")


def _line(kind: str, *parts: object) -> str:
    shown = (
        f"<span>{escape(part)}</span>" if isinstance(part, str) else f"<b>{escape(str(part))}</b>" for part in parts
    )
    return f'<div class="{kind}">{" ".join(shown)}</div>'
