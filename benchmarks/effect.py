"""What the method does, in figures: writes docs/inversion.md, docs/effect.md and docs/effect.png.

    python benchmarks/effect.py

Runs the small demo model on exemplars that it was not trained on; some minutes on two cores.
Needs scipy and scikit-image beside what the command line needs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from string import Template

import click
import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont
from scipy.cluster.vq import kmeans2
from scipy.stats import wasserstein_distance_nd
from skimage.color import rgb2lab
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
# the project is run from its checkout and not installed, so Python finds only this file's own folder
sys.path.insert(0, str(ROOT))

from rival_ext.alignment import channel_statistics  # noqa: E402
from rival_ext.attention import self_attention_layers  # noqa: E402
from rival_ext.chain import Chain  # noqa: E402
from rival_ext.guide import Guide  # noqa: E402
from rival_ext.hosts.diffusers import DEMO_CHECKPOINT, DiffusersHost, Request, load_pipeline  # noqa: E402
from rival_ext.inversion import FirstGuess, extrapolated, invert, lower_latent, reconstruct  # noqa: E402
from rival_ext.noise import scale_to_vp  # noqa: E402
from rival_ext.pictures import psnr  # noqa: E402
from rival_ext.prepare import prepare  # noqa: E402
from rival_ext.report import Report  # noqa: E402
from rival_ext.settings import Settings  # noqa: E402
from rival_ext.store import ChainStore  # noqa: E402

EXEMPLARS = ROOT / "tests" / "data" / "exemplars"
STEPS = 20
GUIDANCE = 5.0
SEEDS = (1, 2)
COLOURS = 6

FIRST_GUESSES: dict[str, FirstGuess] = {"lower latent (the authors)": lower_latent, "extrapolated": extrapolated}
ITERATIONS = (1, 2, 3)
INVERTED = (
    "basketball-twemoji-white",
    "cat-face-emojione-white",
    "house-emojione-blue",
    "pizza-emojione-yellow",
    "taxi-twemoji-green",
)
PICTURED = (
    "pizza-emojione-yellow",
    "house-emojione-blue",
    "bus-emojione-pink",
    "cat-face-emojione-white",
    "red-heart-emojione-purple",
)


@dataclass(frozen=True)
class Exemplar:
    """A held-out image with what it shows: `caption` in full, `concept` without style and background."""

    name: str
    caption: str
    concept: str
    known: bool
    image: Image.Image


@dataclass(frozen=True)
class Variant:
    """The method, or what is left of it when parts are taken away; without all of them it is plain generation."""

    injected: bool = True
    aligned: bool = True
    permuted: bool = True
    captioned: bool = False
    t_align: int = 600
    t_early: int = 600

    @property
    def settings(self) -> Settings:
        """Its choices, as far as the user can make them."""
        return Settings(t_align=self.t_align, t_early=self.t_early, alignment="noise" if self.aligned else "off")


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

PLAIN = Variant(injected=False, aligned=False, permuted=False)
PARTS = {
    "RIVAL": Variant(),
    "no injection": Variant(injected=False),
    "no alignment": Variant(aligned=False),
    "noise start": Variant(permuted=False),
    "injection alone, noise start": Variant(aligned=False, permuted=False),
}
PICTURED_PARTS = ("RIVAL", "no injection", "no alignment", "noise start")
EXEMPLAR_PROMPTS = {"empty": Variant(), "the full caption": Variant(captioned=True)}
T_ALIGN = {f"t_align {timestep}": Variant(t_align=timestep) for timestep in (300, 600, 900)}
T_EARLY = {f"t_early {timestep}": Variant(t_early=timestep) for timestep in (300, 600, 900)}


class Probe(Guide):
    """A guide that also notes, at every step, how far the latent's statistics are from the exemplar's.

    gaps: by step, one value an image: `|mean_G - mean_R| + |std_G - std_R|` of the variance-preserving latents,
    averaged over the channels.
    """

    def __init__(self, chain: Chain, variant: Variant, host: DiffusersHost, report: Report):
        layers = self_attention_layers(host.unet) if variant.injected else {}
        super().__init__(chain, variant.settings, host.schedule, layers, host.predict_noise, report)
        self.gaps: list[Tensor] = []

    def align_latent(self, latent: Tensor, noise_level: float) -> Tensor:
        """Called by the host before each step, so that it sees every latent."""
        latent = super().align_latent(latent, noise_level)
        scale = scale_to_vp(noise_level)
        own = channel_statistics(latent * scale)
        exemplars = channel_statistics(self.chain.latent(noise_level) * scale)
        gaps = [(one - other).abs() for one, other in zip(own, exemplars, strict=True)]
        self.gaps.append(sum(gaps).mean(dim=(1, 2, 3)))
        return latent


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs", help="Folder to write; default: docs.")
def main(out: Path) -> None:
    """Measures the inversion and each part of the method and writes the pages about them."""
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    pipeline = load_pipeline(DEMO_CHECKPOINT)
    exemplars = read_exemplars()
    known = [exemplar for exemplar in exemplars.values() if exemplar.known]
    out.mkdir(parents=True, exist_ok=True)

    (out / "inversion.md").write_text(inversion_page(pipeline, [exemplars[name] for name in INVERTED], known))
    results = measure_effect(pipeline, known)
    (out / "effect.md").write_text(effect_page(results, len(known)))
    effect_picture(results, known).save(out / "effect.png", optimize=True)


def read_exemplars() -> dict[str, Exemplar]:
    """The held-out images by name."""
    entries = json.loads((EXEMPLARS / "captions.json").read_text())
    exemplars = [
        Exemplar(
            Path(entry["file"]).stem,
            entry["caption"],
            entry["caption_plain"],
            entry["concept_seen_by_unet"],
            Image.open(EXEMPLARS / entry["file"]).convert("RGB"),
        )
        for entry in entries
    ]
    return {exemplar.name: exemplar for exemplar in exemplars}


def make_host(
    pipeline: StableDiffusionPipeline, exemplar: Exemplar, prompt: str = "", exemplar_prompt: str = ""
) -> DiffusersHost:
    """The embedded host for one exemplar."""
    request = Request(prompt, exemplar_prompt, GUIDANCE, "ddim", STEPS)
    return DiffusersHost(pipeline, request, exemplar.image, lambda done, total: None)


# ---- the inversion


def reconstruction_psnr(host: DiffusersHost, first_guess: FirstGuess, iterations: int) -> float:
    """dB of the exemplar inverted and led back, against the VAE's own reconstruction of it."""
    chain = invert(
        host.exemplar_latent(),
        host.noise_levels(),
        host.predict_noise,
        {},
        iterations=iterations,
        first_guess=first_guess,
    )
    back = host.decode(reconstruct(chain, host.predict_noise))[0]
    return psnr(vae_reconstruction(host), back)


