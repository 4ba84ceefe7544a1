"""Is the object in an image whole, or did it fall to pieces? A figure for it, checked against judgements by eye.

    python benchmarks/wholeness.py

makes the judged images again, measures them, and writes wholeness.md and wholeness.png beside this file; ten minutes
on two cores. The other benchmarks use

    surprises(pipeline, images, "a ghost")

The demo model has learned whole drawings. Give it an image with a little noise, and it predicts this noise well if the
image is such a drawing, and badly where an outline is torn or a surface is shattered. The error is the surprise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from textwrap import fill

import click
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from exemplars import STEPS, Exemplar, make_host, markdown_table, read_exemplars
from PIL import Image, ImageDraw
from scipy.stats import rankdata
from tqdm import tqdm

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline, quieten_libraries
from rival_ext.hosts.diffusers import DiffusersHost
from rival_ext.method.alignment import channel_statistics
from rival_ext.method.prepare import prepare
from rival_ext.settings import PAPER, parse_settings
from rival_ext.storage.store import ChainStore

TIMESTEP = 150
"""So little noise that the layout is plain to see, so much that the model has to know what an outline looks like."""

NOISES = 4
"""The surprise is the mean over so many noises, the same for every image."""

WHOLE_BELOW = 0.49
"""An object counts as whole if the surprise with its prompt is below. Most judgements agree (wholeness.md)."""

WHOLE_BELOW_UNPROMPTED = 0.54
"""The same for the surprise with the empty prompt, which is a little greater."""

JUDGEMENTS = Path(__file__).with_suffix(".json")
SEEDS = (11, 12)
ARMS = ("plain", "permuted", "permuted, share 0", "loosely matched", "loosely matched, share 0", "plain noise")
"""The ways in which the judged images were made. "Share 0" hides the exemplar from the rows with the negative prompt.
The last three start from fresh noise without the exact statistics that the alignment needs, which breaks images."""


def is_whole(surprise: float, prompt: str) -> bool:
    """Whether an object counts as whole by its surprise with this prompt."""
    return surprise < (WHOLE_BELOW if prompt else WHOLE_BELOW_UNPROMPTED)


@torch.no_grad()
def surprises(pipeline: StableDiffusionPipeline, images: Sequence[Image.Image], prompt: str) -> list[float]:
    """How badly the model predicts a little noise that is added to each image, relative to the image's own contrast.

    Args:
        pipeline: The demo model.
        images: Images of one size.
        prompt: What they should show.

    Returns:
        For each image the RMS error of the noise prediction, divided by the standard deviation of its latent.
    """
    pixels = VaeImageProcessor().preprocess(list(images)).to(pipeline.vae.dtype)
    latents = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    prompts = pipeline.encode_prompt([prompt], latents.device, 1, False)[0].expand(len(latents), -1, -1)
    alpha = pipeline.scheduler.alphas_cumprod[TIMESTEP]
    noises = torch.randn(NOISES, *latents.shape[1:], generator=torch.Generator().manual_seed(0))
    errors = []
    for noise in noises:
        noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        predicted = pipeline.unet(noised, TIMESTEP, prompts, return_dict=False)[0]
        errors.append((predicted - noise).square().mean(dim=(1, 2, 3)).sqrt())
    return (torch.stack(errors).mean(dim=0) / latents.std(dim=(1, 2, 3))).tolist()


@dataclass(frozen=True)
class Judgement:
    """What an eye said of one image, and how it is made again."""

    exemplar: str
    prompt: str
    arm: str
    seed: int
    whole: bool


@dataclass(frozen=True)
class Measured:
    """A judged image and its surprise, with the prompt and with the empty one."""

    judgement: Judgement
    image: Image.Image
    surprise: float
    unprompted: float


def read_judgements() -> list[Judgement]:
    """All judgements, in the order in which they were made."""
    return [Judgement(**entry) for entry in json.loads(JUDGEMENTS.read_text())]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=JUDGEMENTS.parent, help="Folder; default: benchmarks.")
@click.option("--steps", type=click.IntRange(2), default=STEPS, show_default=True, help="Sampling steps.")
@click.option("--exemplars", "most", type=click.IntRange(2), default=99, help="The most exemplars.")
def main(out: Path, steps: int, most: int) -> None:
    """Measures the judged images and writes how well the measure agrees with the judgements."""
    quieten_libraries()
    # evaluations this small gain nothing from a second thread, and wait for it on a busy machine
    torch.set_num_threads(1)
    pipeline = load_pipeline(DEMO_CHECKPOINT)
    exemplars = read_exemplars()
    judgements = read_judgements()
    # every second exemplar is in the first half, and the images of an exemplar are all in the same half
    names = list(exemplars)[:most]
    measured = [
        one
        for name in tqdm(names, unit="exemplar")
        for one in measure(pipeline, exemplars[name], [one for one in judgements if one.exemplar == name], steps)
    ]
    first = [one for one in measured if names.index(one.judgement.exemplar) % 2 == 0]
    second = [one for one in measured if names.index(one.judgement.exemplar) % 2]
    out.mkdir(parents=True, exist_ok=True)
    (out / "wholeness.md").write_text(page(first, second))
    sheet(measured).save(out / "wholeness.png", optimize=True)


def measure(
    pipeline: StableDiffusionPipeline, exemplar: Exemplar, judgements: Sequence[Judgement], steps: int
) -> list[Measured]:
    """Make an exemplar's judged images again and measure them."""
    store = ChainStore()
    measured = []
    for arm in dict.fromkeys(judgement.arm for judgement in judgements):
        of_arm = [judgement for judgement in judgements if judgement.arm == arm]
        host = make_host(pipeline, exemplar, of_arm[0].prompt, steps=steps)
        made = dict(zip(SEEDS, generate(host, arm, store), strict=True))
        images = [made[one.seed] for one in of_arm]
        found = (surprises(pipeline, images, prompt) for prompt in (of_arm[0].prompt, ""))
        measured += [Measured(*one) for one in zip(of_arm, images, *found, strict=True)]
    return measured


