"""What each setting does, from low to high: the strips of docs/parameters.md and recipes.md, in docs/parameters/.

    python benchmarks/parameters.py [STRIP ...]

Runs the small demo model; some minutes on two cores. Needs scipy and scikit-image beside what the command line needs.
The pages themselves are written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import click
from effect import labelled_grid
from exemplars import ROOT, STEPS, Exemplar, read_exemplars
from PIL import Image, ImageDraw
from studio import Studio
from tqdm import tqdm

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline, quieten_libraries
from rival_ext.hosts.diffusers import RequestImages
from rival_ext.settings import ExemplarInput

PIZZA, HOUSE, BUS, TAXI, HEART = (
    "pizza-emojione-yellow",
    "house-emojione-blue",
    "bus-emojione-pink",
    "taxi-twemoji-green",
    "red-heart-emojione-purple",
)
COLOURS = 256
"""Of a strip's file."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
TIMESTEPS = (0, 200, 400, 600, 800, 1000)

Rows = dict[str, list[Image.Image]]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Case:
    """What a row of a strip shows, whatever its columns: its name, an exemplar, a prompt, the settings that stay."""

    name: str
    exemplar: str
    prompt: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Strip:
    """One setting's values, a column each, in cases, a row each.

    titles: of the columns, if they are not the values. steps: of the sampling.
    """

    values: Sequence[Any]
    cases: Sequence[Case]
    titles: Sequence[str] = ()
    steps: int = STEPS


@dataclass(frozen=True)
class Bench:
    """What the strips are made with: one seed throughout."""

    studio: Studio
    exemplars: dict[str, Exemplar]
    most_rows: int

    def rows(self, rows: Iterable[Row]) -> list[Row]:
        """The first of a strip's rows."""
        return list(rows)[: self.most_rows]

    def image(self, name: str) -> Image.Image:
        """An exemplar's picture."""
        return self.exemplars[name].image

    def made(self, request: RequestImages, prompt: str, **fields: Any) -> Image.Image:
        """One picture with RIVAL."""
        return self.studio.rival(request, prompt, **fields)[0]


VARIED = (Case("a pizza", PIZZA, "a pizza"), Case("a house", HOUSE, "a house"))
ANOTHER = (Case("a star", PIZZA, "a star"), Case("a dog face", HOUSE, "a dog face"))
EDIT = {"mode": "edit"}

STRIPS = {
    "similarity": Strip(SHARES, VARIED),
    "t_align": Strip(TIMESTEPS, VARIED),
    "t_early": Strip(TIMESTEPS, VARIED),
    "start": Strip(("matched", "permuted"), VARIED),
    "start_mix": Strip(SHARES, VARIED),
    "uncond_share": Strip(SHARES, VARIED),
    "exemplar_prompt": Strip(
        ("", "{concept}", "{caption}", "a penguin"),
        (
            Case("a pizza\non blue", PIZZA, "a pizza, blue background", EDIT),
            Case("a house\non green", HOUSE, "a house, green background", EDIT),
        ),
        ("empty", "the concept", "the caption", "wrong: a penguin"),
    ),
    "layers": Strip(("32", "16", "coarse", "fine", "all"), ANOTHER),
    "strength": Strip(SHARES, ANOTHER),
    "early_steps": Strip((200, 400, 600, 800, 900, 960, 1000), ANOTHER),
    "alignment": Strip(("off", "noise", "latent"), (VARIED[0], Case("a bus", BUS, "a bus"))),
    "chain": Strip(("inverted", "noised"), (*VARIED, ANOTHER[0])),
    "inversion_nodes": Strip(("3", "4", "6", "8", "10", "all"), VARIED),
    "feature_nodes": Strip(("1", "2", "3", "5", "8", "all"), VARIED),
    "inversion_iterations": Strip(
        (1, 2, 3, 5, 10),
        (Case("house,\nno prompt", HOUSE, fields=EDIT), Case("pizza,\nno prompt", PIZZA, fields=EDIT)),
        steps=4,
    ),
    "exemplar_tokens": Strip((0.25, 0.5, 0.75, 1.0), VARIED),
    "exact": Strip(
        (False, True),
        (
            Case("a pizza", PIZZA, "a pizza", {"exemplar_prompt": "{caption}"}),
            Case("a house\non green", HOUSE, "a house, green background", EDIT | {"exemplar_prompt": "{caption}"}),
        ),
        ("off", "on"),
    ),
}


def varied(bench: Bench, name: str, strip: Strip) -> Image.Image:
    """The exemplar, and a picture for each value of a setting."""
    studio = replace(bench.studio, steps=min(strip.steps, bench.studio.steps))
    rows: Rows = {}
    for case in bench.rows(strip.cases):
        exemplar = bench.exemplars[case.exemplar]
        request = RequestImages.of(exemplar.image)
        made = [
            studio.rival(request, case.prompt, **_filled({**case.fields, name: value}, exemplar))[0]
            for value in strip.values
        ]
        rows[case.name] = [exemplar.image, *made]
    titles = strip.titles or [_title(value) for value in strip.values]
    return labelled_grid(["exemplar", *titles], rows)