def vae_reconstruction(host: DiffusersHost) -> Image.Image:
    """The exemplar encoded and decoded: what the model could give back at best."""
    return host.decode(host.exemplar_latent())[0]


def inversion_page(
    pipeline: StableDiffusionPipeline, exemplars: Sequence[Exemplar], known: Sequence[Exemplar]
) -> str:
    """docs/inversion.md."""
    hosts = [make_host(pipeline, exemplar) for exemplar in exemplars]
    rows = []
    for title, first_guess in FIRST_GUESSES.items():
        for iterations in ITERATIONS:
            decibels = [reconstruction_psnr(host, first_guess, iterations) for host in hosts]
            rows.append([title, str(iterations), *(f"{value:.1f}" for value in (*decibels, mean(decibels)))])
    header = ["first guess", "K", *(exemplar.concept for exemplar in exemplars), "mean"]
    return INVERSION_PAGE.substitute(
        steps=STEPS,
        table=markdown_table(header, rows),
        prompts=exemplar_prompt_table(pipeline, known),
        known=len(known),
    )


def exemplar_prompt_table(pipeline: StableDiffusionPipeline, exemplars: Sequence[Exemplar]) -> str:
    """Mean reconstruction with and without a prompt for the exemplar, from the default inversion."""
    rows = []
    for title, variant in EXEMPLAR_PROMPTS.items():
        prompts = [exemplar.caption if variant.captioned else "" for exemplar in exemplars]
        hosts = [make_host(pipeline, one, exemplar_prompt=text) for one, text in zip(exemplars, prompts, strict=True)]
        decibels = [reconstruction_psnr(host, extrapolated, 1) for host in hosts]
        rows.append([title, f"{mean(decibels):.1f}", f"{min(decibels):.1f}"])
    return markdown_table(["exemplar prompt", "mean", "lowest"], rows)


# ---- the effect


def measure_effect(pipeline: StableDiffusionPipeline, exemplars: Sequence[Exemplar]) -> Results:
    """Every variant with every prompt on every exemplar."""
    variants = list(dict.fromkeys([PLAIN, *(one for t in (PARTS, EXEMPLAR_PROMPTS, T_ALIGN, T_EARLY) for one in t.values())]))
    results: Results = {(prompt, variant): [] for prompt in PROMPTS for variant in variants}
    store = ChainStore()
    for exemplar in tqdm(exemplars, unit="exemplar"):
        target = palette(vae_reconstruction(make_host(pipeline, exemplar)))
        for (prompt, variant), found in results.items():
            exemplar_prompt = exemplar.caption if variant.captioned else ""
            host = make_host(pipeline, exemplar, PROMPTS[prompt](exemplar), exemplar_prompt)
            for image, gap in generate(host, variant, store):
                found.append(Result(image, palette_distance(palette(image), target), gap))
    return results


