"""What the method does, in figures: writes docs/inversion.md, docs/effect.md and docs/effect.png.

    python benchmarks/effect.py

Runs the small demo model on exemplars that it was not trained on; some minutes on two cores.
Needs scipy and scikit-image beside what the command line needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from string import Template

import click
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from exactness import inversion_page
from exemplars import GUIDANCE, ROOT, STEPS, Exemplar, make_host, markdown_table, read_exemplars, vae_reconstruction
from PIL import Image, ImageDraw, ImageFont
from scipy.cluster.vq import kmeans2
from scipy.stats import wasserstein_distance_nd
from skimage.color import rgb2lab
from torch import Tensor
from tqdm import tqdm

from rival_ext.fields import DEFAULTS
from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline, quieten_libraries
from rival_ext.hosts.diffusers import DiffusersHost
from rival_ext.method.alignment import channel_statistics
from rival_ext.method.chain import Chain
from rival_ext.method.exemplars import Exemplar as Seen
from rival_ext.method.guide import Guide
from rival_ext.method.layers import self_attention_layers
from rival_ext.method.noise import scale_to_vp
from rival_ext.method.prepare import prepare
from rival_ext.settings import PAPER, Settings
from rival_ext.storage.store import ChainStore

SEEDS = (1, 2)
COLOURS = 6

PICTURED = (
    "pizza-emojione-yellow",
    "house-emojione-blue",
    "bus-emojione-pink",
    "cat-face-emojione-white",
    "red-heart-emojione-purple",
)


@dataclass(frozen=True)
class Variant:
    """The paper's form, or what is left of it when parts are taken away; without all of them it is plain generation."""

    injected: bool = True
    aligned: bool = True
    drawn: bool = True
    captioned: bool = False
    t_align: int = PAPER["t_align"]
    t_early: int = DEFAULTS["t_early"]
    exemplar_tokens: float = 1.0

    @property
    def settings(self) -> Settings:
        """Its choices, as far as the user can make them."""
        values = PAPER | {"t_align": self.t_align} | ({} if self.aligned else {"alignment": "off"})
        return Settings(**values, t_early=self.t_early, exemplar_tokens=self.exemplar_tokens)


@dataclass(frozen=True)
class Result:
    """One generated image and how far it is from its exemplar."""

    image: Image.Image
    palette: float
    statistics: float


Results = dict[tuple[str, Variant], list[Result]]
"""By the prompt's name and the variant: a result for each seed of each exemplar, in order."""

PROMPTS: dict[str, Callable[[Exemplar], str]] = {
    "full caption": lambda exemplar: exemplar.caption,
    "concept only": lambda exemplar: exemplar.concept,
    "empty": lambda exemplar: "",
}
PICTURED_PROMPT = "concept only"

PLAIN = Variant(injected=False, aligned=False, drawn=False)
PARTS = {
    "RIVAL": Variant(),
    "no injection": Variant(injected=False),
    "no alignment": Variant(aligned=False),
    "noise start": Variant(drawn=False),
    "injection alone, noise start": Variant(aligned=False, drawn=False),
}
PICTURED_PARTS = ("RIVAL", "no injection", "no alignment", "noise start")
EXEMPLAR_PROMPTS = {"empty": Variant(), "the full caption": Variant(captioned=True)}
TIMESTEPS = {
    f"t_align {t_align}, t_early {t_early}": Variant(t_align=t_align, t_early=t_early)
    for t_align in (300, 600, 900)
    for t_early in (300, 600, 900)
}
TOKENS = {f"{fraction:g}": Variant(exemplar_tokens=fraction) for fraction in (1.0, 0.75, 0.5, 0.25)}
COMPARISONS = (PARTS, EXEMPLAR_PROMPTS, TIMESTEPS, TOKENS)

MEASURES: dict[str, Callable[[Result], float]] = {
    "palette": lambda result: result.palette,
    "statistics": lambda result: result.statistics,
}


