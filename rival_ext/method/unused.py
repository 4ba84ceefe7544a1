"""Settings that have no effect in a run, in words for the report. What is given is used, refused or mentioned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rival_ext.settings import Settings, mode_defaults
from rival_ext.written import ALL, NOISED

DEFAULTS = mode_defaults("variation")


def settings_without_effect(
    settings: Settings,
    timesteps: Sequence[float],
    *,
    is_aligned: bool,
    is_start_drawn: bool,
    is_guided: bool,
    is_exact: bool,
) -> Iterator[str]:
    """List the settings that have no effect, or the same effect on every step.

    Args:
        settings: The validated settings.
        timesteps: The timesteps of the denoiser's calls, in any order. Empty if they are not known before the run.
        is_aligned: Whether there is an exemplar whose statistics are taken.
        is_start_drawn: Whether the start is drawn from an exemplar.
        is_guided: Whether the guidance scale is not 1.
        is_exact: Whether the exemplar is inverted at each level that the sampler visits.

    Yields:
        Sentences without a comma, a colon and a full stop.
    """
    yield from _of_attention(settings, timesteps, is_aligned, is_guided)
    yield from _of_alignment(settings, timesteps, is_aligned)
    yield from _of_chain(settings, is_exact)
    if not is_start_drawn:
        for name in ("start", "start_mix"):
            if (value := dict(settings)[name]) != DEFAULTS[name]:
                yield f"{name} {str(value).removesuffix('.0')} had no effect because every exemplar has a mask"
    elif settings.start_mix == 0 and settings.start != DEFAULTS["start"]:
        yield f"start {settings.start} had no effect because start_mix is 0"


def _of_attention(settings: Settings, timesteps: Sequence[float], is_aligned: bool, is_guided: bool) -> Iterator[str]:
    if settings.exact and not settings.exemplar_prompt:
        yield "exact had no effect without an exemplar_prompt"
    elif settings.exact and not is_guided:
        yield "exact had no effect at guidance scale 1"
    if settings.strength == 0:
        yield "strength 0 let no step see the exemplar"
        return
    if settings.uncond_share < 1 and not is_guided:
        yield f"uncond_share {settings.uncond_share:g} had no effect at guidance scale 1"
    elif settings.uncond_share != mode_defaults(settings.mode)["uncond_share"] and not is_aligned:
        yield f"uncond_share {settings.uncond_share:g} had no effect because every exemplar has a mask"
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


def _of_chain(settings: Settings, is_exact: bool) -> Iterator[str]:
    nodes, iterations = settings.inversion_nodes, settings.inversion_iterations
    if settings.chain == NOISED:
        if nodes != DEFAULTS["inversion_nodes"]:
            yield f"inversion_nodes {nodes} had no effect because a noised chain is not inverted"
        if iterations > 1:
            yield f"inversion_iterations {iterations} had no effect because a noised chain is not inverted"
    elif is_exact and nodes not in (ALL, DEFAULTS["inversion_nodes"]):
        yield f"inversion_nodes {nodes} had no effect because this run inverts at each of the sampler's levels"
    if settings.features == "live" and settings.feature_nodes not in (ALL, DEFAULTS["feature_nodes"]):
        yield f"feature_nodes {settings.feature_nodes} had no effect because features are live"


def _one_sided(name: str, threshold: int, timesteps: Sequence[float]) -> Iterator[str]:
    """Whether a threshold divides nothing. 0 and 1000 are meant to, and so is a default at a low denoising strength."""
    if not timesteps or threshold in (0, 1000):
        return
    if max(timesteps) <= threshold and threshold != DEFAULTS[name]:
        yield f"no step lies above {name} {threshold}"
    elif min(timesteps) > threshold:
        yield f"every step lies above {name} {threshold}"
