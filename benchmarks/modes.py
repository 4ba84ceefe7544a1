"""Does each mode keep its promise, in figures and pictures: writes docs/modes.md and docs/modes-*.png.

    python benchmarks/modes.py

Runs the small demo model; a quarter of an hour on two cores. Needs scipy and scikit-image beside what the command line
needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import TypeVar

import click
import numpy as np
from concepts import BACKGROUNDS, CONCEPTS, Classifier, load_classifier
from effect import labelled_grid, palette, palette_distance
from exactness import rms
from exactness import similarity as ssim
from exemplars import ROOT, STEPS, SUBJECTS, Exemplar, markdown_table, read_exemplars
from modes_page import PAGE
from PIL import Image, ImageDraw
from studio import Studio, layout_correlation, texture_distance
from tqdm import tqdm

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline, quieten_libraries
from rival_ext.hosts.diffusers import RequestImages
from rival_ext.settings import ExemplarInput

Images = Sequence[Image.Image]
Key = TypeVar("Key")
Value = TypeVar("Value")

BACKGROUND_NAMES = ("white", "gray", "pink", "yellow", "green", "blue", "purple", "orange", "black")
COLOURS = dict(zip(BACKGROUND_NAMES, BACKGROUNDS, strict=True))
"""The backgrounds that the demo model knows by name."""

PIZZA, HOUSE, BUS, TAXI, HEART, PANDA = (
    "pizza-emojione-yellow",
    "house-emojione-blue",
    "bus-emojione-pink",
    "taxi-twemoji-green",
    "red-heart-emojione-purple",
    "panda-emojione-white",
)
NEW_CONCEPTS = ("a star", "a dog face", "a cactus", "a fish")
EDITS = {HOUSE: "green", BUS: "yellow", PIZZA: "blue", HEART: "green"}
MIXES = (0.0, 0.25, 0.5, 0.75, 1.0)
FILLED_FROM = {HOUSE: PIZZA, PIZZA: BUS, HEART: TAXI, BUS: HOUSE}
OUTSIDES = {HOUSE: "magenta", PIZZA: "teal", BUS: "darkgreen", HEART: "navy"}
PAIRS = {(PIZZA, HOUSE): "", (TAXI, HEART): "a star", (BUS, PIZZA): "a dog face"}
WEIGHTS = (1.0, 0.75, 0.5, 0.25, 0.0)
SIMILARITIES = tuple(tenth / 10 for tenth in range(11))
SIMILAR = (
    *(HOUSE, PIZZA, PANDA, "tulip-fluent-white", "penguin-twemoji-white", "lemon-noto-blue"),
    *("octopus-emojione-white", TAXI),
)
"""The exemplars of the section on similarity."""
PICTURED = 8
"""The rows of the contact sheet of the section on similarity."""
LAYER_CHOICES = {
    "none (strength 0)": {"strength": 0.0},
    "strength 0.25": {"strength": 0.25},
    "strength 0.5": {"strength": 0.5},
    "strength 0.75": {"strength": 0.75},
    "all": {},
    "8 (fine)": {"layers": "fine"},
    "16, 32 (coarse)": {"layers": "coarse"},
    "16": {"layers": "16"},
    "32": {"layers": "32"},
}
LAYER_PROMPTS = {PIZZA: "a star", HOUSE: "a dog face", BUS: "a cactus", HEART: "a star"}


@dataclass
class Table:
    """Measures of cases by row; shows each row's means.

    formats: of each measure's mean.
    """

    header: Sequence[str]
    formats: Sequence[str]
    cases: dict[str, list[Sequence[float]]] = field(default_factory=dict)

    def add(self, row: str, *values: float) -> None:
        """One more case of a row."""
        self.cases.setdefault(row, []).append(values)

    def markdown(self) -> str:
        """The rows in the order in which they appeared."""
        rows = []
        for title, cases in self.cases.items():
            means = (mean(values) for values in zip(*cases, strict=True))
            rows.append([title, *(format(value, form) for value, form in zip(means, self.formats, strict=True))])
        return markdown_table(self.header, rows)


@dataclass(frozen=True)
class Section:
    """One mode's part of the page: its tables by their names in the template, and its contact sheet."""

    tables: dict[str, Table]
    sheet: Image.Image


