"""How few nodes of a chain are enough, and what a chain without an inversion loses and wins. Writes docs/nodes.md.

    python benchmarks/nodes.py --json FILE

measures the sixteen exemplars of starts.py with which nothing was chosen; about an hour on two cores. What FILE holds
already is not measured again. Needs scipy and scikit-image beside what the command line needs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from string import Template
from typing import Any

import click
import torch
from diffusers import StableDiffusionPipeline
from effect import palette, palette_distance
from exactness import rms, similarity
from exemplars import GUIDANCE, HELD_OUT_FOLDER, ROOT, STEPS, Exemplar, markdown_table, read_exemplars
from PIL import Image
from starts import HELD_OUT
from tqdm import tqdm

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline, quieten_libraries
from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.method.prepare import prepare
from rival_ext.settings import parse_settings
from rival_ext.storage.store import NoStore

Record = dict[str, Any]
Figures = dict[str, dict[str, list[Record]]]
"""Records by the title of the circumstances and by the arm."""

ALL = {"inversion_nodes": "all", "feature_nodes": "all"}
PLAIN, FULL, DEFAULT, NOISED = "plain", "each level", "default (10, 8)", "noised (8)"

ARMS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    FULL: ALL,
    DEFAULT: {},
    "inverted at 10, features at 5": {"feature_nodes": 5},
    "inverted at 6, features at 6": {"inversion_nodes": 6, "feature_nodes": 6},
    "inverted at each level, features at 8": {"inversion_nodes": "all"} | {"feature_nodes": 8},
    NOISED: {"chain": "noised"},
    "noised (5)": {"chain": "noised", "feature_nodes": 5},
}
"""What is compared: settings by the arm's title. None is plain generation."""


@dataclass(frozen=True)
class Circumstances:
    """Under which the arms make images. `steps` is a multiple of the usual number."""

    sampler: str = "ddim"
    steps: float = 1.0
    mode: str = "variation"


CIRCUMSTANCES = {
    "DDIM, 20 steps": Circumstances(),
    "DDIM, 8 steps": Circumstances(steps=0.4),
    "DDIM, 50 steps": Circumstances(steps=2.5),
    "Euler a, 20 steps": Circumstances("euler-a"),
    "DPM++ 2M Karras, 20 steps": Circumstances("dpm++2m-karras"),
    "mode text, DDIM, 20 steps": Circumstances(mode="text"),
}


@click.command()
@click.option("--json", "kept", type=click.Path(path_type=Path), help="Figures that are kept between runs.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs", help="Folder to write; default: docs.")
@click.option("--steps", type=click.IntRange(2), default=STEPS, show_default=True, help="Sampling steps.")
@click.option("--exemplars", "most", type=click.IntRange(2), default=99, help="The most exemplars.")
def main(kept: Path | None, out: Path, steps: int, most: int) -> None:
    """Measures every arm under all circumstances and writes the page."""
    quieten_libraries()
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    records = json.loads(kept.read_text()) if kept and kept.exists() else []
    known = read_exemplars(HELD_OUT_FOLDER)
    exemplars = [known[name] for name in HELD_OUT[:most]]
    done = {(record["circumstances"], record["exemplar"]) for record in records}
    pipeline = load_pipeline(DEMO_CHECKPOINT)
    turns = [(index, title) for index in range(len(exemplars)) for title in CIRCUMSTANCES]
    for index, title in tqdm(turns, unit="turn"):
        exemplar, other = exemplars[index], exemplars[index - 1]
        if (title, exemplar.name) in done:
            continue
        records += measured(pipeline, exemplar, other.concept, title, steps)
        if kept:
            kept.write_text(json.dumps(records))
    (out / "nodes.md").write_text(nodes_page(records))


def measured(
    pipeline: StableDiffusionPipeline, exemplar: Exemplar, other: str, title: str, steps: int
) -> Iterable[Record]:
    """A record for each arm: two seeds of one exemplar under the circumstances of this title."""
    circumstances = CIRCUMSTANCES[title]
    prompt = exemplar.concept if circumstances.mode == "variation" else other
    made: dict[str, list[Image.Image]] = {}
    for arm, fields in ARMS.items():
        request = Request(prompt, "", GUIDANCE, circumstances.sampler, max(2, round(steps * circumstances.steps)))
        host = DiffusersHost(pipeline, request, RequestImages.of(exemplar.image), lambda done, total: None)
        # encoded beforehand, because neither the photo nor the prompts are what is timed
        target, _ = host.decode(host.exemplar_latent())[0], host.embeddings
        begun = time.process_time()
        images, evaluations = generated(host, circumstances.mode, fields)
        seconds = time.process_time() - begun
        made[arm] = images
        yield {
            "circumstances": title,
            "exemplar": exemplar.name,
            "arm": arm,
            "evaluations": evaluations,
            "palette": mean(palette_distance(palette(image), palette(target)) for image in images),
            "off": [rms(*pair) for pair in zip(images, made.get(FULL, images), strict=True)],
            "seeds": mean(rms(one, another) for one, another in combinations(images, 2)),
            "ssim": mean(similarity(image, target) for image in images),
            "rms": mean(rms(image, target) for image in images),
            "seconds": seconds,
        }