def generate(host: DiffusersHost, arm: str, store: ChainStore) -> list[Image.Image]:
    """The images of an arm, one for each seed."""
    if arm == "plain":
        return host.decode(host.sample(host.start(SEEDS, None), SEEDS, None, lambda done, total: None))
    share = 0.0 if arm.endswith("share 0") else 1.0
    settings = parse_settings(PAPER | {"uncond_share": share})
    guide = prepare(host, settings, store).guide
    start = host.start(SEEDS, guide)
    if arm.startswith("loosely"):
        mean, deviation = channel_statistics(guide.exemplars[0].chain.top)
        start = host.noise(SEEDS) * deviation + mean
    elif arm == "plain noise":
        start = host.start(SEEDS, None)
    return host.decode(host.sample(start, SEEDS, guide, lambda done, total: None))


def area_under_curve(measured: Sequence[Measured]) -> float:
    """How often, of a broken and a whole image, the broken one has the greater surprise."""
    broken = np.array([not one.judgement.whole for one in measured])
    if broken.all() or not broken.any():
        return float("nan")
    ranks = rankdata([one.surprise for one in measured])
    below = ranks[broken].sum() - broken.sum() * (broken.sum() + 1) / 2
    return float(below / (broken.sum() * (~broken).sum()))


def accuracy(measured: Sequence[Measured], threshold: float) -> float:
    """How often the threshold says what the eye said."""
    return float(np.mean([(one.surprise < threshold) == one.judgement.whole for one in measured]))


def best_threshold(measured: Sequence[Measured]) -> float:
    """The threshold with the most agreement, in the middle between two surprises."""
    surprise = np.sort([one.surprise for one in measured])
    return float(max((surprise[1:] + surprise[:-1]) / 2, key=lambda between: accuracy(measured, between)))


def page(first: Sequence[Measured], second: Sequence[Measured]) -> str:
    """wholeness.md."""
    measured = [*first, *second]
    unprompted = [replace(one, surprise=one.unprompted) for one in measured]
    return PAGE.substitute(
        images=len(measured),
        broken=sum(not one.judgement.whole for one in measured),
        exemplars=len({one.judgement.exemplar for one in measured}),
        timestep=TIMESTEP,
        noises=NOISES,
        threshold=f"{WHOLE_BELOW:g}",
        agreement=markdown_table(
            [
                "threshold chosen on",
                "threshold",
                "reported on",
                "images",
                "broken",
                "agreement",
                "area under the curve",
            ],
            [
                agreement_row("first half", first, "second half", second),
                agreement_row("second half", second, "first half", first),
            ],
        ),
        arms=markdown_table(
            ["images", "whole by eye", "whole by the measure", "agreement"],
            [arm_row(arm, [one for one in measured if one.judgement.arm == arm]) for arm in ARMS],
        ),
        unprompted_threshold=f"{WHOLE_BELOW_UNPROMPTED:g}",
        unprompted=f"{accuracy(unprompted, WHOLE_BELOW_UNPROMPTED):.0%}",
        missed=listed([one for one in measured if not one.judgement.whole and one.surprise < WHOLE_BELOW]),
        accused=listed([one for one in measured if one.judgement.whole and one.surprise >= WHOLE_BELOW]),
    )


