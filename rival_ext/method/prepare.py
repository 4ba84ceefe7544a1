"""From exemplars to a guide: what every host does before it samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.method.chain import Chain
from rival_ext.method.exemplars import Exemplar, InpaintCanvas
from rival_ext.method.guide import Guide
from rival_ext.method.host import EncodedExemplar, Host, InpaintInput
from rival_ext.method.run_chains import ChainRequest, RunChains
from rival_ext.method.store import Store
from rival_ext.method.unused import settings_without_effect
from rival_ext.report import InversionPart
from rival_ext.settings import Settings, mode_defaults
from rival_ext.written import NOISED, needs_each_level

NOTHING_PAINTED = "the mask covers no position of 8x8 pixels by half so nothing was painted"


class Prepared(NamedTuple):
    """The guide for a sampling, and what its inversions say of themselves."""

    guide: Guide
    inversion: InversionPart


def prepare(host: Host, settings: Settings, store: Store) -> Prepared:
    """Make the guide for a host's next sampling. What the store does not hold is inverted.

    Args:
        host: The host of this sampling.
        settings: The validated settings.
        store: Where chains are found and kept.

    Returns:
        The guide, and what its inversions say of themselves.

    Raises:
        RivalError: No layer could see the exemplar at any step. Nothing was evaluated yet.
        Interrupted: The user stopped the run.
    """
    # a schedule of very many steps may visit a level twice
    levels = torch.unique(host.noise_levels())
    _refuse_if_unseen(host, settings, levels)
    begun = time.perf_counter()
    inpaint = host.inpaint_input()
    if inpaint is not None and settings.chain == NOISED:
        raise RivalError("chain must be inverted where a mask is filled, not noised.")
    is_exact = inpaint is not None or needs_each_level(settings.mode, settings.start_mix, settings.inversion_nodes)
    chains = RunChains(host, settings, levels, store, is_exact)
    exemplars, canvas, sources = _exemplars_and_canvas(host.encoded_exemplars(), inpaint, chains)
    seconds = time.perf_counter() - begun
    guide = Guide(
        exemplars,
        settings,
        host.schedule,
        host.layers,
        host.predict_noise,
        levels=levels,
        canvas=canvas,
        sources=sources,
        adds_noise=host.adds_noise(),
        features=chains.features,
        loader=store.loader(exemplars[0].chain.latents.device, len(exemplars)),
    )
    for index, exemplar in enumerate(exemplars):
        for features in exemplar.chain.features.values():
            # raises now, before sampling, if no layer has a token size that was asked for
            guide.seen.layer_choice.of(index, features)
    notes = [*host.notes(), *_notes(host, guide, levels, is_exact)]
    return Prepared(guide, chains.report(len(exemplars), seconds, notes))


def _exemplars_and_canvas(
    encoded: Sequence[EncodedExemplar], inpaint: InpaintInput | None, chains: RunChains
) -> tuple[list[Exemplar], InpaintCanvas | None, Sequence[Exemplar]]:
    chain_requests = [ChainRequest(one.latent, chains.recorded_layers) for one in encoded]
    if inpaint is not None:
        is_exemplar = any(one.latent is inpaint.latent for one in encoded)
        # nothing attends to a canvas that is no exemplar, so its features are not recorded
        chain_requests.append(ChainRequest(inpaint.latent, chains.recorded_layers if is_exemplar else {}))
    made = chains.of(chain_requests)
    exemplars = [
        Exemplar(chain, one.weight, one.region, one.attention_only) for chain, one in zip(made, encoded, strict=False)
    ]
    return exemplars, *_canvas_and_sources(inpaint, made[-1])


def _canvas_and_sources(inpaint: InpaintInput | None, chain: Chain) -> tuple[InpaintCanvas | None, Sequence[Exemplar]]:
    if inpaint is None:
        return None, ()
    sources = () if inpaint.source is None else (Exemplar(chain, region=inpaint.source),)
    return InpaintCanvas(chain, inpaint.mask), sources


def _notes(host: Host, guide: Guide, levels: Tensor, is_exact: bool) -> Iterator[str]:
    """What of the request has no effect."""
    visited = levels[1:].tolist() if host.levels_are_known() else []
    yield from settings_without_effect(
        guide.settings,
        [guide.timesteps.of(level) for level in visited],
        is_aligned=bool(guide.aligned_to),
        is_start_drawn=bool(guide.sources),
        is_guided=host.is_guided(),
        is_exact=is_exact,
    )
    if guide.canvas is not None and not len(guide.canvas.positions):
        yield NOTHING_PAINTED


def _refuse_if_unseen(host: Host, settings: Settings, levels: Tensor) -> None:
    if not host.layers:
        raise RivalError("this checkpoint's UNet has no self-attention layers; load a Stable Diffusion checkpoint.")
    lowest = host.schedule.timestep(float(levels[1]))
    if lowest > settings.early_steps:
        by_mode = mode_defaults(settings.mode)["early_steps"] == settings.early_steps
        raise RivalError(
            f"early_steps must be at least {math.ceil(lowest)} for this sampler, not {settings.early_steps}"
            f"{f', the value of mode {settings.mode}' if by_mode else ''}; otherwise no step sees the exemplar."
        )