@dataclass(frozen=True)
class Bench:
    """What every mode is measured with; each measure is the mean over images."""

    studio: Studio
    exemplars: dict[str, Exemplar]
    classifier: Classifier
    most_cases: int

    def cases(self, cases: Mapping[Key, Value]) -> Mapping[Key, Value]:
        """The first of a section's cases."""
        return dict(list(cases.items())[: self.most_cases])

    def request(self, name: str) -> RequestImages:
        """One exemplar, seen whole."""
        return RequestImages.of(self.exemplars[name].image)

    def seen(self, name: str) -> Image.Image:
        """An exemplar as the VAE gives it back."""
        return self.studio.seen(self.exemplars[name].image)

    def palette(self, images: Images, target: Image.Image) -> float:
        """Palette distance (docs/effect.md)."""
        aim = palette(target)
        return mean(palette_distance(palette(image), aim) for image in images)

    def layout(self, images: Images, target: Image.Image) -> float:
        """Layout correlation."""
        return mean(layout_correlation(image, target) for image in images)

    def texture(self, images: Images, target: Image.Image) -> float:
        """Texture distance."""
        return mean(texture_distance(image, target) for image in images)

    def probability(self, images: Images, prompt: str) -> float:
        """How likely the classifier thinks that the prompt's concept is there."""
        concept = CONCEPTS.index(prompt.partition(" ")[2])
        return float(self.classifier.probabilities(images)[:, concept].mean())

    def first_place(self, images: Images, prompt: str) -> float:
        """For how many images the classifier thinks that nothing else is likelier."""
        concept = CONCEPTS.index(prompt.partition(" ")[2])
        return float((self.classifier.probabilities(images).argmax(dim=1) == concept).double().mean())


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs", help="Folder to write; default: docs.")
@click.option("--steps", type=click.IntRange(2), default=STEPS, show_default=True, help="Sampling steps.")
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True, help="Seeds of each case.")
@click.option("--cases", type=click.IntRange(1), default=99, help="The most cases of each section.")
def main(out: Path, steps: int, seeds: int, cases: int) -> None:
    """Measures every mode and writes the page about them."""
    quieten_libraries()
    studio = Studio(load_pipeline(DEMO_CHECKPOINT), range(1, seeds + 1), steps)
    bench = Bench(studio, read_exemplars(), load_classifier(), cases)
    out.mkdir(parents=True, exist_ok=True)
    write({name: measure(bench) for name, measure in tqdm(MODES.items(), unit="mode")}, out, steps)


def write(sections: dict[str, Section], out: Path, steps: int) -> None:
    """docs/modes.md and its sheets."""
    tables = {title: table.markdown() for section in sections.values() for title, table in section.tables.items()}
    (out / "modes.md").write_text(PAGE.substitute(tables, steps=steps))
    for name, section in sections.items():
        section.sheet.save(out / f"modes-{name}.png", optimize=True)


def text_mode(bench: Bench) -> Section:
    """A new concept in the exemplar's style."""
    table = Table(["", "palette distance", "probability", "first place"], [".1f", ".2f", ".0%"])
    rows = {}
    for name in (PIZZA, HOUSE, BUS, TAXI)[: bench.most_cases]:
        request, seen, concept = bench.request(name), bench.seen(name), bench.exemplars[name].concept
        rows[concept] = [bench.exemplars[name].image]
        for prompt in NEW_CONCEPTS:
            made = {
                "plain": bench.studio.plain(request, prompt, "text"),
                "text": bench.studio.rival(request, prompt, mode="text"),
                "variation, the new prompt": bench.studio.rival(request, prompt),
            }
            for title, images in made.items():
                likely = bench.probability(images, prompt), bench.first_place(images, prompt)
                table.add(title, bench.palette(images, seen), *likely)
            rows[concept] += [made["plain"][0], made["text"][0]]
    titles = [title for prompt in NEW_CONCEPTS for title in (f"plain: {prompt}", "RIVAL text")]
    return Section({"text": table}, labelled_grid(["photo", *titles], rows))


def edit_mode(bench: Bench) -> Section:
    """Another background behind the same thing in the same place."""
    header = ["", "layout correlation", "background from that of the prompt", "background from that of the exemplar"]
    table = Table(header, [".2f", ".0f", ".0f"])
    mixes = Table(["start_mix", *header[1:]], table.formats)
    rows = {}
    for name, asked in bench.cases(EDITS).items():
        exemplar = bench.exemplars[name]
        request, seen = bench.request(name), bench.seen(name)
        had = exemplar.caption.split()[-2]
        prompt = exemplar.caption.replace(f"{had} background", f"{asked} background")
        captioned = {"exemplar_prompt": exemplar.caption}
        plain = bench.studio.plain(request, prompt, "edit")
        variation = bench.studio.rival(request, prompt, **captioned)
        edits = {mix: bench.studio.rival(request, prompt, mode="edit", start_mix=mix, **captioned) for mix in MIXES}

        def measures(images: Images) -> tuple[float, ...]:
            backgrounds = (mean(background_distance(image, colour) for image in images) for colour in (asked, had))  # noqa: B023
            return bench.layout(images, seen), *backgrounds  # noqa: B023

        for title, images in {"plain": plain, "edit": edits[0.0], "variation": variation}.items():
            table.add(title, *measures(images))
        for mix, images in edits.items():
            mixes.add(f"{mix:g}", *measures(images))
        rows[f"{exemplar.concept},\non {asked}"] = [
            exemplar.image,
            plain[0],
            *(images[0] for images in edits.values()),
            variation[0],
        ]
    titles = ["photo", "plain", "edit", *(f"start_mix {mix:g}" for mix in MIXES[1:]), "variation"]
    return Section({"edit": table, "mixes": mixes}, labelled_grid(titles, rows))


