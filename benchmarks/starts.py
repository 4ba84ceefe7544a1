"""Which start, which share, which strength? Writes docs/starts.md and its contact sheets.

    python benchmarks/starts.py --json FILE
    python benchmarks/starts.py starts --json FILE

measures all sections, or those that are named, on the small demo model; half an hour on two cores. The figures are
kept in FILE, and the page is made from all that FILE holds. Needs scipy and scikit-image beside what the command line
needs.

The settings were chosen on TUNING. The page shows HELD_OUT, with which nothing was chosen.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import click
import numpy as np
import torch
from concepts import PROMPTS, Classifier, load_classifier
from diffusers import StableDiffusionPipeline
from effect import Palette, labelled_grid, palette, palette_distance
from exactness import rms, similarity
from exemplars import GUIDANCE, HELD_OUT_FOLDER, ROOT, STEPS, SUBJECTS, Exemplar, read_exemplars
from PIL import Image
from scipy.ndimage import gaussian_filter
from starts_page import starts_page
from tqdm import tqdm
from wholeness import surprises

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline, quieten_libraries
from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.method.prepare import prepare
from rival_ext.settings import PAPER, parse_settings
from rival_ext.storage.store import ChainStore

TUNING = (
    "house-emojione-blue",
    "pizza-emojione-yellow",
    "octopus-emojione-white",
    "panda-emojione-white",
    "lemon-noto-blue",
    "taxi-twemoji-green",
    "tulip-fluent-white",
    "penguin-twemoji-white",
    "guitar-fluent-white",
    "blue-heart-noto-white",
    "rocket-flat-white",
    "cupcake-noto-white",
    "bus-emojione-pink",
    "red-heart-emojione-purple",
    "grinning-face-emojione-white",
    "cat-face-emojione-white",
    "red-apple-emojione-white",
    "trophy-noto-pink",
    "bell-emojione-gray",
    "fox-noto-white",
    "tomato-twemoji-white",
    "basketball-twemoji-white",
    "mushroom-emojione-white",
)
HELD_OUT = (
    "fire-emojione-white",
    "smiling-face-with-horns-emojione-pink",
    "doughnut-emojione-white",
    "maple-leaf-emojione-blue",
    "french-fries-emojione-white",
    "lion-emojione-purple",
    "eggplant-emojione-yellow",
    "beer-mug-emojione-gray",
    "sunflower-emojione-white",
    "baseball-emojione-orange",
    "camera-emojione-white",
    "bomb-emojione-white",
    "hot-beverage-emojione-green",
    "watermelon-emojione-white",
    "cherries-emojione-white",
    "frog-emojione-pink",
)

PLAIN, AUTHORS, NEW = "plain", "paper", "default"
SIDE = 96
"""Pixels of a picture in a contact sheet."""

SHARES = (1.0, 0.75, 0.5, 0.0)
STRENGTHS = (0.5, 0.65, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Arm:
    """One way of making images.

    Attributes:
        fields: Settings of RIVAL; None is plain generation.
        prompt: "subject", "caption" or "empty".
        guidance: The guidance scale.
        sampler: A sampler of the command line.
        steps: Sampling steps, as a multiple of the usual number.
        denoise: The denoising strength.
        described: Whether the exemplar is inverted with its caption.
    """

    fields: dict[str, Any] | None
    prompt: str = "subject"
    guidance: float = GUIDANCE
    sampler: str = "ddim"
    steps: float = 1.0
    denoise: float = 1.0
    described: bool = False


NEW_FIELDS = {"start": "matched", "uncond_share": 0.5, "alignment": "latent", "t_align": 800, "t_early": 600}
PAPER_FIELDS = NEW_FIELDS | PAPER


def changed(**fields: Any) -> Arm:
    """The default with other settings."""
    return Arm(NEW_FIELDS | fields)


def compared(title: str, **choices: Any) -> dict[str, Arm]:
    """Plain generation, the paper's form and the default under the same circumstances."""
    forms = {PLAIN: None, AUTHORS: PAPER_FIELDS, NEW: NEW_FIELDS}
    return {f"{title}, {form}": Arm(fields, **choices) for form, fields in forms.items()}