class Probe(Guide):
    """A guide that also notes, at every step, how far the latent's statistics are from the exemplar's.

    gaps: by step, one value an image: `|mean_G - mean_R| + |std_G - std_R|` of the variance-preserving latents,
    averaged over the channels.
    """

    def __init__(self, chain: Chain, variant: Variant, host: DiffusersHost):
        layers = self_attention_layers(host.unet) if variant.injected else {}
        super().__init__([Seen(chain)], variant.settings, host.schedule, layers, host.predict_noise)
        self.gaps: list[Tensor] = []

    def corrected_latent(self, latent: Tensor, noise_level: float) -> Tensor:
        """Called by the host before each step, so that it sees every latent."""
        latent = super().corrected_latent(latent, noise_level)
        scale = scale_to_vp(noise_level)
        own = channel_statistics(latent * scale)
        exemplars = channel_statistics(self.exemplars[0].chain.latent(noise_level) * scale)
        mean_gap, deviation_gap = ((one - other).abs() for one, other in zip(own, exemplars, strict=True))
        self.gaps.append((mean_gap + deviation_gap).mean(dim=(1, 2, 3)))
        return latent


@dataclass(frozen=True)
class Size:
    """How much is measured: sampling steps, the most exemplars of each table, and the seeds of each image."""

    steps: int
    exemplars: int
    seeds: Sequence[int]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs", help="Folder to write; default: docs.")
@click.option("--steps", type=click.IntRange(2), default=STEPS, show_default=True, help="Sampling steps.")
@click.option("--exemplars", "most", type=click.IntRange(1), default=99, help="The most exemplars of each table.")
@click.option("--seeds", type=click.IntRange(1), default=len(SEEDS), show_default=True, help="Seeds of each image.")
def main(out: Path, steps: int, most: int, seeds: int) -> None:
    """Measures the inversion and each part of the method and writes the pages about them."""
    quieten_libraries()
    pipeline = load_pipeline(DEMO_CHECKPOINT)
    exemplars = read_exemplars()
    known = [exemplar for exemplar in exemplars.values() if exemplar.known][:most]
    size = Size(steps, most, range(1, seeds + 1))
    out.mkdir(parents=True, exist_ok=True)

    (out / "inversion.md").write_text(inversion_page(pipeline, exemplars, known, steps, most))
    results = measure_effect(pipeline, known, size)
    (out / "effect.md").write_text(effect_page(results, len(known), size))
    effect_picture(results, known, seeds).save(out / "effect.png", optimize=True)


def measure_effect(pipeline: StableDiffusionPipeline, exemplars: Sequence[Exemplar], size: Size) -> Results:
    """Every variant with every prompt on every exemplar."""
    # a variant that several tables show, such as the full method, is measured once
    variants = dict.fromkeys([PLAIN, *(variant for table in COMPARISONS for variant in table.values())])
    results: Results = {(prompt, variant): [] for prompt in PROMPTS for variant in variants}
    store = ChainStore()
    for exemplar in tqdm(exemplars, unit="exemplar"):
        target = palette(vae_reconstruction(make_host(pipeline, exemplar)))
        for (prompt, variant), found in results.items():
            exemplar_prompt = exemplar.caption if variant.captioned else ""
            host = make_host(pipeline, exemplar, PROMPTS[prompt](exemplar), exemplar_prompt, size.steps)
            for image, gap in generate(host, variant, store, size.seeds):
                found.append(Result(image, palette_distance(palette(image), target), gap))
    return results


def generate(
    host: DiffusersHost, variant: Variant, store: ChainStore, seeds: Sequence[int]
) -> list[tuple[Image.Image, float]]:
    """An image for each seed, with the mean over the steps of its latent's distance from the exemplar's statistics."""
    chain = prepare(host, variant.settings, store).guide.exemplars[0].chain
    probe = Probe(chain, variant, host)
    start = host.start(seeds, probe if variant.drawn else None)
    images = host.decode(host.sample(start, seeds, probe, lambda done, total: None))
    return list(zip(images, torch.stack(probe.gaps).mean(dim=0).tolist(), strict=True))