def agreement_row(
    chosen_on: str, chosen: Sequence[Measured], reported_on: str, reported: Sequence[Measured]
) -> list[str]:
    """A row of the table of agreement."""
    threshold = best_threshold(chosen)
    return [
        chosen_on,
        f"{threshold:.2f}",
        reported_on,
        str(len(reported)),
        str(sum(not one.judgement.whole for one in reported)),
        f"{accuracy(reported, threshold):.0%}",
        f"{area_under_curve(reported):.2f}",
    ]


def arm_row(arm: str, measured: Sequence[Measured]) -> list[str]:
    """A row of the table of arms."""
    if not measured:
        return [arm, "none", "none", "none"]
    count = len(measured)
    return [
        arm,
        f"{sum(one.judgement.whole for one in measured)} of {count}",
        f"{sum(one.surprise < WHOLE_BELOW for one in measured)} of {count}",
        f"{accuracy(measured, WHOLE_BELOW):.0%}",
    ]


def listed(measured: Sequence[Measured]) -> str:
    """Prompts, arms and surprises in one sentence."""
    shown = (f"{one.judgement.prompt} ({one.judgement.arm}, {one.surprise:.2f})" for one in measured)
    return fill("; ".join(shown) or "none", 118, subsequent_indent="  ", break_on_hyphens=False)


def sheet(measured: Sequence[Measured]) -> Image.Image:
    """wholeness.png: every judged image by its surprise, with a red frame around those that an eye called broken."""
    columns, side, frame = 14, 64, 3
    rows = -(-len(measured) // columns)
    cell = side + 2 * frame
    picture = Image.new("RGB", (columns * cell, rows * cell), "white")
    draw = ImageDraw.Draw(picture)
    for place, one in enumerate(sorted(measured, key=lambda one: one.surprise)):
        x, y = place % columns * cell, place // columns * cell
        colour = "white" if one.judgement.whole else "red"
        draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)
        picture.paste(one.image.resize((side, side), Image.Resampling.LANCZOS), (x + frame, y + frame))
    return picture.quantize(128)


PAGE = Template("""\
# Whole or broken

The palette says nothing about shapes: an image in the right colours may show a ghost in pieces. `wholeness.py` gives
a figure for that, the **surprise**. It adds a little noise to the image (timestep $timestep of 1000), asks the demo
model for this noise, with the prompt, and takes the RMS error of the answer divided by the standard deviation of the
image's latent, mean over $noises noises. The model has learned whole drawings with clean outlines. So it is surprised
by torn outlines, shattered surfaces and confetti. An image counts as **whole** if its surprise is below $threshold.

![All judged images, from the least surprise to the greatest](wholeness.png)

The images are in the order of their surprise. A red frame means that the eye called the image broken.

## How it was checked

One person looked at $images images of $exemplars exemplars, in random order, with the prompt but without arm, exemplar
and figure beside them, and called each whole or broken before anything was measured. *Broken* is an object that fell
apart into pieces of some size, whose outline is torn, or that is smeared or shattered until the thing is hard to see.
A wrong colour, a strange face, another thing than the prompt's in one piece, or a dot beside the object is not broken.
$broken images were called broken. The judgements are in [wholeness.json](wholeness.json), each with the exemplar,
prompt, arm and seed that make the image again.

The halves have different exemplars. The area under the curve says how often a broken image has a greater surprise than
a whole one: 1 is always, 0.5 is chance.

$agreement

The threshold of the other benchmarks, $threshold, on all images:

$arms

"Share 0" hides the exemplar from the rows with the negative prompt (`uncond_share`). "Loosely matched" is fresh noise
with the exemplar's statistics on average and not exactly, "plain noise" has none of them; the alignment then works
against the start. These arms are here because they break many images, not because anybody should use them.

Images that were made without a prompt are measured with the empty prompt, which surprises the model a little more. The
threshold is then $unprompted_threshold; on the same images it agrees with $unprompted of the judgements.

- Broken, and not noticed:
  $missed.
- Whole, but accused:
  $accused.

So the measure notices torn, smeared and shattered things. It does not notice a clean drawing in two clean pieces, such
as a duck whose head floats above its body. It is a figure for many images, not a verdict on one. Counting the pieces
of the foreground, the length of outlines, the number of areas of one colour and the classifier's confidence were tried
too; each agrees less with the eye (area under the curve 0.6 to 0.8), and none adds to the surprise.

`python benchmarks/wholeness.py` wrote this page.
""")

if __name__ == "__main__":
    main()