def modes(bench: Bench) -> Image.Image:
    """What each mode makes of one exemplar."""
    rows: Rows = {}
    for name, had, asked in bench.rows(((PIZZA, "yellow", "blue"), (HOUSE, "blue", "green"))):
        exemplar = bench.exemplars[name]
        request, (mask, emptied) = RequestImages.of(exemplar.image), right_half(exemplar.image)
        changed = f"{exemplar.concept}, {asked} background"
        rows[exemplar.concept] = [
            exemplar.image,
            bench.made(request, exemplar.concept),
            bench.made(request, "a star", mode="text"),
            bench.made(request, changed, mode="edit", exemplar_prompt=f"{exemplar.concept}, {had} background"),
            emptied,
            bench.made(
                RequestImages(request.exemplars, request.size, exemplar.image, mask), exemplar.concept, mode="inpaint"
            ),
        ]
    return labelled_grid(["exemplar", "variation", "text: a star", "edit: its ground", "mask", "inpaint"], rows)


def right_half(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """A mask of it, and the picture without it."""
    mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).rectangle((image.width // 2, 0, *image.size), fill=255)
    return mask, Image.composite(Image.new("RGB", image.size, "lightgray"), image, mask)


def filling(bench: Bench) -> Image.Image:
    """A mask in one picture filled from another one, with and without a prompt; and without RIVAL."""
    rows: Rows = {}
    for name, other, prompt in bench.rows(((HOUSE, BUS, "a bus"), (PIZZA, HEART, "a red heart"))):
        canvas, source = bench.image(name), bench.image(other)
        mask = circle(canvas.size, 14)
        emptied = Image.composite(Image.new("RGB", canvas.size, "lightgray"), canvas, mask)
        request = RequestImages([ExemplarInput(source)], canvas.size, canvas, mask)
        rows[prompt] = [
            canvas,
            emptied,
            source,
            bench.studio.plain(request, prompt, "inpaint")[0],
            bench.made(request, prompt, mode="inpaint"),
            bench.made(request, "", mode="inpaint"),
        ]
    return labelled_grid(["photo", "mask", "exemplar", "without RIVAL", "from exemplar", "no prompt"], rows)


def weights(bench: Bench) -> Image.Image:
    """From all of one exemplar to all of another."""
    rows: Rows = {}
    for pair, prompt in bench.rows({(PIZZA, HOUSE): "a dog face", (TAXI, HEART): "a star"}.items()):
        first, second = (bench.image(name) for name in pair)
        pictures = []
        for share in reversed(SHARES):
            shown = [ExemplarInput(image, weight=part) for image, part in ((first, share), (second, 1 - share)) if part]
            pictures.append(bench.made(RequestImages(shown, first.size), prompt))
        rows[prompt] = [first, *pictures, second]
    titles = [f"{share:g} : {1 - share:g}" for share in reversed(SHARES)]
    return labelled_grid(["first", *titles, "second"], rows)


def regions(bench: Bench) -> Image.Image:
    """The exemplar seen whole, and through masks that show less and less of it."""
    rows: Rows = {}
    for name in bench.rows((PIZZA, HOUSE)):
        exemplar = bench.exemplars[name]
        image = exemplar.image
        rows[exemplar.concept] = [image, bench.made(RequestImages.of(image), exemplar.concept)]
        for mask in (circle(image.size, 0), circle(image.size, 0, "outside"), circle(image.size, 40)):
            blank = Image.new("RGB", image.size, "white")
            seen = RequestImages([ExemplarInput(image, mask)], image.size)
            rows[exemplar.concept] += [Image.composite(image, blank, mask), bench.made(seen, exemplar.concept)]
    titles = ["exemplar", "whole", "shown", "from it", "shown", "from it", "shown", "from it"]
    return labelled_grid(titles, rows)


def circle(size: tuple[int, int], margin: int, side: str = "inside") -> Image.Image:
    """A mask, white inside of a circle so many pixels off the edge, or outside of it."""
    inside, outside = (255, 0) if side == "inside" else (0, 255)
    mask = Image.new("L", size, outside)
    ImageDraw.Draw(mask).ellipse((margin, margin, size[0] - margin - 1, size[1] - margin - 1), fill=inside)
    return mask


SPECIAL: dict[str, Callable[[Bench], Image.Image]] = {
    "mode": modes,
    "weight": weights,
    "exemplar_mask": regions,
    "filling": filling,
}


@click.command()
@click.argument("strips", nargs=-1, type=click.Choice([*STRIPS, *SPECIAL]))
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "parameters", help="Folder to write.")
@click.option("--steps", type=click.IntRange(2), default=STEPS, show_default=True, help="Sampling steps at most.")
@click.option("--rows", type=click.IntRange(1), default=99, help="The most rows of each strip.")
def main(strips: Sequence[str], out: Path, steps: int, rows: int) -> None:
    """Makes the named STRIPS, or all."""
    quieten_libraries()
    bench = Bench(Studio(load_pipeline(DEMO_CHECKPOINT), seeds=(1,), steps=steps), read_exemplars(), rows)
    out.mkdir(parents=True, exist_ok=True)
    for name in tqdm(strips or [*STRIPS, *SPECIAL], unit="strip"):
        strip = SPECIAL[name](bench) if name in SPECIAL else varied(bench, name, STRIPS[name])
        strip.quantize(COLOURS, kmeans=1, dither=Image.Dither.NONE).save(out / f"{name}.png", optimize=True)


def _filled(fields: Mapping[str, Any], exemplar: Exemplar) -> dict[str, Any]:
    """The fields with the exemplar's own concept and caption in their texts."""
    words = {"concept": exemplar.concept, "caption": exemplar.caption}
    return {name: value.format(**words) if isinstance(value, str) else value for name, value in fields.items()}


def _title(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


if __name__ == "__main__":
    main()
