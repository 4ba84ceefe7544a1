"""From an exemplar to a guide: what every host does before it samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from rival_ext.attention import Layers, count_rows, self_attention_layers
from rival_ext.chain import Chain
from rival_ext.errors import RivalError
from rival_ext.guide import Guide
from rival_ext.inversion import invert
from rival_ext.noise import NoiseSchedule
from rival_ext.report import Inversion, Report
from rival_ext.settings import Settings
from rival_ext.store import ChainStore, digest


class Host(Protocol):
    """What a host gives; it translates and holds no mathematics."""

    unet: nn.Module
    schedule: NoiseSchedule

    def noise_levels(self) -> Tensor:
        """float64 `[N + 1]`, ascending: where the clean latent lies, then those the sampler will visit."""

    def exemplar_latent(self) -> Tensor:
        """`[1, C, H, W]`: mean of the VAE's posterior, in the model's scaling."""

    def predict_noise(self, latent: Tensor, noise_level: float) -> Tensor:
        """`eps` of one variance-exploding latent under the exemplar's prompt, guidance 1, nothing else steering."""

    def progress(self, done: int, total: int) -> None:
        """Shows how far the inversion is; raises `Interrupted` if the user stopped it."""

    def fingerprint(self) -> Iterable[Tensor | object]:
        """Whatever changes a prediction, but for the latent and the noise levels."""

    def memory_budget(self) -> float:
        """Bytes that chains may take in all."""


def prepare(host: Host, settings: Settings, store: ChainStore | None, report: Report) -> Guide:
    """The guide for a host's next sampling; inverts the exemplar unless the store has its chain.

    Raises RivalError before any evaluation if no layer could see the exemplar at any step.
    """
    layers = self_attention_layers(host.unet)
    # a schedule of very many steps may visit a level twice; the chain is looked up by level, never by index
    levels = torch.unique(host.noise_levels())
    _refuse_if_unseen(host, settings, levels, layers)
    report.features = "recorded"
    chain = _chain(host, settings, levels, layers, store, report)
    return Guide(chain, settings, host.schedule, layers, host.predict_noise, report)


def _chain(
    host: Host, settings: Settings, levels: Tensor, layers: Layers, store: ChainStore | None, report: Report
) -> Chain:
    begun = time.perf_counter()
    latent = host.exemplar_latent()
    key = digest([latent, levels, settings.inversion_iterations, *host.fingerprint()])
    budget = host.memory_budget()

    def make_room(size: int) -> bool:
        return size <= budget if store is None else store.make_room(size, budget)

    # the budget may have shrunk since the last run
    make_room(0)
    chain = None if store is None else store.get(key)
    report.store = "off" if store is None else "miss" if chain is None else "hit"
    if chain is None:
        with count_rows(host.unet) as rows:
            chain = invert(
                latent,
                levels,
                host.predict_noise,
                layers,
                iterations=settings.inversion_iterations,
                make_room=make_room,
                progress=host.progress,
            )
        if not torch.isfinite(chain.top).all():
            raise RivalError(
                "the inversion gave values that are not numbers; start the WebUI with --no-half or --upcast-sampling."
            )
        report.rows.inversion = sum(rows)
        report.inversion = Inversion(chain.evaluations, settings.inversion_iterations, chain.residual)
        if store is not None:
            store.put(key, chain, budget)
    report.seconds.inversion = time.perf_counter() - begun
    return chain


def _refuse_if_unseen(host: Host, settings: Settings, levels: Tensor, layers: Layers) -> None:
    if not layers:
        raise RivalError("this checkpoint's UNet has no self-attention layers; load a Stable Diffusion checkpoint.")
    lowest = host.schedule.timestep(float(levels[1]))
    if lowest > settings.early_steps:
        raise RivalError(
            f"early_steps must be at least {math.ceil(lowest)} for this sampler, not {settings.early_steps}; "
            "no step would see the exemplar."
        )