SECTIONS: dict[str, dict[str, Arm]] = {
    "starts": {PLAIN: Arm(None), AUTHORS: Arm(PAPER_FIELDS)}
    | {
        f"{form}, share {share:g}": changed(start=form, uncond_share=share)
        for form in ("permuted", "matched")
        for share in SHARES
    },
    "alignment": {
        PLAIN: Arm(None),
        NEW: changed(),
        "alignment noise": changed(alignment="noise"),
        "alignment noise, t_align 600": changed(alignment="noise", t_align=600),
        "alignment off": changed(alignment="off"),
        "t_align 600": changed(t_align=600),
        "t_align 1000": changed(t_align=1000),
        "t_early 300": changed(t_early=300),
        "t_early 800": changed(t_early=800),
    },
    "chain": {
        PLAIN: Arm(None),
        "paper, inverted": Arm(PAPER_FIELDS),
        "paper, noised": Arm(PAPER_FIELDS | {"chain": "noised"}),
        "default, inverted": changed(),
        "default, noised": changed(chain="noised"),
        "default, each level": changed(inversion_nodes="all", feature_nodes="all"),
    },
    "prompts": compared("caption", prompt="caption") | compared("empty", prompt="empty"),
    "guidance": compared("guidance 3", guidance=3.0) | compared("guidance 7", guidance=7.0),
    "steps": compared("8 steps", steps=0.4) | compared("50 steps", steps=2.5),
    "samplers": compared("euler-a", sampler="euler-a") | compared("dpm++2m-karras", sampler="dpm++2m-karras"),
    "noprompt": {
        f"{title}, {strength:g}": Arm(fields, prompt="empty", denoise=strength)
        for title, fields in {PLAIN: None, "share 1": NEW_FIELDS | {"uncond_share": 1.0}, NEW: NEW_FIELDS}.items()
        for strength in STRENGTHS
    }
    | {
        f"described, {strength:g}": Arm(NEW_FIELDS, prompt="empty", denoise=strength, described=True)
        for strength in (0.65, 0.8)
    },
}

PICTURED = {
    "starts": (PLAIN, AUTHORS, *(f"matched, share {share:g}" for share in SHARES)),
    "noprompt": ("plain, 0.65", "plain, 0.8", *(f"default, {strength:g}" for strength in STRENGTHS)),
}
"""The columns of each contact sheet, beside the photo."""

Record = dict[str, Any]
"""The figures of one image: section, arm, exemplar, seed, and each of the measures."""


@dataclass
class Judge:
    """Measures images against an exemplar."""

    pipeline: StableDiffusionPipeline
    classifier: Classifier = field(default_factory=load_classifier)

    def records(self, images: Sequence[Image.Image], subject: str, asked: str, target: Target) -> list[Record]:
        """The figures of images of one exemplar, which differ in their seeds alone; asked: the prompt, or nothing."""
        probabilities = self.classifier.probabilities(images)
        concept = PROMPTS.index(subject)
        surprise = surprises(self.pipeline, images, asked)
        diversity = mean(rms(one, other) for one, other in combinations(images, 2)) if len(images) > 1 else 0.0
        return [
            {
                "asked": asked,
                "palette": palette_distance(palette(image), target.palette),
                "probability": float(probability[concept]),
                "top1": int(probability.argmax() == concept),
                "kept": int(probability.argmax() == target.concept),
                "surprise": surprise[index],
                "roughness": roughness(image),
                "diversity": diversity,
                "ssim": similarity(image, target.image),
                "rms": rms(image, target.image),
            }
            for index, (image, probability) in enumerate(zip(images, probabilities, strict=True))
        ]

    def target(self, host: DiffusersHost) -> Target:
        """The exemplar as the VAE gives it back."""
        image = host.decode(host.exemplar_latent())[0]
        return Target(image, palette(image), int(self.classifier.probabilities([image]).argmax()))


@dataclass(frozen=True)
class Target:
    """An exemplar to compare with: the image, its palette, and the concept that the classifier sees in it."""

    image: Image.Image
    palette: Palette
    concept: int


