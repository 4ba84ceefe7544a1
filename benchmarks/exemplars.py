"""What the pages about the small demo model share: its held-out exemplars, the way it is sampled, tables.

Imported before `rival_ext`, which Python finds from here on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import StableDiffusionPipeline
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# the project is run from its checkout and not installed, so Python finds only this file's own folder
sys.path.insert(0, str(ROOT))

from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages  # noqa: E402

FOLDER = ROOT / "tests" / "data" / "exemplars"
HELD_OUT_FOLDER = ROOT / "tests" / "data" / "held_out"
"""Exemplars on which nothing is tuned. The model knows the subject of each."""

STEPS = 20
GUIDANCE = 5.0

SUBJECTS = {
    "fox-noto-white": "a dog face",
    "penguin-twemoji-white": "a duck",
    "tulip-fluent-white": "a rose",
    "lemon-noto-blue": "a tangerine",
    "tomato-twemoji-white": "a red apple",
    "cupcake-noto-white": "an ice cream",
    "taxi-twemoji-green": "an automobile",
    "rocket-flat-white": "a balloon",
    "trophy-noto-pink": "a crown",
    "basketball-twemoji-white": "a soccer ball",
    "guitar-fluent-white": "a musical note",
    "blue-heart-noto-white": "a purple heart",
    "mushroom-emojione-white": "a ghost",
    "bell-emojione-gray": "a butterfly",
}
"""What is asked for if the exemplar shows a thing that the model has never seen: it could not draw that."""


@dataclass(frozen=True)
class Exemplar:
    """An image that the model was not trained on.

    `caption` says in full what it shows, `concept` without style and background.
    """

    name: str
    caption: str
    concept: str
    known: bool
    image: Image.Image


def read_exemplars(folder: Path = FOLDER) -> dict[str, Exemplar]:
    """The images of a folder by name."""
    entries = json.loads((folder / "captions.json").read_text())
    exemplars = [
        Exemplar(
            Path(entry["file"]).stem,
            entry["caption"],
            entry["caption_plain"],
            entry["concept_seen_by_unet"],
            Image.open(folder / entry["file"]).convert("RGB"),
        )
        for entry in entries
    ]
    return {exemplar.name: exemplar for exemplar in exemplars}


def make_host(
    pipeline: StableDiffusionPipeline,
    exemplar: Exemplar,
    prompt: str = "",
    exemplar_prompt: str = "",
    steps: int = STEPS,
) -> DiffusersHost:
    """The embedded host for one exemplar."""
    request = Request(prompt, exemplar_prompt, GUIDANCE, "ddim", steps)
    return DiffusersHost(pipeline, request, RequestImages.of(exemplar.image), lambda done, total: None)


def vae_reconstruction(host: DiffusersHost) -> Image.Image:
    """The exemplar encoded and decoded: what the model could give back at best."""
    return host.decode(host.exemplar_latent())[0]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
