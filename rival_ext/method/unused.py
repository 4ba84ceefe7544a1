"""Settings that have no effect in a run, in words for the report. What is given is used, refused or mentioned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rival_ext.settings import Settings, mode_defaults

DEFAULTS = mode_defaults("variation")

EXACT_WITHOUT_GUIDANCE = "exact had no effect at guidance scale 1"
"""For hosts, which know the guidance scale."""


def settings_without_effect(
    settings: Settings, timesteps: Sequence[float], *, is_aligned: bool, is_start_drawn: bool
) -> Iterator[str]:
    """List the settings that have no effect, or the same effect on every step.

    Args:
        settings: The validated settings.
        timesteps: The timesteps of the denoiser's calls, in any order. Empty if they are not known before the run.
        is_aligned: Whether there is an exemplar whose statistics are taken.
        is_start_drawn: Whether the start is drawn from an exemplar.

    Yields:
        Sentences without a comma, a colon and a full stop.
    """
    yield from _of_attention(settings, timesteps)
    yield from _of_alignment(settings, timesteps, is_aligned)
    if settings.start_mix != DEFAULTS["start_mix"] and not is_start_drawn:
        yield f"start_mix {settings.start_mix:g} had no effect because every exemplar has a mask"


def _of_attention(settings: Settings, timesteps: Sequence[float]) -> Iterator[str]:
    if settings.exact and not settings.exemplar_prompt:
        yield "exact had no effect without an exemplar_prompt"
    if settings.strength == 0:
        yield "strength 0 let no step see the exemplar"
        return
    seeing = [timestep for timestep in timesteps if timestep <= settings.early_steps]
    if settings.early_steps < 1000 and seeing and len(seeing) == len(timesteps):
        yield f"early_steps {settings.early_steps} skipped no step"
    yield from _one_sided("t_align", settings.t_align, seeing)
    if settings.exemplar_tokens < 1 and seeing and min(seeing) > settings.t_align:
        yield f"exemplar_tokens {settings.exemplar_tokens:g} had no effect because every step lies above t_align"


def _of_alignment(settings: Settings, timesteps: Sequence[float], is_aligned: bool) -> Iterator[str]:
    if settings.alignment != "off" and is_aligned:
        yield from _one_sided("t_early", settings.t_early, timesteps)
    elif settings.t_early != DEFAULTS["t_early"]:
        reason = "alignment is off" if settings.alignment == "off" else "every exemplar has a mask"
        yield f"t_early {settings.t_early} had no effect because {reason}"


def _one_sided(name: str, threshold: int, timesteps: Sequence[float]) -> Iterator[str]:
    """Whether a threshold divides nothing. 0 and 1000 are meant to."""
    if not timesteps or threshold in (0, 1000):
        return
    if max(timesteps) <= threshold:
        yield f"no step lies above {name} {threshold}"
    elif min(timesteps) > threshold:
        yield f"every step lies above {name} {threshold}"
