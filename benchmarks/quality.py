"""RIVAL with a real checkpoint on your own photos, judged by CLIP, DINO and LPIPS: docs/quality.md says how to run it.

    python benchmarks/quality.py --checkpoint FILE --photos FOLDER --clip FOLDER --dino FOLDER --lpips FILE --out FOLDER

Every arm makes images from the same seeds. Needs the extra `quality`. Nothing is downloaded.
"""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

# open_clip and transformers ask no server for what a folder lacks; they read this when they are imported
os.environ["HF_HUB_OFFLINE"] = "1"

import click
import torch
from diffusers import StableDiffusionPipeline
from effect import labelled_grid, palette, palette_distance
from encoders import Clip, Dino, Lpips, load_clip, load_dino, load_lpips
from exemplars import vae_reconstruction
from PIL import Image, ImageOps
from quality_page import mean_figures, page
from tqdm import tqdm

from rival_ext import __version__
from rival_ext.cli import SAMPLERS, FilePath, Number, Size
from rival_ext.errors import RivalError
from rival_ext.files import read_image_file, refuse_unreadable
from rival_ext.hosts.checkpoint import load_pipeline, native_size, quieten_libraries
from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.images.transforms import fit, on_white
from rival_ext.method.layers import count_rows
from rival_ext.method.prepare import prepare
from rival_ext.settings import PAPER, Settings, parse_settings
from rival_ext.storage.store import NoStore

ARMS: dict[str, dict[str, Any] | None] = {"plain": None, "RIVAL paper": PAPER, "RIVAL": {}}
"""What is compared: fields of the settings, or None for generation without RIVAL."""

PHOTO_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}

CELL = 256
"""The side of a picture on the contact sheet, in pixels."""

LONGEST_NAME = 9
"""So many letters of a photo's name stand beside its row of the contact sheet."""

LOADERS: dict[str, Callable[[Path, torch.device], Any]] = {"clip": load_clip, "dino": load_dino, "lpips": load_lpips}
"""What loads the weights that an option names."""


@dataclass(frozen=True)
class Photo:
    """A photo at the size of the images, and the prompt that goes with it."""

    name: str
    image: Image.Image
    prompt: str


@dataclass
class Cost:
    """The UNet rows and seconds of some work."""

    rows: int = 0
    seconds: float = 0.0


@dataclass
class Made:
    """The images of one arm, what each of them cost, and what their inversion cost."""

    images: list[Image.Image] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    inversion: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Bench:
    """A loaded checkpoint and how images are made with it."""

    pipeline: StableDiffusionPipeline
    seeds: Sequence[int]
    size: tuple[int, int] | None
    steps: int
    cfg: float
    denoise: float
    sampler: str

    def photo(self, file: Path, prompt: str) -> Photo:
        """Read a photo and fit it to the size of the images."""
        image = on_white(read_image_file("the photo", file).image)
        return Photo(file.name, fit(image, self.size or native_size(self.pipeline, image)), prompt)

    def host(self, photo: Photo, settings: Settings) -> DiffusersHost:
        """The command line's host for one photo."""
        request = Request(
            prompt=photo.prompt,
            exemplar_prompt=settings.exemplar_prompt,
            guidance=self.cfg,
            sampler=self.sampler,
            steps=self.steps,
            exact=settings.exact,
            denoise=self.denoise,
        )
        return DiffusersHost(self.pipeline, request, RequestImages.of(photo.image), lambda done, total: None)

    def make(self, photo: Photo, fields: Mapping[str, Any] | None, advance: Callable[[], Any]) -> Made:
        """An image for each seed, one after the other as on the command line."""
        settings, made = parse_settings(fields or {}), Made()
        host, guide = self.host(photo, settings), None
        if fields is not None:
            with spent(host, made.inversion):
                guide = prepare(host, settings, NoStore()).guide
        for seed in self.seeds:
            cost = Cost()
            with spent(host, cost):
                latent = host.sample(host.start([seed], guide), [seed], guide, lambda done, total: None)
                made.images += host.decode(latent)
            made.costs.append(cost)
            advance()
        return made

    def warm_up(self, photo: Photo) -> None:
        """Call everything once: the first call is slower, above all on a GPU."""
        replace(self, seeds=[0], steps=2, denoise=1.0).make(photo, {}, lambda: None)


