"""From an exemplar to a guide: what every host does before it samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rival_ext.attention import Layers, count_rows
from rival_ext.chain import Chain
from rival_ext.errors import RivalError
from rival_ext.exemplar import Canvas, Exemplar, positions_in
from rival_ext.guide import Guide
from rival_ext.inversion import Progress, invert, part_of
from rival_ext.memory import is_lack_of_memory
from rival_ext.noise import NoiseSchedule
from rival_ext.report import Report
from rival_ext.settings import Settings
from rival_ext.store import Store, digest

FEWEST_POSITIONS = 4
"""Statistics of fewer positions of a latent mean nothing."""


@dataclass(frozen=True)
class Picture:
    """An exemplar before its inversion.

    latent: `[1, C, H, W]`, mean of the VAE's posterior, in the model's scaling. The others: as an `Exemplar`'s.
    Raises RivalError for a region with too few positions to have statistics.
    """

    latent: Tensor
    weight: float = 1.0
    region: Tensor | None = None
    is_part: bool = False

    def __post_init__(self) -> None:
        if self.region is not None and len(positions_in(self.region)) < FEWEST_POSITIONS:
            raise RivalError("exemplar_mask shows next to nothing of its exemplar; paint a larger region white.")


@dataclass(frozen=True)
class Painting:
    """A picture with a hole to fill, before its inversion.

    latent, hole: as a `Canvas`'s. source: `[1, 1, H, W]`, the region of it that the hole's start is drawn from; None
    draws it from the exemplars.
    """

    latent: Tensor
    hole: Tensor
    source: Tensor | None


class Host(Protocol):
    """What a host gives; it translates and holds no mathematics."""

    unet: nn.Module
    layers: Layers
    schedule: NoiseSchedule

    def noise_levels(self) -> Tensor:
        """float64 `[N + 1]`, ascending: where the clean latent lies, then those the sampler will visit."""

    def is_predictable(self) -> bool:
        """Whether the sampler visits just these; features recorded for one that finds its own would serve nothing."""

    def adds_noise(self) -> bool:
        """Whether the sampler draws fresh noise on the way."""

    def pictures(self) -> Sequence[Picture]:
        """The exemplars, one or more."""

    def painting(self) -> Painting | None:
        """What is inpainted, if anything."""

    def predict_noise(self, latent: Tensor, noise_level: float) -> Tensor:
        """`eps` of one variance-exploding latent under the exemplar's prompt, guidance 1, nothing else steering."""

    def progress(self, done: int, total: int) -> None:
        """Shows how far all inversions of this run are together; raises `Interrupted` if the user stopped them."""

    def preview(self, latent: Tensor) -> None:
        """Shows what an inversion has come to, a variance-preserving latent `[1, C, H, W]`."""

    def fingerprint(self) -> Iterable[Tensor | object]:
        """Whatever changes a prediction, but for the latent and the noise levels."""

    def memory_budget(self) -> float:
        """Bytes that chains may take in all."""


def prepare(host: Host, settings: Settings, store: Store | None, report: Report) -> Guide:
    """The guide for a host's next sampling; inverts what the store has no chain of.

    Raises RivalError before any evaluation if no layer could see the exemplar at any step.
    """
    layers = host.layers
    # a schedule of very many steps may visit a level twice; the chain is looked up by level, never by index
    levels = torch.unique(host.noise_levels())
    _refuse_if_unseen(host, settings, levels, layers)
    report.features, recorded = settings.features, layers if settings.features == "recorded" else {}
    if not host.is_predictable():
        report.features, recorded = "live", {}
        report.note("the sampler finds its own noise levels")
    report.store = "off" if store is None else "hit"
    begun = time.perf_counter()
    pictures, painting = host.pictures(), host.painting()
    wanted = [Wanted(picture.latent, recorded) for picture in pictures]
    if painting is not None:
        is_exemplar = any(picture.latent is painting.latent for picture in pictures)
        # nothing attends to a canvas that is no exemplar: its features are not recorded
        wanted.append(Wanted(painting.latent, recorded if is_exemplar else {}))
    chains = _Chains(host, settings, levels, store, report).of(wanted)
    exemplars = [
        Exemplar(chain, picture.weight, picture.region, picture.is_part)
        for chain, picture in zip(chains, pictures, strict=False)
    ]
    canvas, sources = _canvas(painting, chains[-1])
    report.exemplars = len(exemplars)
    report.seconds.inversion = time.perf_counter() - begun
    guide = Guide(
        exemplars, settings, host.schedule, layers, host.predict_noise, report, canvas, sources, host.adds_noise()
    )
    for exemplar in exemplars:
        for features in exemplar.chain.features.values():
            # raises now, before sampling, if no layer is of a size that was asked for
            guide.visible(exemplar, features)
    return guide