def generated(host: DiffusersHost, mode: str, fields: dict[str, Any] | None) -> tuple[list[Image.Image], int]:
    """Two seeds, nothing stored, and how many evaluations led the exemplar to noise."""
    seeds = [1, 2]
    prepared = None if fields is None else prepare(host, parse_settings({"mode": mode, **fields}), NoStore())
    guide = prepared and prepared.guide
    latents = host.sample(host.start(seeds, guide), seeds, guide, lambda done, total: None)
    return host.decode(latents), prepared.inversion.inversion.evaluations if prepared else 0


def nodes_page(records: Sequence[Record]) -> str:
    """docs/nodes.md of all records."""
    figures: Figures = {}
    for record in records:
        figures.setdefault(record["circumstances"], {}).setdefault(record["arm"], []).append(record)
    exemplars = len({record["exemplar"] for record in records})
    return PAGE.substitute(exemplars=exemplars, off=off_table(figures), tables=arm_tables(figures))


def off_table(figures: Figures) -> str:
    """How far each arm's images are from those of the form with every level, under each circumstances."""
    rows = []
    for arm in list(ARMS)[2:]:
        row = [arm]
        for arms in figures.values():
            off = [value for record in arms[arm] for value in record["off"]]
            row.append(f"{mean(off):.1f} ({median(off):.1f}, {max(off):.0f})")
        rows.append(row)
    return markdown_table(["", *figures], rows)


def arm_tables(figures: Figures) -> str:
    """For each circumstances what the arms' images are like."""
    header = ("evaluations", "palette", "seeds differ", "SSIM", "RMS", "time of the first run")
    parts = []
    for title, arms in figures.items():
        plain = arms[PLAIN]
        rows = [
            [
                arm,
                f"{found[0]['evaluations']}",
                f"{average(found, 'palette') / average(plain, 'palette'):.2f}",
                f"{average(found, 'seeds'):.0f}",
                f"{average(found, 'ssim'):.2f}",
                f"{average(found, 'rms'):.0f}",
                f"{average(found, 'seconds') / average(plain, 'seconds'):.2f}",
            ]
            for arm, found in arms.items()
        ]
        parts.append(f"### {title}\n\n" + markdown_table(["", *header], rows))
    return "\n\n".join(parts)


def average(found: Sequence[Record], measure: str) -> float:
    """The mean of a measure."""
    return mean(record[measure] for record in found)


PAGE = Template("""\
# How few nodes are enough

A chain leads the exemplar to noise. For a random start it is evaluated at `inversion_nodes` of the sampler's levels
(between them its prediction is linear in the noise level), and features are kept at `feature_nodes` of these (between
them keys and values are linear). `chain` noised needs no inversion: one fixed noise, and one evaluation for each level
with features. This page compares them with the form in which every level is evaluated and kept.

$exemplars exemplars with which nothing was chosen, two seeds each, the small demo model, guidance 5. The prompt names
the exemplar's subject, and in mode text another exemplar's.

## How far the images are from those of each level

RMS of 255: the mean, and in brackets the median and the largest. Two seeds differ by the figures of the next section.
A single image can change much where its shape is undecided, so the mean is larger than the median.

$off

- Features at eight levels in place of each change an image by an RMS of 1 to 2.
- Ten evaluations in place of one at each level change it by 4 to 8 on average. A few images change their shape. With
  six evaluations the change is twice as large.
- The noised chain gives other images, though nearer to these than another seed's.

## What the images are like

**palette**: [palette distance](effect.md) to the exemplar as a ratio to plain generation; smaller is nearer. **seeds
differ**: RMS between two seeds. **SSIM, RMS**: likeness to the exemplar; a high SSIM means a copy. **time of the first
run**: processor time with nothing stored, as a ratio to plain generation.

$tables

Palette, likeness and diversity are the same in all forms: fewer nodes and the noised chain lose nothing that these
measures see, and the first run is shorter. [starts.md](starts.md#is-the-inversion-needed) has more seeds, with the
subject and the shapes. What must come back exactly, in edits and inpainting, needs the inversion at each level.

`python benchmarks/nodes.py` wrote this page. The exemplars are by EmojiOne 2.x (CC BY 4.0), on plain backgrounds.
""")


if __name__ == "__main__":
    main()