@click.command()
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
@click.option("--json", "kept", type=click.Path(path_type=Path), help="Figures that are kept between runs.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs", help="Folder to write; default: docs.")
@click.option("--steps", type=click.IntRange(2), default=STEPS, show_default=True, help="Sampling steps.")
@click.option("--exemplars", "most", type=click.IntRange(1), default=99, help="The most exemplars.")
@click.option("--seeds", type=click.IntRange(1), default=4, show_default=True, help="Seeds of each image.")
@click.option("--tuning", is_flag=True, help="Measure the exemplars on which settings are chosen.")
def main(
    sections: Sequence[str], kept: Path | None, out: Path, steps: int, most: int, seeds: int, tuning: bool
) -> None:
    """Measures the named SECTIONS, or all, and writes the page and its contact sheets."""
    quieten_libraries()
    # evaluations this small gain nothing from a second thread, and wait for it on a busy machine
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    exemplars = read_exemplars() if tuning else read_exemplars(HELD_OUT_FOLDER)
    names = (TUNING if tuning else HELD_OUT)[:most]
    records = json.loads(kept.read_text()) if kept and kept.exists() else []
    studio = Laboratory(load_pipeline(DEMO_CHECKPOINT), steps, range(1, seeds + 1))
    for section in sections or SECTIONS:
        records = [record for record in records if record["section"] != section]
        rows = {}
        for name in tqdm(names, section, unit="exemplar"):
            found, made = studio.measure(section, exemplars[name])
            records += found
            pictures = (
                image.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for image in (exemplars[name].image, *made)
            )
            rows[re.sub("^an? ", "", exemplars[name].concept)] = list(pictures)
        if section in PICTURED:
            sheet = labelled_grid(["photo", *(title.replace(", share", "") for title in PICTURED[section])], rows)
            sheet.save(out / f"starts-{section}.png", optimize=True)
        if kept:
            kept.write_text(json.dumps(records))
    (out / "starts.md").write_text(starts_page(records, steps))


@dataclass
class Laboratory:
    """Makes the images of every arm and measures them; an exemplar is inverted once for each set of noise levels."""

    pipeline: StableDiffusionPipeline
    steps: int
    seeds: Sequence[int]
    stores: dict[tuple[str, int, float], ChainStore] = field(default_factory=dict)
    done: dict[str, tuple[list[Image.Image], list[Record]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.judge = Judge(self.pipeline)

    def measure(self, section: str, exemplar: Exemplar) -> tuple[list[Record], list[Image.Image]]:
        """Records of all arms of a section, and the pictured arms' images of the first seed."""
        subject = SUBJECTS.get(exemplar.name, exemplar.concept)
        target = self.judge.target(self.host(exemplar, subject, Arm(None)))
        records, pictured = [], {}
        for title, arm in SECTIONS[section].items():
            made, figures = self.made(exemplar, arm, subject, target)
            pictured[title] = made[0]
            for seed, figure in zip(self.seeds, figures, strict=True):
                records.append({"section": section, "arm": title, "exemplar": exemplar.name, "seed": seed, **figure})
        return records, [pictured[title] for title in PICTURED.get(section, ())]

    def made(
        self, exemplar: Exemplar, arm: Arm, subject: str, target: Target
    ) -> tuple[list[Image.Image], list[Record]]:
        """The images of an arm and their figures; an arm that several sections show is made once."""
        key = f"{exemplar.name} {arm}"
        if key not in self.done:
            prompt = {"subject": subject, "caption": exemplar.caption, "empty": ""}[arm.prompt]
            images, seconds = self.images(self.host(exemplar, prompt, arm), arm)
            figures = self.judge.records(images, subject, prompt and subject, target)
            self.done[key] = images, [{**figure, "seconds": seconds / len(images)} for figure in figures]
        return self.done[key]

    def host(self, exemplar: Exemplar, prompt: str, arm: Arm) -> DiffusersHost:
        """The embedded host for an arm."""
        described = exemplar.caption if arm.described else ""
        steps = max(2, round(self.steps * arm.steps))
        request = Request(prompt, described, arm.guidance, arm.sampler, steps, denoise=arm.denoise)
        return DiffusersHost(self.pipeline, request, RequestImages.of(exemplar.image), lambda done, total: None)

    def images(self, host: DiffusersHost, arm: Arm) -> tuple[list[Image.Image], float]:
        """An image for each seed, sampled in one batch, and the processor's seconds for the sampling."""
        described = {"exemplar_prompt": host.request.exemplar_prompt} if arm.described else {}
        # a chain of another sampler would serve as well, and the order of the arms would then decide on the images
        levels = (arm.sampler, host.steps, arm.denoise)
        store = self.stores.setdefault(levels, ChainStore())
        guide = arm.fields and prepare(host, parse_settings(arm.fields | described), store).guide
        begun = time.process_time()
        latents = host.sample(
            host.start(self.seeds, guide or None), self.seeds, guide or None, lambda done, total: None
        )
        seconds = time.process_time() - begun
        return host.decode(latents), seconds


def roughness(image: Image.Image) -> float:
    """Root mean square of what a Gaussian of one pixel takes away from the grey image, of 255."""
    grey = np.asarray(image, dtype=float).mean(axis=2)
    return float(np.sqrt(np.square(grey - gaussian_filter(grey, 1)).mean()))


if __name__ == "__main__":
    main()