@dataclass(frozen=True)
class Judges:
    """The encoders; those whose weights were not given are None."""

    clip: Clip | None
    dino: Dino | None
    lpips: Lpips | None

    def figures(self, photo: Photo, target: Image.Image, made: Made) -> list[dict[str, float]]:
        """The figures of each image of one arm. `target` is the photo as the VAE gives it back."""
        images, colours = made.images, palette(target)
        columns: dict[str, list[float]] = {
            "palette": [palette_distance(palette(image), colours) for image in images],
            "rows": [cost.rows for cost in made.costs],
            "seconds": [cost.seconds for cost in made.costs],
        }
        if self.clip:
            vectors = self.clip.of_images([photo.image, *images])
            columns["clip_i"] = (vectors[1:] @ vectors[0]).tolist()
            if photo.prompt:
                columns["clip_t"] = (vectors[1:] @ self.clip.of_text(photo.prompt)[0]).tolist()
        if self.dino:
            vectors = self.dino.of_images([photo.image, *images])
            columns["dino"] = (vectors[1:] @ vectors[0]).tolist()
        if self.lpips:
            columns["lpips_photo"] = [self.lpips.distance(image, photo.image) for image in images]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def diversity(self, images: Sequence[Image.Image]) -> dict[str, float]:
        """How far the images of the seeds are from each other, if there are two of them."""
        if self.lpips is None or len(images) < 2:
            return {}
        return {"lpips_seeds": mean(self.lpips.distance(*pair) for pair in combinations(images, 2))}


@click.command(context_settings={"max_content_width": 110})
@click.option("--checkpoint", type=FilePath(), required=True, help="An SD 1.x .safetensors file.")
@click.option("--photos", type=FilePath(), required=True, help="A folder of photos.")
@click.option("--prompts", type=FilePath(), help="CSV or JSON with a prompt for each photo; default: the files' names.")
@click.option("--clip", type=FilePath(), help="Folder of an open_clip model, for CLIP-I and CLIP-T.")
@click.option("--dino", type=FilePath(), help="Folder of a DINO model of transformers.")
@click.option("--lpips", type=FilePath(), help="torchvision's weights of AlexNet, VGG16 or SqueezeNet 1.1, for LPIPS.")
@click.option("--out", type=FilePath(), required=True, help="Folder for quality.json, quality.md and quality.png.")
@click.option("--seeds", type=click.IntRange(1), default=4, show_default=True, help="Images of each photo and arm.")
@click.option("--steps", type=click.IntRange(2, 500), default=50, show_default=True, help="Sampling steps.")
@click.option("--size", type=Size(), help="Size of the images; default: the photo's aspect, the checkpoint's area.")
@click.option("--cfg", type=Number(1, 30), default=5.0, show_default=True, help="Guidance scale.")
@click.option("--denoise", type=Number(0, 1, min_open=True), default=1.0, show_default=True, help="Share of the steps.")
@click.option("--sampler", type=click.Choice(SAMPLERS), default="ddim", show_default=True, help="Sampler.")
def main(checkpoint: Path, photos: Path, prompts: Path | None, out: Path, seeds: int, **options: Any) -> None:
    """Makes images of every photo with every arm, measures them and writes JSON, a page and a contact sheet."""
    quieten_libraries()
    weights = {name: options.pop(name) for name in LOADERS}
    try:
        sources = read_sources(photos, prompts)
        bench = Bench(load_pipeline(checkpoint), range(1, seeds + 1), **options)
        device = bench.pipeline.unet.device
        judges = Judges(**{name: path and LOADERS[name](path, device) for name, path in weights.items()})
        files = {name: path.name for name, path in {"checkpoint": checkpoint, **weights}.items() if path}
        measure(bench, judges, sources, described(bench, files), out)
    except RivalError as error:
        sys.exit(str(error))


