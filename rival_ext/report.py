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
