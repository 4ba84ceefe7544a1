"""What was really done in a run: the inversion and the guide each count their part, and `Report` joins the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from rival_ext.settings import Settings
from rival_ext.written import NOISED

FeatureSource = Literal["recorded", "live"]
"""Where the exemplar's features came from: recorded in the inversion, or evaluated beside each step."""

StoreResult = Literal["hit", "miss", "off"]
"""Whether the inversions were found in the store. "off" means that there was no store."""


@dataclass
class Steps:
    """Denoiser calls of one image: all of them, those with injection, and those with aligned statistics."""

    total: int = 0
    injected: int = 0
    aligned: int = 0


@dataclass(frozen=True)
class Inversion:
    """How the exemplars were inverted.

    Attributes:
        evaluations: UNet evaluations.
        iterations: Fixed-point iterations a step, as asked for.
        residual: The largest last update of a step, relative to the latent.
        levels: At how many noise levels each exemplar was evaluated.
        bend: How far the chains may be off between these levels, relative to the latent. 0 if there is none between.
        psnr: How exactly the exemplar comes back, in dB. None if that was not checked.
    """

    evaluations: int = 0
    iterations: int = 0
    residual: float = 0.0
    levels: int = 0
    bend: float = 0.0
    psnr: float | None = None


@dataclass(frozen=True)
class Rows:
    """UNet rows that were evaluated. One row is one latent with one prompt."""

    inversion: int = 0
    generation: int = 0


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of each part."""

    inversion: float = 0.0
    generation: float = 0.0


@dataclass(frozen=True)
class InversionPart:
    """What the inversion says of itself.

    Attributes:
        exemplars: How many exemplars there are.
        features: Whether features were recorded.
        store: Whether the inversions were found in the store.
        inversion: How the exemplars were inverted. All zero if they were found.
        rows: UNet rows.
        seconds: Wall-clock seconds, the look into the store included.
        notes: Sentences on what was done otherwise than usual.
    """

    exemplars: int
    features: FeatureSource
    store: StoreResult
    inversion: Inversion
    rows: int
    seconds: float
    notes: Sequence[str] = ()


@dataclass
class GuidePart:
    """What the guide counts while it stands beside the denoiser.

    Attributes:
        layers: The most self-attention layers that saw the exemplar in one step.
        steps: The denoiser calls.
        evaluated_live: Whether an exemplar was evaluated beside a step.
        notes: Sentences on what was done otherwise than usual, each once.
    """

    layers: int = 0
    steps: Steps = field(default_factory=Steps)
    evaluated_live: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Add a sentence, unless it is there already."""
        if sentence not in self.notes:
            self.notes.append(sentence)


@dataclass(frozen=True)
class Report:
    """One run: `report.json` of the command line, and the short `RIVAL report` of the WebUI's infotext."""

    mode: str
    t_align: int
    t_early: int
    chain: str = "inverted"
    exemplars: int = 1
    layers: int = 0
    features: FeatureSource | None = None
    store: StoreResult = "off"
    steps: Steps = field(default_factory=Steps)
    inversion: Inversion = field(default_factory=Inversion)
    rows: Rows = field(default_factory=Rows)
    seconds: Seconds = field(default_factory=Seconds)
    notes: Sequence[str] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the run was one without RIVAL."""
        return self.mode == "plain"

    def as_dict(self) -> dict[str, Any]:
        """The object of `report.json`."""
        return asdict(self) | {"notes": list(self.notes)}

    def lines(self) -> list[str]:
        """Sentences for people, in the order in which things were done."""
        notes = (note[0].upper() + note[1:] + "." for note in self.notes)
        steps, inversion, rows = self.steps, self.inversion, self.rows
        if self.is_plain:
            generated = f"{steps.total} steps, {rows.generation} UNet rows, {self.seconds.generation:.1f} s."
            return [f"Plain images, without RIVAL. {generated}", *notes]
        made = "Noised" if self.chain == NOISED else "Inverted"
        inverted = (
            f"{made} in {inversion.evaluations} evaluations, {self.seconds.inversion:.1f} s"
            + (f"; the last update was {inversion.residual:.2g} of the latent." if made == "Inverted" else ".")
            if self.store != "hit"
            else "The stored inversion was used: nothing was inverted."
        )
        if inversion.bend:
            inverted += f" Between its noise levels the chain is off by about {inversion.bend:.1%} of the latent."
        exemplars = "one exemplar" if self.exemplars == 1 else f"{self.exemplars} exemplars"
        return [
            f"RIVAL, mode {self.mode}, {exemplars}. {inverted}",
            f"{self.layers} self-attention layers saw the exemplar's {self.features} features in {steps.injected} of "
            f"{steps.total} steps; statistics were aligned in {steps.aligned}.",
            f"{rows.inversion} UNet rows for the inversion and {rows.generation} for the images, "
            f"{self.seconds.generation:.1f} s.",
            *notes,
        ]

    def summary(self) -> str:
        """One line for the infotext. It has no comma and no colon, because the WebUI would have to quote them."""
        notes = "".join(f"; {note}" for note in self.notes)
        if self.is_plain:
            return f"plain images without RIVAL; {self.steps.total} steps; {self.rows.generation} UNet rows" + notes
        inversion = self.inversion
        inverted = (
            f"noised in {inversion.evaluations} evaluations"
            if self.chain == NOISED
            else f"inverted in {inversion.evaluations} evaluations (residual {inversion.residual:.2g})"
        )
        if self.store == "hit":
            inverted = "stored inversion"
        if inversion.bend:
            inverted += f"; off by {inversion.bend:.1%} between its levels"
        exemplars = f"{self.exemplars} exemplars; " if self.exemplars > 1 else ""
        return exemplars + (
            f"{self.layers} layers; {self.steps.injected} of {self.steps.total} steps injected; "
            f"{self.steps.aligned} aligned; {self.features} features; {inverted}; "
            f"{self.rows.inversion} + {self.rows.generation} UNet rows" + notes
        )


def join_report(
    settings: Settings,
    inversion: InversionPart,
    guide: GuidePart,
    *,
    rows: int,
    seconds: float,
    notes: Sequence[str] = (),
    psnr: float | None = None,
) -> Report:
    """Join the parts of one run.

    Args:
        settings: The validated settings.
        inversion: What the inversion says of itself.
        guide: What the guide counted.
        rows: UNet rows of the generation.
        seconds: Wall-clock seconds of the generation.
        notes: The host's own sentences, between those of the inversion and those of the guide.
        psnr: How exactly the exemplar comes back, in dB, if that was checked.

    Returns:
        The report of the run.
    """
    done = inversion.inversion
    return Report(
        settings.mode,
        settings.t_align,
        settings.t_early,
        settings.chain,
        exemplars=inversion.exemplars,
        layers=guide.layers,
        features="live" if guide.evaluated_live else inversion.features,
        store=inversion.store,
        steps=guide.steps,
        inversion=replace(done, psnr=psnr),
        rows=Rows(inversion.rows, rows),
        seconds=Seconds(inversion.seconds, seconds),
        notes=(*inversion.notes, *notes, *guide.notes),
    )