def read_sources(folder: Path, prompts: Path | None) -> dict[Path, str]:
    """The photos of a folder, each with its prompt."""
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in PHOTO_SUFFIXES)
    if not files:
        raise RivalError(f"--photos {folder} has no image in it; give a folder of photos.")
    if prompts is None:
        return {file: file.stem.replace("_", " ").replace("-", " ") for file in files}
    given = read_prompts(prompts)
    if missing := [file.name for file in files if file.name not in given]:
        raise RivalError(f"--prompts {prompts} has no prompt for {missing[0]}; an empty one is a prompt too.")
    return {file: given[file.name] for file in files}


def read_prompts(file: Path) -> dict[str, str]:
    """Prompts by the photo's file name: a JSON object, or CSV with the columns `photo` and `prompt`."""
    refuse_unreadable("--prompts", file, "a CSV or JSON file")
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            return {str(name): str(prompt) for name, prompt in json.loads(text).items()}
        return {row["photo"]: row["prompt"] for row in csv.DictReader(text.splitlines())}
    except (ValueError, AttributeError, KeyError):
        raise RivalError(
            f"--prompts {file} must be a JSON object of file names and prompts, or a CSV file with the columns photo "
            "and prompt."
        ) from None


@contextmanager
def spent(host: DiffusersHost, cost: Cost) -> Iterator[None]:
    """Note what the work inside costs."""
    begun = time.perf_counter()
    with count_rows(host.unet) as rows:
        yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    cost.rows, cost.seconds = sum(rows), time.perf_counter() - begun


def described(bench: Bench, files: dict[str, str]) -> dict[str, Any]:
    """What the figures are made with."""
    return {
        **files,
        "rival": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU",
        "dtype": str(bench.pipeline.unet.dtype).removeprefix("torch."),
        "seeds": list(bench.seeds),
        "steps": bench.steps,
        "cfg": bench.cfg,
        "denoise": bench.denoise,
        "sampler": bench.sampler,
        "arms": ARMS,
    }


def measure(bench: Bench, judges: Judges, sources: Mapping[Path, str], run: dict[str, Any], out: Path) -> None:
    """Every arm on every photo. The figures are written after each photo, so that a run that ends early has some."""
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    sheet: dict[str, list[Image.Image]] = {}
    with tqdm(total=len(sources) * len(ARMS) * len(bench.seeds), unit="image") as bar:
        for number, (file, prompt) in enumerate(sources.items(), start=1):
            photo = bench.photo(file, prompt)
            if number == 1:
                bench.warm_up(photo)
            made = {}
            for arm, fields in ARMS.items():
                bar.set_description(f"{photo.name}, {arm}")
                made[arm] = bench.make(photo, fields, bar.update)
            target = vae_reconstruction(bench.host(photo, parse_settings({})))
            figures[photo.name] = {
                "prompt": prompt,
                "size": photo.image.size,
                "arms": {arm: of_arm(bench, judges, photo, target, one) for arm, one in made.items()},
            }
            # long names that begin alike are cut to the same, so each has a number
            shown = [photo.image, *(one.images[0] for one in made.values())]
            sheet[f"{number} {file.stem[:LONGEST_NAME]}"] = [cell(image) for image in shown]
            result = {**run, "means": mean_figures(figures, list(ARMS)), "photos": figures}
            (out / "quality.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "quality.md").write_text(page(result))
    labelled_grid(["photo", *ARMS], sheet).save(out / "quality.png", optimize=True)


def of_arm(bench: Bench, judges: Judges, photo: Photo, target: Image.Image, made: Made) -> dict[str, Any]:
    """All figures of one arm on one photo: of each image, and their means with those that the images share."""
    images = judges.figures(photo, target, made)
    means = {key: mean(image[key] for image in images) for key in images[0]}
    inversion = {f"inversion_{key}": value for key, value in vars(made.inversion).items()}
    return {
        "images": [{"seed": seed, **image} for seed, image in zip(bench.seeds, images, strict=True)],
        "means": means | judges.diversity(made.images) | inversion,
    }


def cell(image: Image.Image) -> Image.Image:
    """An image of any shape in a square of the contact sheet."""
    return ImageOps.pad(image, (CELL, CELL), color="white")


if __name__ == "__main__":
    main()