def _canvas(painting: Painting | None, chain: Chain) -> tuple[Canvas | None, Sequence[Exemplar]]:
    """What is inpainted, and what its hole's start is drawn from, if not from the exemplars; `chain` is its own."""
    if painting is None:
        return None, ()
    sources = () if painting.source is None else (Exemplar(chain, region=painting.source),)
    return Canvas(chain, painting.hole), sources


class Wanted(NamedTuple):
    """A chain to have: of a clean latent `[1, C, H, W]`, with features of these layers."""

    latent: Tensor
    layers: Layers


class _Chains:
    """The chains of one run: from the store, or inverted now; together within the memory budget."""

    def __init__(self, host: Host, settings: Settings, levels: Tensor, store: Store | None, report: Report):
        self.host = host
        self.settings = settings
        self.levels = levels
        self.store = store
        self.report = report
        self.budget = host.memory_budget()
        self.in_use: dict[str, Chain] = {}

    def of(self, wanted: Sequence[Wanted]) -> list[Chain]:
        """A chain for each, in order; those that the store lacks are inverted, each once."""
        # the budget may have shrunk since the last run
        self._make_room(0)
        keys = [self._key(one) for one in wanted]
        missing = dict(zip(keys, wanted, strict=True))
        for key in list(missing):
            stored = None if self.store is None else self.store.get(key)
            if stored is not None:
                self.in_use[key] = stored
                del missing[key]
        for index, (key, one) in enumerate(missing.items()):
            self.in_use[key] = self._invert(key, one, part_of(self.host.progress, index, len(missing)))
        return [self.in_use[key] for key in keys]

    def _key(self, wanted: Wanted) -> str:
        iterations, fingerprint = self.settings.inversion_iterations, self.host.fingerprint()
        return digest([wanted.latent, self.levels, iterations, list(wanted.layers), *fingerprint])

    def _invert(self, key: str, wanted: Wanted, progress: Progress) -> Chain:
        """Made now and kept; without features where memory runs out while they are recorded."""
        try:
            return self._made(key, wanted, progress)
        except Exception as error:  # torch has a class of its own for CUDA's lack of memory only
            if not (wanted.layers and is_lack_of_memory(error)):
                raise
        # not in the handler: its traceback holds what was recorded
        self.report.features = "live"
        self.report.note("memory ran out while features were recorded")
        if self.store is not None:
            self.store.make_room(0, budget=0)
        unrecorded = Wanted(wanted.latent, {})
        return self._made(self._key(unrecorded), unrecorded, progress)

    def _made(self, key: str, wanted: Wanted, progress: Progress) -> Chain:
        host, report = self.host, self.report
        with count_rows(host.unet) as rows:
            chain = invert(
                wanted.latent,
                self.levels,
                host.predict_noise,
                wanted.layers,
                iterations=self.settings.inversion_iterations,
                make_room=self._make_room,
                progress=progress,
                preview=host.preview,
            )
        report.rows.inversion += sum(rows)
        report.inversion.add(chain.evaluations, self.settings.inversion_iterations, chain.residual)
        if self.store is not None:
            report.store = "miss"
            # one that something changed under way is of neither key
            if self._key(wanted) == key:
                self.store.put(key, chain, self.budget)
        return chain

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes fit beside the chains in use; the store's oldest leave for them."""
        held = sum(chain.bytes for chain in self.in_use.values())
        if size + held > self.budget:
            return False
        return self.store is None or self.store.make_room(size, self.budget)


def _refuse_if_unseen(host: Host, settings: Settings, levels: Tensor, layers: Layers) -> None:
    if not layers:
        raise RivalError("this checkpoint's UNet has no self-attention layers; load a Stable Diffusion checkpoint.")
    lowest = host.schedule.timestep(float(levels[1]))
    if lowest > settings.early_steps:
        raise RivalError(
            f"early_steps must be at least {math.ceil(lowest)} for this sampler, not {settings.early_steps}; "
            "no step would see the exemplar."
        )