Palette = tuple[np.ndarray, np.ndarray]
"""Colours `[6, 3]` in CIE Lab and how many pixels each stands for."""


def palette(image: Image.Image) -> Palette:
    """The six colours that stand for the picture."""
    pixels = rgb2lab(np.asarray(image)).reshape(-1, 3)
    colours, nearest = kmeans2(pixels, COLOURS, iter=30, minit="++", rng=0)
    return colours, np.bincount(nearest, minlength=COLOURS)


def palette_distance(one: Palette, other: Palette) -> float:
    """Earth mover's distance: how far, in Lab units, the average pixel must move to turn one into the other."""
    return float(wasserstein_distance_nd(one[0], other[0], one[1], other[1]))


def effect_page(results: Results, exemplars: int, size: Size) -> str:
    """docs/effect.md."""
    parts, exemplar_prompts, timesteps, tokens = (ratio_rows(results, variants) for variants in COMPARISONS)
    header = ["", *(f"{measure}, {prompt}" for measure in MEASURES for prompt in PROMPTS)]
    return EFFECT_PAGE.substitute(
        steps=size.steps,
        guidance=f"{GUIDANCE:g}",
        exemplars=exemplars,
        seeds=len(size.seeds),
        images=exemplars * len(size.seeds),
        parts=markdown_table(header, [plain_row(results), *parts]),
        exemplar_prompts=markdown_table(["exemplar prompt", *header[1:]], exemplar_prompts),
        timesteps=markdown_table(header, timesteps),
        tokens=markdown_table(["exemplar_tokens", *header[1:]], tokens),
    )


def plain_row(results: Results) -> list[str]:
    """The mean distances of plain generation, which the ratios refer to."""
    return [
        "plain, the distance itself",
        *(f"{mean(map(of, results[prompt, PLAIN])):.2f}" for of in MEASURES.values() for prompt in PROMPTS),
    ]


def ratio_rows(results: Results, variants: dict[str, Variant]) -> list[list[str]]:
    """A row for each variant: by measure and prompt, how far it is from the exemplar beside plain generation."""
    return [
        [
            title,
            *(
                ratio_cell(list(map(of, results[prompt, variant])), list(map(of, results[prompt, PLAIN])))
                for of in MEASURES.values()
                for prompt in PROMPTS
            ),
        ]
        for title, variant in variants.items()
    ]


def ratio_cell(values: Sequence[float], plain: Sequence[float]) -> str:
    """The ratio of the means and, in brackets, how many values are below plain generation's."""
    closer = sum(value < base for value, base in zip(values, plain, strict=True))
    return f"{mean(values) / mean(plain):.2f} ({closer})"


def effect_picture(results: Results, exemplars: Sequence[Exemplar], seeds: int) -> Image.Image:
    """docs/effect.png: a row for each pictured exemplar, the photo first, all of the first seed."""
    columns = {"plain": PLAIN, **{part: PARTS[part] for part in PICTURED_PARTS}}
    rows = {}
    # with few exemplars none of those that the page shows may be among them
    pictured = set(PICTURED) & {exemplar.name for exemplar in exemplars} or {exemplars[0].name}
    for index, exemplar in enumerate(exemplars):
        if exemplar.name in pictured:
            made = [results[PICTURED_PROMPT, variant][index * seeds].image for variant in columns.values()]
            rows[exemplar.concept] = [exemplar.image, *made]
    return labelled_grid(["photo", *columns], rows)