def inpaint_mode(bench: Bench) -> Section:
    """The right half anew, from the picture itself and from another one."""
    header = ["", "from the image's own half", "from the other exemplar"]
    table = Table(header, [".1f", ".1f"])
    rows = {}
    for name, other in bench.cases(FILLED_FROM).items():
        canvas, source = bench.exemplars[name], bench.exemplars[other]
        size = canvas.image.size
        mask = Image.new("L", size)
        half = (size[0] // 2, 0, *size)
        ImageDraw.Draw(mask).rectangle(half, fill=255)
        own = RequestImages([ExemplarInput(canvas.image)], size, canvas.image, mask)
        another = RequestImages([ExemplarInput(source.image)], size, canvas.image, mask)
        made = {
            "plain": bench.studio.plain(own, mode="inpaint"),
            "plain, the concept as prompt": bench.studio.plain(own, canvas.concept, mode="inpaint"),
            "RIVAL": bench.studio.rival(own, mode="inpaint"),
            "RIVAL, the concept as prompt": bench.studio.rival(own, canvas.concept, mode="inpaint"),
            "RIVAL, another exemplar": bench.studio.rival(another, mode="inpaint"),
        }
        for title, images in made.items():
            filled = [image.crop(half) for image in images]
            targets = bench.seen(name).crop(half), bench.seen(other)
            table.add(title, *(bench.palette(filled, target) for target in targets))
        emptied = Image.composite(Image.new("RGB", size, "lightgray"), canvas.image, mask)
        pictures = [canvas.image, emptied, *(images[0] for images in made.values())]
        rows[canvas.concept] = [*pictures[:-1], source.image, pictures[-1]]
    titles = ["photo", "mask", "plain", "plain, prompt", "RIVAL", "RIVAL, prompt", "exemplar", "RIVAL from it"]
    return Section({"inpaint": table}, labelled_grid(titles, rows))


def region_mode(bench: Bench) -> Section:
    """Only the middle of the exemplar is seen; what lies around it is painted over."""
    header = ["", "from the region", "from the outside", "moved by the outside's colour"]
    table = Table(header, [".1f", ".1f", ".1f"])
    rows = {}
    for name, colour in bench.cases(OUTSIDES).items():
        exemplar = bench.exemplars[name]
        size = exemplar.image.size
        region = Image.new("L", size)
        ImageDraw.Draw(region).ellipse((14, 14, size[0] - 15, size[1] - 15), fill=255)
        outside = Image.new("RGB", size, colour)
        painted = Image.composite(exemplar.image, outside, region)
        inside = Image.fromarray(np.asarray(bench.studio.seen(painted))[np.asarray(region) > 0][None])
        paint = bench.studio.seen(outside)
        plain = bench.studio.plain(RequestImages.of(painted), exemplar.concept)
        table.add("plain", bench.palette(plain, inside), bench.palette(plain, paint), 0.0)
        pictures = []
        for title, mask in {"seen whole": None, "region only": region}.items():
            original, recoloured = (
                bench.studio.rival(RequestImages([ExemplarInput(image, mask)], size), exemplar.concept)
                for image in (exemplar.image, painted)
            )
            moved = mean(bench.palette([one], other) for one, other in zip(original, recoloured, strict=True))
            table.add(title, bench.palette(recoloured, inside), bench.palette(recoloured, paint), moved)
            pictures += [original[0], recoloured[0]]
        shown = Image.composite(painted, Image.new("RGB", size, "white"), region)
        rows[exemplar.concept] = [exemplar.image, painted, shown, plain[0], *pictures]
    titles = ["photo", "painted around", "region", "plain", "photo, whole", "painted, whole", "photo, region"]
    return Section({"region": table}, labelled_grid([*titles, "painted, region"], rows))


def several_exemplars(bench: Bench) -> Section:
    """Two exemplars from all of the first to all of the second."""
    table = Table(["weights", "from the first", "from the second"], [".1f", ".1f"])
    rows = {}
    for pair, prompt in bench.cases(PAIRS).items():
        first, second = (bench.exemplars[name].image for name in pair)
        pictures = []
        for weight in WEIGHTS:
            shown = [
                ExemplarInput(image, weight=share) for image, share in ((first, weight), (second, 1 - weight)) if share
            ]
            images = bench.studio.rival(RequestImages(shown, first.size), prompt)
            distances = (bench.palette(images, bench.seen(name)) for name in pair)
            table.add(f"{weight:g} : {1 - weight:g}", *distances)
            pictures.append(images[0])
        rows[prompt or "no prompt"] = [first, *pictures, second]
    titles = [f"{weight:g} : {1 - weight:g}" for weight in WEIGHTS]
    return Section({"several": table}, labelled_grid(["first", *titles, "second"], rows))


def similarity(bench: Bench) -> Section:
    """From inspired by the exemplar to almost the same."""
    header = ["similarity", "palette distance", "SSIM", "from the exemplar", "between seeds"]
    formats = [".1f", ".2f", ".0f", ".0f"]
    prompted, unprompted = Table(header, formats), Table(header, formats)
    rows: dict[str, list[Image.Image]] = {}
    subjects = {name: SUBJECTS.get(name, bench.exemplars[name].concept) for name in SIMILAR}
    for name, concept in bench.cases(subjects).items():
        request, seen = bench.request(name), bench.seen(name)
        for prompt, table in ((concept, prompted), ("", unprompted)):
            plain = bench.studio.plain(request, prompt)
            made = {"plain": plain} | {
                f"{value:g}": bench.studio.rival(request, prompt, similarity=value) for value in SIMILARITIES
            }
            for title, images in made.items():
                likeness = mean(ssim(image, seen) for image in images)
                distance = mean(rms(image, seen) for image in images)
                between = [rms(*pair) for pair in combinations(images, 2)]
                table.add(title, bench.palette(images, seen), likeness, distance, mean(between or [0.0]))
            asked = f"{concept.partition(' ')[2]},\n{'named' if prompt else 'no prompt'}"
            rows[asked] = [bench.exemplars[name].image, *(images[0] for images in made.values())]
    shown = dict(list(rows.items())[:PICTURED])
    tables = {"similarity_prompt": prompted, "similarity_empty": unprompted}
    return Section(tables, labelled_grid(["photo", *prompted.cases], shown).quantize(128))


def layer_choices(bench: Bench) -> Section:
    """Which layers carry style and which content; with strengths between none and all."""
    style = Table(
        ["", "palette distance", "texture distance", "the exemplar's concept", "the prompt's concept"],
        [".1f", ".1f", ".2f", ".2f"],
    )
    content = Table([*style.header[:4], "layout correlation"], [".1f", ".1f", ".2f", ".2f"])
    rows: dict[str, list[Image.Image]] = {}
    for name, other in bench.cases(LAYER_PROMPTS).items():
        request, seen, exemplar = bench.request(name), bench.seen(name), bench.exemplars[name]
        for prompt, table in (("", content), (other, style)):
            made = {title: bench.studio.rival(request, prompt, **fields) for title, fields in LAYER_CHOICES.items()}
            for title, images in made.items():
                last = bench.probability(images, prompt) if prompt else bench.layout(images, seen)
                near = bench.palette(images, seen), bench.texture(images, seen)
                table.add(title, *near, bench.probability(images, exemplar.concept), last)
            asked = f"{exemplar.concept},\n{prompt or 'no prompt'}"
            rows[asked] = [exemplar.image, *(images[0] for images in made.values())]
    return Section({"layers_empty": content, "layers_prompt": style}, labelled_grid(["photo", *LAYER_CHOICES], rows))


def background_distance(image: Image.Image, colour: str) -> float:
    """How far the picture's edge is from a named background, in grey levels of 255."""
    pixels = np.asarray(image, dtype=np.float32)
    edge = np.concatenate([pixels[:6].reshape(-1, 3), pixels[-6:].reshape(-1, 3)])
    return float(np.abs(edge.mean(axis=0) - COLOURS[colour].numpy() * 255).mean())


MODES: dict[str, Callable[[Bench], Section]] = {
    "text": text_mode,
    "edit": edit_mode,
    "inpaint": inpaint_mode,
    "region": region_mode,
    "several": several_exemplars,
    "similarity": similarity,
    "layers": layer_choices,
}

if __name__ == "__main__":
    main()
