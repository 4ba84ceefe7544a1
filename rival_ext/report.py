"""What was really done, counted where it happens."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass
class Steps:
    """Denoiser calls of one image: all, those that saw the exemplar, those whose statistics were aligned."""

    total: int = 0
    injected: int = 0
    aligned: int = 0


@dataclass
class Inversion:
    """UNet evaluations made for the chain, fixed-point iterations a step, largest relative last update, dB or None."""

    evaluations: int = 0
    iterations: int = 0
    residual: float = 0.0
    psnr: float | None = None

    def add(self, evaluations: int, iterations: int, residual: float) -> None:
        """Counts one chain's."""
        self.evaluations += evaluations
        self.iterations = iterations
        self.residual = max(self.residual, residual)


@dataclass
class Rows:
    """UNet rows evaluated: one row is one latent with one prompt."""

    inversion: int = 0
    generation: int = 0


@dataclass
class Seconds:
    """Wall-clock time of each part."""

    inversion: float = 0.0
    generation: float = 0.0


@dataclass
class Report:
    """One run: `report.json` of the command line, and the short `RIVAL report` of the WebUI's infotext."""

    mode: str
    t_align: int
    t_early: int
    exemplars: int = 1
    layers: int = 0
    features: Literal["recorded", "live"] | None = None
    store: Literal["hit", "miss", "off"] = "off"
    steps: Steps = field(default_factory=Steps)
    inversion: Inversion = field(default_factory=Inversion)
    rows: Rows = field(default_factory=Rows)
    seconds: Seconds = field(default_factory=Seconds)
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Adds why something was done otherwise than usual, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def as_dict(self) -> dict[str, Any]:
        """The object of `report.json`."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Sentences for people, in the order in which things were done."""
        steps, inversion, rows = self.steps, self.inversion, self.rows
        inverted = (
            f"Inverted in {inversion.evaluations} evaluations, {self.seconds.inversion:.1f} s; "
            f"the last update was {inversion.residual:.2g} of the latent."
            if self.store != "hit"
            else "The stored inversion was used: nothing was inverted."
        )
        exemplars = "one exemplar" if self.exemplars == 1 else f"{self.exemplars} exemplars"
        return [
            f"RIVAL, mode {self.mode}, {exemplars}. {inverted}",
            f"{self.layers} self-attention layers saw the exemplar's {self.features} features in {steps.injected} of "
            f"{steps.total} steps; statistics were aligned in {steps.aligned}.",
            f"{rows.inversion} UNet rows for the inversion and {rows.generation} for the images, "
            f"{self.seconds.generation:.1f} s.",
            *(note[0].upper() + note[1:] + "." for note in self.notes),
        ]

    def summary(self) -> str:
        """One line for the infotext; no comma or colon, which the WebUI would have to quote."""
        inverted = (
            f"inverted in {self.inversion.evaluations} evaluations (residual {self.inversion.residual:.2g})"
            if self.store != "hit"
            else "stored inversion"
        )
        exemplars = f"{self.exemplars} exemplars; " if self.exemplars > 1 else ""
        return exemplars + (
            f"{self.layers} layers; {self.steps.injected} of {self.steps.total} steps injected; "
            f"{self.steps.aligned} aligned; {self.features} features; {inverted}; "
            f"{self.rows.inversion} + {self.rows.generation} UNet rows" + "".join(f"; {note}" for note in self.notes)
        )