def labelled_grid(titles: Sequence[str], rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Pictures of one size in rows under column titles, each row named at its left."""
    font = ImageFont.load_default(size=16)
    gap, top = 12, 40
    left = max(120, 2 * gap + max(round(font.getlength(line)) for name in rows for line in name.split("\n")))
    width, height = next(iter(rows.values()))[0].size
    grid = Image.new("RGB", (left + len(titles) * (width + gap), top + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(grid)
    for column, title in enumerate(titles):
        draw.text((left + column * (width + gap) + width / 2, top / 2), title, "black", font, anchor="mm")
    for row, (name, pictures) in enumerate(rows.items()):
        y = top + row * (height + gap)
        draw.text((left - gap, y + height / 2), name, "black", font, anchor="rm")
        for column, picture in enumerate(pictures):
            x = left + column * (width + gap)
            grid.paste(picture, (x, y))
            # a picture on white would have no edge on the white page
            draw.rectangle((x - 1, y - 1, x + width, y + height), outline="lightgray")
    return grid


EFFECT_PAGE = Template("""\
# What each part does

![Photo, plain generation, RIVAL, and RIVAL without one of its parts, for five exemplars](effect.png)

In these images the prompt is the concept ("a pizza"), and each row uses one seed. Plain generation draws the named
subject in any colours. RIVAL brings the colours and the background close to the exemplar's. The cat shows the limit:
the model's own idea of a cat face is stronger than the exemplar's grey.

"RIVAL" is the paper's form here, the preset *paper*: permuted start, the exemplar always seen beside the negative
prompt, alignment of the noise prediction, `t_align` and `t_early` 600. Which start, share, alignment and strength keep
objects whole, and so the defaults, is on a page of its own: [starts.md](starts.md). What a chain of fewer evaluations
or without an inversion loses and wins is on [nodes.md](nodes.md).

Two distances from the exemplar are measured:

- **palette**: the pixels of each image are clustered into six colours in CIE Lab. The distance is the earth mover's
  distance between the two palettes, in Lab units. The exemplar is encoded and decoded by the VAE before it is
  measured.
- **statistics**: the difference of mean and standard deviation between the latent and the exemplar's latent at the
  same noise level, averaged over channels and steps. The start counts as the first step.

Each figure is the mean distance, as a ratio to plain generation with the same prompt and the same seeds: 1 is no gain,
a smaller ratio is closer. The number in brackets says how many of the $images images are closer than the plain one.
The model is the small demo model, with $exemplars held-out exemplars of things that it knows, $seeds seeds each,
$steps DDIM steps and guidance $guidance. With so few images, small differences between two rows mean little.

## The parts

The table shows the full method, the method without one of its parts, and injection as the only part:

$parts

- RIVAL is closer to the exemplar than plain generation with every prompt. The less the prompt says, the more comes
  from the exemplar.
- Injection and alignment both bring images closer. Only with an empty prompt the palette is as close without
  alignment.
- If the full method starts from plain noise, its images are on average farther away than plain generation, and an
  image can break down completely, as the heart does. So a start with the exemplar's statistics and the alignment
  belong together.

## Exemplar prompt

The exemplar is inverted without a prompt, which is the default, or with its full caption. The columns name the prompt
of the generation:

$exemplar_prompts

The statistics are compared with those of the inversion of the same row. The two rows differ little, and neither is
better everywhere. The default stays empty, because it needs no description of the photo.

## t_align and t_early

$timesteps

With smaller values of either, images are closer to the exemplar or as close. The authors chose 600 for both;
the default of `t_align` is 800, which [keeps more objects whole](starts.md#alignment-and-thresholds).

## Fewer exemplar tokens

`exemplar_tokens` is the fraction of the exemplar's tokens that an image sees below `t_align`. A smaller fraction
[saves time](cost.md). The table shows how much less close the images are:

$tokens

With each quarter less, the images are a little less close. With a quarter of the tokens they are still clearly closer
than without injection. The default is all tokens.

`python benchmarks/effect.py` wrote these figures and the image. The exemplars in it are EmojiOne 2.x by Emoji One, CC
BY 4.0, placed on plain backgrounds.
""")

if __name__ == "__main__":
    main()
