"""docs/peers.md and docs/peers.png from what `peers.py` has asked for; asks for nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from string import Template
from typing import Any

import numpy as np
from concepts import PROMPTS as CONCEPTS
from concepts import Classifier, load_classifier
from effect import Palette, labelled_grid, palette, palette_distance
from exactness import rms
from exemplars import Exemplar, make_host, markdown_table, vae_reconstruction
from PIL import Image
from samplers_page import picture_of
from skimage.metrics import structural_similarity

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline

Record = dict[str, Any]

PLAIN = "plain 1.0"
PROMPTS: Mapping[str, Callable[[Exemplar], str]] = {
    "concept": lambda exemplar: exemplar.concept,
    "empty": lambda exemplar: "",
}
"""What the prompt says of an exemplar."""
COLUMNS = {
    "palette": ".2f",
    "concept": ".2f",
    "top-1": ".2f",
    "seeds differ": ".0f",
    "RMS": ".0f",
    "SSIM": ".2f",
}
"""The figures of images, with the format of their means."""


@dataclass(frozen=True)
class Result:
    """What one turn gave: its images, CPU seconds, and figures, one value an image or a pair of images."""

    sampler: str
    exemplar: str
    prompt: str
    arm: str
    seconds: Sequence[float]
    images: Sequence[Image.Image]
    figures: Mapping[str, Sequence[float]]

    @property
    def place(self) -> tuple[str, str, str]:
        """What it shares with the turns of the other arms."""
        return self.sampler, self.exemplar, self.prompt


@dataclass(frozen=True)
class Aim:
    """An exemplar as the VAE gives it back, and its palette."""

    exemplar: Exemplar
    seen: Image.Image
    palette: Palette

    def figures(self, images: Sequence[Image.Image], classifier: Classifier) -> dict[str, list[float]]:
        """How near images are to it, whether they show its concept, and how they differ."""
        probabilities = classifier.probabilities(images)
        concept = CONCEPTS.index(self.exemplar.concept)
        return {
            "palette": [palette_distance(palette(image), self.palette) for image in images],
            "concept": probabilities[:, concept].tolist(),
            "top-1": (probabilities.argmax(dim=1) == concept).double().tolist(),
            "seeds differ": [rms(one, other) for one, other in combinations(images, 2)],
            "RMS": [rms(image, self.seen) for image in images],
            "SSIM": [similarity(image, self.seen) for image in images],
        }


def similarity(one: Image.Image, other: Image.Image) -> float:
    """SSIM of two images: 1 is the same image."""
    return float(structural_similarity(np.asarray(one), np.asarray(other), channel_axis=2))


def write(
    out: Path, host: Record, records: Sequence[Record], exemplars: Sequence[Exemplar], arms: Sequence[str]
) -> None:
    """docs/peers.md and peers.png."""
    out.mkdir(parents=True, exist_ok=True)
    results = judge(records, exemplars)
    (out / "peers.md").write_text(page(host, results, arms))
    contact_sheet(results, exemplars, arms).quantize(256).save(out / "peers.png", optimize=True)


def judge(records: Sequence[Record], exemplars: Sequence[Exemplar]) -> list[Result]:
    """The figures of all turns."""
    pipeline, classifier = load_pipeline(DEMO_CHECKPOINT), load_classifier()
    aims = {}
    for exemplar in exemplars:
        seen = vae_reconstruction(make_host(pipeline, exemplar))
        aims[exemplar.name] = Aim(exemplar, seen, palette(seen))
    results = []
    for record in records:
        images = [picture_of(picture) for picture in record["pictures"]]
        figures = aims[record["exemplar"]].figures(images, classifier)
        names = {name: record[name] for name in ("sampler", "exemplar", "prompt", "arm", "seconds")}
        results.append(Result(**names, images=images, figures=figures))
    return results


def values(results: Sequence[Result], column: str) -> list[float]:
    """A figure of all images of some turns."""
    return [value for result in results for value in result.figures[column]]


def rows(results: Sequence[Result], arms: Sequence[str]) -> list[list[str]]:
    """A row for each arm: the means of all figures, the palette's as a ratio to plain, then the cost."""
    plain = [result for result in results if result.arm == PLAIN]
    scales = {"palette": mean(values(plain, "palette"))}
    found = []
    for arm in arms:
        own = [result for result in results if result.arm == arm]
        figures = [
            format(mean(values(own, column)) / scales.get(column, 1), form) if values(own, column) else "-"
            for column, form in COLUMNS.items()
        ]
        found.append([arm, *figures, *costs(own, plain)])
    return found


def costs(results: Sequence[Result], plain: Sequence[Result]) -> list[str]:
    """CPU seconds of the first image and of the next ones, as ratios to plain: the median over all turns."""
    base = {result.place: mean(result.seconds) for result in plain}
    first = [result.seconds[0] / base[result.place] for result in results]
    following = [seconds / base[result.place] for result in results for seconds in result.seconds[1:]]
    return [f"{median(ratios):.2f}" if ratios else "-" for ratios in (first, following)]


def by_sampler(results: Sequence[Result], arms: Sequence[str]) -> str:
    """A row for each arm: palette and top-1 for each sampler with each prompt."""
    kinds: dict[str, list[Result]] = {}
    for result in results:
        kinds.setdefault(f"{result.sampler}, {result.prompt}", []).append(result)
    found = [[arm] for arm in arms]
    for some in kinds.values():
        for line, (_, closeness, _, top, *_) in zip(found, rows(some, arms), strict=True):
            line.append(f"{closeness}, {top}")
    return markdown_table(["", *kinds], found)


def contact_sheet(
    results: Sequence[Result], exemplars: Sequence[Exemplar], arms: Sequence[str], edge: int = 96
) -> Image.Image:
    """docs/peers.png: a row for each exemplar, prompt and sampler, a column for each arm, all of the first seed."""
    found: dict[str, dict[str, Image.Image]] = {}
    photos = {exemplar.name: exemplar for exemplar in exemplars}
    for result in results:
        exemplar = photos[result.exemplar]
        title = f"{exemplar.concept},\n{result.prompt},\n{result.sampler}".removesuffix(" Karras")
        found.setdefault(title, {"photo": exemplar.image})[result.arm] = result.images[0]
    columns = ["photo", *arms]
    return labelled_grid(
        [column.replace(" ", "\n", 1) for column in columns],
        {
            title: [row[column].resize((edge, edge), Image.Resampling.LANCZOS) for column in columns]
            for title, row in found.items()
        },
    )


def page(host: Record, results: Sequence[Result], arms: Sequence[str]) -> str:
    """docs/peers.md."""
    header = ["", *COLUMNS, "cost, first", "cost, next"]
    tables = {
        prompt: markdown_table(header, rows([result for result in results if result.prompt == prompt], arms))
        for prompt in PROMPTS
    }
    exemplars, samplers = ({getattr(result, name) for result in results} for name in ("exemplar", "sampler"))
    seeds = len(results[0].images)
    return PAGE.substitute(
        {**host, **tables},
        by_sampler=by_sampler(results, arms),
        exemplars=len(exemplars),
        seeds=seeds,
        images=len(samplers) * len(exemplars) * seeds,
    )


PAGE = Template("""\
# RIVAL beside its peers

$concept

$empty

$by_sampler
""")