def generate(host: DiffusersHost, variant: Variant, store: ChainStore) -> list[tuple[Image.Image, float]]:
    """An image for each seed, with the mean over the steps of its latent's distance from the exemplar's statistics."""
    report = Report("variation", variant.t_align, variant.t_early)
    chain = prepare(host, variant.settings, store, report).chain
    probe = Probe(chain, variant, host, report)
    start = chain.start(SEEDS, True) if variant.permuted else torch.cat([host.noise(seed) for seed in SEEDS])
    images = host.decode(host.sample(start, SEEDS, probe, lambda done, total: None))
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


# ---- the pages


def effect_page(results: Results, exemplars: int) -> str:
    """docs/effect.md."""

    def tables(variants: dict[str, Variant]) -> str:
        return "\n\n".join(
            [
                "Palette:\n\n" + ratio_table(results, variants, lambda result: result.palette, "Lab units"),
                "Latent statistics:\n\n" + ratio_table(results, variants, lambda result: result.statistics, "distance"),
            ]
        )

    return EFFECT_PAGE.substitute(
        steps=STEPS,
        guidance=f"{GUIDANCE:g}",
        exemplars=exemplars,
        seeds=len(SEEDS),
        images=exemplars * len(SEEDS),
        parts=tables(PARTS),
        exemplar_prompts=tables(EXEMPLAR_PROMPTS),
        t_align=tables(T_ALIGN),
        t_early=tables(T_EARLY),
    )


def ratio_table(
    results: Results, variants: dict[str, Variant], measure: Callable[[Result], float], unit: str
) -> str:
    """Mean distances by variant and prompt, as ratios to plain generation, with how many images came closer."""
    plain = {prompt: [measure(result) for result in results[prompt, PLAIN]] for prompt in PROMPTS}
    rows = [[f"plain, {unit}", *(f"{mean(plain[prompt]):.3g}" for prompt in PROMPTS)]]
    for title, variant in variants.items():
        cells = [
            ratio_cell([measure(result) for result in results[prompt, variant]], plain[prompt]) for prompt in PROMPTS
        ]
        rows.append([title, *cells])
    return markdown_table(["", *PROMPTS], rows)


def ratio_cell(values: Sequence[float], plain: Sequence[float]) -> str:
    """The ratio of the means and, in brackets, how many values are below plain generation's."""
    closer = sum(value < base for value, base in zip(values, plain, strict=True))
    return f"{mean(values) / mean(plain):.2f} ({closer})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def effect_picture(results: Results, exemplars: Sequence[Exemplar]) -> Image.Image:
    """docs/effect.png: a row for each pictured exemplar, the photo first, all of the first seed."""
    columns = {"plain": PLAIN, **{part: PARTS[part] for part in PICTURED_PARTS}}
    rows = {}
    for index, exemplar in enumerate(exemplars):
        if exemplar.name in PICTURED:
            made = [results[PICTURED_PROMPT, variant][index * len(SEEDS)].image for variant in columns.values()]
            rows[exemplar.concept] = [exemplar.image, *made]
    return labelled_grid(["photo", *columns], rows)


def labelled_grid(titles: Sequence[str], rows: dict[str, list[Image.Image]]) -> Image.Image:
    """Pictures of one size in rows under column titles, each row named at its left."""
    gap, top, left = 12, 40, 120
    width, height = next(iter(rows.values()))[0].size
    grid = Image.new("RGB", (left + len(titles) * (width + gap), top + len(rows) * (height + gap)), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(size=16)
    for column, title in enumerate(titles):
        draw.text((left + column * (width + gap) + width / 2, top / 2), title, "black", font, anchor="mm")
    for row, (name, pictures) in enumerate(rows.items()):
        y = top + row * (height + gap)
        draw.text((left - gap, y + height / 2), name, "black", font, anchor="rm")
        for column, picture in enumerate(pictures):
            grid.paste(picture, (left + column * (width + gap), y))
    return grid


INVERSION_PAGE = Template("""\
# How exact the inversion is

$table

$prompts
""")

EFFECT_PAGE = Template("""\
# What each part does

$parts

$exemplar_prompts

$t_align

$t_early
""")

if __name__ == "__main__":
    main()
