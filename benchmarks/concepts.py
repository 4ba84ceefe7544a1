"""Which concept does a picture show? A small classifier, trained on the artwork that the demo model was trained on.

    python benchmarks/concepts.py FOLDER

trains it anew from FOLDER/<vendor>/<concept>.png (transparent artwork) and writes concepts.safetensors and concepts.md,
the card, beside this file; a quarter of an hour on two cores. Used by the other benchmarks, which want to know whether
what the prompt asked for has appeared:

    load_classifier().probabilities(images)[:, CONCEPTS.index("red apple")]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from textwrap import fill

import click
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm, trange

ROOT = Path(__file__).resolve().parents[1]
# the project is run from its checkout and not installed, so Python finds only this file's own folder
sys.path.insert(0, str(ROOT))

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline, quieten_libraries  # noqa: E402
from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages  # noqa: E402

WEIGHTS = Path(__file__).with_suffix(".safetensors")
CARD = Path(__file__).with_suffix(".md")

PROMPTS = re.split(
    r",\s+",
    """a grinning face, a winking face, a smiling face with heart-eyes, a face with tears of joy,
    a smiling face with sunglasses, a crying face, an enraged face, a smiling face with horns, a skull, a pile of poo,
    a ghost, a robot, a red heart, an orange heart, a yellow heart, a green heart, a purple heart, a black heart,
    a broken heart, a monkey face, a dog face, a cat face, a lion, a cow face, a pig face, a rabbit face, a bear,
    a koala, a panda, an elephant, a baby chick, a frog, a turtle, a spouting whale, a fish, an octopus, a crab,
    a butterfly, a honeybee, a lady beetle, a duck, a cherry blossom, a rose, a sunflower, an evergreen tree,
    a palm tree, a cactus, a four leaf clover, a maple leaf, grapes, a watermelon, a tangerine, a banana, a pineapple,
    a red apple, a green apple, a pear, cherries, a strawberry, an avocado, an eggplant, a carrot, an ear of corn,
    a broccoli, a hamburger, french fries, a pizza, an ice cream, a doughnut, a birthday cake, a hot beverage,
    a beer mug, a globe, a house, a bus, an automobile, a delivery truck, a stop sign, an anchor, an alarm clock,
    a crescent moon, a full moon, a sun, a ringed planet, a star, a cloud, a rainbow, a high voltage, a snowflake,
    a snowman, fire, a droplet, a jack-o-lantern, a christmas tree, a balloon, a wrapped gift, a soccer ball,
    a baseball, a volleyball, a bullseye, a pool 8 ball, a game die, a spade suit, a diamond suit, a club suit,
    sunglasses, a t-shirt, a dress, a crown, a sun hat, a ring, a musical note, a mobile phone, a camera, a green book,
    a blue book, a money bag, an envelope, a locked, a bomb, a shield""",
)
"""The prompts that the demo model knows, in the order of its card."""

CONCEPTS = [re.sub("^an? ", "", prompt) for prompt in PROMPTS]
"""The classes, in order: the prompts without their articles."""

SIDE = 128
VENDORS = ("noto", "twemoji", "fluent-emoji-flat", "fluent-emoji", "fxemoji")
HELD_OUT_VENDOR = "emojione"
BACKGROUNDS = torch.tensor(
    [
        (255, 255, 255),  # white
        (205, 205, 205),  # gray
        (255, 200, 212),  # pink
        (253, 230, 150),  # yellow
        (196, 240, 203),  # green
        (175, 206, 250),  # blue
        (220, 195, 245),  # purple
        (250, 210, 165),  # orange
        (35, 32, 34),  # black
    ]
).div(255)

STEPS = 1300
BATCH = 64
LEARNING_RATE = 4e-3
VAE_VIEWS = 1
VAE_BATCH = 16
LATENT_NOISE = 0.3
MEASURED_VIEWS = 2

SEEDS = (1, 2)
GUIDANCE = 5.0
SAMPLER_STEPS = 20


class Classifier(nn.Module):
    """Five convolutions, then the mean over what is left of the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(3, 32, stride=2, size=5),
            *_convolution(32, 64, stride=2),
            *_convolution(64, 96),
            *_convolution(96, 128, stride=2),
            *_convolution(128, 128),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128, len(CONCEPTS)),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits `[N, classes]` of pictures `[N, 3, 64, 64]` in 0..1."""
        logits: Tensor = self.layers(pictures * 2 - 1)
        return logits

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> Tensor:
        """How likely each image shows each of CONCEPTS, `[N, classes]`: the mean of the image and its mirror image."""
        return self.scores(torch.stack([_to_tensor(image.convert("RGB").resize((SIDE, SIDE))) for image in images]))

    @torch.no_grad()
    def scores(self, pictures: Tensor) -> Tensor:
        """The same of pictures `[N, 3, 128, 128]` in 0..1."""
        small = _halved(pictures)
        return torch.stack([self(view).softmax(dim=1) for view in (small, small.flip(-1))]).mean(dim=0)


def load_classifier(weights: Path = WEIGHTS) -> Classifier:
    """The trained classifier."""
    classifier = Classifier()
    classifier.load_state_dict(load_file(weights))
    return classifier.eval()


@dataclass(frozen=True)
class Artwork:
    """Drawings `[N, 4, 128, 128]`, premultiplied RGBA in 0..1 that fills the square, and the index of each concept."""

    drawings: Tensor
    concepts: Tensor

    def on_backgrounds(self, indices: Tensor) -> Tensor:
        """Pictures of the chosen drawings, each somewhere on a plain background of one of the named colours."""
        placed = _moved(self.drawings[indices], scale=(0.75, 0.95), shift=0.1)
        colours = BACKGROUNDS[torch.randint(len(BACKGROUNDS), (len(placed),))] + 0.06 * torch.randn(len(placed), 3)
        return placed[:, :3] + (1 - placed[:, 3:]) * colours.clamp(0, 1)[:, :, None, None]


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--measure-only", is_flag=True, help="Keep the weights, renew the card.")
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS.parent, help="Folder to write; default: here.")
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True, help="Training steps.")
@click.option("--prompts", type=click.IntRange(1), default=len(PROMPTS), show_default=True, help="Prompts to measure.")
@click.option("--sampler-steps", type=click.IntRange(2), default=SAMPLER_STEPS, show_default=True)
def main(folder: Path, measure_only: bool, out: Path, steps: int, prompts: int, sampler_steps: int) -> None:
    """Trains the classifier on FOLDER/<vendor>/<concept>.png and writes its weights and its card."""
    quieten_libraries()
    torch.manual_seed(0)
    pipeline = load_pipeline(DEMO_CHECKPOINT)
    artwork = read_artwork(folder, VENDORS)
    weights = out / WEIGHTS.name
    if not measure_only:
        classifier = train(artwork, pipeline.vae, steps)
        save_file({name: tensor.half() for name, tensor in classifier.state_dict().items()}, weights)
    held_out = read_artwork(folder, [HELD_OUT_VENDOR])
    measured = measure(load_classifier(weights), pipeline, held_out, PROMPTS[:prompts], sampler_steps)
    (out / CARD.name).write_text(card(measured, steps, artwork, held_out, sampler_steps))


def read_artwork(folder: Path, vendors: Sequence[str]) -> Artwork:
    """All drawings of some vendors; a vendor that lacks a concept is left out for it."""
    files = [
        (folder / vendor / f"{_slug(name)}.png", index) for vendor in vendors for index, name in enumerate(CONCEPTS)
    ]
    found = [(file, index) for file, index in files if file.exists()]
    if not found:
        raise click.ClickException(f"{folder} has no pictures such as {files[0][0].relative_to(folder)}.")
    drawings = torch.stack([_read_drawing(file) for file, _ in found])
    return Artwork(drawings, torch.tensor([index for _, index in found]))


def train(artwork: Artwork, vae: AutoencoderKL, steps: int) -> Classifier:
    """A classifier that has seen the artwork on backgrounds, half of it as the demo model's VAE gives it back."""
    repeated = torch.arange(len(artwork.concepts)).repeat(VAE_VIEWS)
    blurred, blurred_concepts = _halved(through_vae(vae, artwork.on_backgrounds(repeated))), artwork.concepts[repeated]
    artwork = Artwork(_halved(artwork.drawings), artwork.concepts)
    classifier = Classifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    sharp_batches, blurred_batches = (_shuffled(len(kind), BATCH // 2) for kind in (artwork.concepts, repeated))
    progress = trange(steps, unit="step")
    for step in progress:
        sharp, again = next(sharp_batches), next(blurred_batches)
        pictures = torch.cat([artwork.on_backgrounds(sharp), _moved(blurred[again], scale=(0.9, 1.05), shift=0.05)])
        logits = classifier(_recoloured(pictures))
        concepts = torch.cat([artwork.concepts[sharp], blurred_concepts[again]])
        loss = functional.cross_entropy(logits, concepts, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.2f}")
    return classifier.eval()


@torch.no_grad()
def through_vae(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures encoded and decoded, their latents a little noisy as a sampler leaves them."""
    decoded = []
    for batch in tqdm(pictures.split(VAE_BATCH), unit="VAE batch"):
        latents = vae.encode(batch * 2 - 1).latent_dist.mode()
        strength = torch.rand(len(batch), 1, 1, 1) * LATENT_NOISE / vae.config.scaling_factor
        decoded.append(vae.decode(latents + strength * torch.randn_like(latents)).sample)
    return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)


def generate(pipeline: StableDiffusionPipeline, prompt: str, steps: int) -> list[Image.Image]:
    """Plain generations, one a seed."""
    request = Request(prompt, "", GUIDANCE, "ddim", steps)
    images = RequestImages.of(Image.new("RGB", (SIDE, SIDE)))
    host = DiffusersHost(pipeline, request, images, lambda done, total: None)
    start = host.start(SEEDS, None)
    return host.decode(host.sample(start, SEEDS, None, lambda done, total: None))


Measured = dict[str, tuple[Tensor, Tensor]]
"""By what was judged: the classifier's scores `[N, classes]` and the index of each image's concept `[N]`."""


def measure(
    classifier: Classifier,
    pipeline: StableDiffusionPipeline,
    held_out: Artwork,
    prompts: Sequence[str],
    sampler_steps: int,
) -> Measured:
    """Judge the held-out vendor's drawings and plain generations of the prompts."""
    torch.manual_seed(0)
    views = torch.arange(len(held_out.concepts)).repeat(MEASURED_VIEWS)
    drawings, drawn = held_out.on_backgrounds(views), held_out.concepts[views]
    generated = [
        image for prompt in tqdm(prompts, unit="prompt") for image in generate(pipeline, prompt, sampler_steps)
    ]
    prompted = torch.arange(len(prompts)).repeat_interleave(len(SEEDS))
    return {
        "held-out vendor, on backgrounds": (classifier.scores(drawings), drawn),
        "the same through the VAE": (classifier.scores(through_vae(pipeline.vae, drawings)), drawn),
        "plain generations": (classifier.probabilities(generated), prompted),
    }


def card(measured: Measured, steps: int, artwork: Artwork, held_out: Artwork, sampler_steps: int) -> str:
    """concepts.md."""
    return PAGE.substitute(
        classes=len(CONCEPTS),
        parameters=f"{sum(parameter.numel() for parameter in Classifier().parameters()):,}",
        drawings=len(artwork.concepts),
        steps=steps,
        batch=BATCH,
        held_out=len(held_out.concepts),
        accuracies="\n".join(_accuracy(title, *figures) for title, figures in measured.items()),
        mistakes=_mistakes(*measured["held-out vendor, on backgrounds"]),
        generation_mistakes=_mistakes(*measured["plain generations"]),
        guidance=f"{GUIDANCE:g}",
        sampler_steps=sampler_steps,
        seeds=" and ".join(map(str, SEEDS)),
    )


def _accuracy(title: str, scores: Tensor, concepts: Tensor) -> str:
    """A line of a table: for how many pictures the concept has the first place, and one of the first five."""
    found = scores.topk(5).indices == concepts[:, None]
    top1, top5 = (hits.double().mean().item() for hits in (found[:, 0], found.any(dim=1)))
    return f"| {title} | {len(concepts)} | {top1:.1%} | {top5:.1%} |"


def _mistakes(scores: Tensor, concepts: Tensor) -> str:
    """What was taken for what, each pair once."""
    pairs = sorted(set(zip(concepts.tolist(), scores.argmax(dim=1).tolist(), strict=True)))
    mistakes = [f"{PROMPTS[shown]} ({CONCEPTS[taken]})" for shown, taken in pairs if shown != taken]
    return fill(", ".join(mistakes) or "nothing", 120, break_on_hyphens=False)


def _halved(pictures: Tensor) -> Tensor:
    """Pictures as the classifier sees them: at half their size there is nothing left that the VAE would smear."""
    return functional.avg_pool2d(pictures, 2)


def _convolution(channels: int, width: int, stride: int = 1, size: int = 3) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]


def _slug(concept: str) -> str:
    return re.sub("[^a-z0-9]+", "-", concept)


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def _read_drawing(file: Path) -> Tensor:
    """A drawing cropped to what is not transparent and scaled to fill the square, premultiplied RGBA."""
    image = Image.open(file).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    square = Image.new("RGBA", (max(image.size),) * 2)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    drawing = _to_tensor(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return torch.cat([drawing[:3] * drawing[3:], drawing[3:]])


def _moved(pictures: Tensor, scale: tuple[float, float], shift: float) -> Tensor:
    """Pictures scaled, shifted by a fraction of the half side, turned by a few degrees, every second one mirrored.

    Outside of them is nothing (RGBA), or their own edge goes on (RGB).
    """
    count = len(pictures)
    zoom = 1 / torch.empty(count).uniform_(*scale)
    angle = torch.empty(count).uniform_(-0.1, 0.1)
    mirror = torch.randint(2, (count,)) * 2 - 1
    offset = torch.empty(count, 2).uniform_(-shift, shift)
    rows = (
        torch.stack([mirror * angle.cos() * zoom, -angle.sin() * zoom, offset[:, 0]], dim=1),
        torch.stack([mirror * angle.sin() * zoom, angle.cos() * zoom, offset[:, 1]], dim=1),
    )
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(pictures.shape), align_corners=False)
    padding = "zeros" if pictures.shape[1] == 4 else "border"
    return functional.grid_sample(pictures, grid, padding_mode=padding, align_corners=False)


def _recoloured(pictures: Tensor) -> Tensor:
    """Pictures with another saturation, tint and contrast, so that guidance and a strange palette do no harm."""
    count = len(pictures)
    gray = pictures.mean(dim=1, keepdim=True)
    pictures = gray + (pictures - gray) * torch.empty(count, 1, 1, 1).uniform_(0.6, 1.5)
    contrast = torch.empty(count, 3, 1, 1).uniform_(-0.08, 0.08) + torch.empty(count, 1, 1, 1).uniform_(0.8, 1.25)
    return ((pictures - 0.5) * contrast + 0.5 + torch.empty(count, 1, 1, 1).uniform_(-0.08, 0.08)).clamp(0, 1)


def _shuffled(count: int, batch: int) -> Iterator[Tensor]:
    """Batches of indices without end, each index once a round. `count` below `batch` makes one short batch a round."""
    batch = min(batch, count)
    while True:
        # the last batch of a round is short and left out
        yield from torch.randperm(count).split(batch)[: count // batch]


PAGE = Template("""\
# The classifier of concepts

`concepts.safetensors` tells which of $classes concepts a 128x128 image shows. These are the concepts that the small
demo model knows ([its card](../demo/MODEL_CARD.md)). The classifier is a plain convolutional net with $parameters
parameters in 16 bits. Only the benchmarks use it, to find out whether the subject of the prompt appears in an image.

## How good it is

| | images | top-1 | top-5 |
| --- | --- | --- | --- |
$accuracies

Plain generations are images that the demo model makes from the prompt alone, for all $classes prompts, with seeds
$seeds, guidance $guidance and $sampler_steps DDIM steps. No generated image was used for training. The model repeats
its training drawings almost exactly, and the classifier knows the same drawings. So this figure tests smears and
colours, not new drawings. The held-out vendor is the hard test: it draws several things in a different way.

These plain generations were taken for something else (in brackets):

$generation_mistakes

These drawings of the held-out vendor on backgrounds were taken for something else:

$mistakes

## Data

There are $drawings drawings by five vendors for training, and $held_out by a sixth vendor for validation. The artwork
was rendered with `@resvg/resvg-js` at 256x256, with transparency, from the SVG sources in these npm packages. The icon
of a concept was found by the emoji's CLDR short name in `unicode-emoji-json` (a globe is the one that shows Europe and
Africa, a sun hat is the woman's hat). fxemoji has different names, so its icons were found by these. The file of "a
t-shirt" by noto is `noto/t-shirt.png`; every character that is no letter and no digit becomes a hyphen. A vendor may
lack a concept.

| package | licence | attribution | use |
| --- | --- | --- | --- |
| @iconify-json/noto | Apache-2.0 | Noto Emoji, Google Inc. | training |
| @iconify-json/twemoji | CC-BY-4.0 | Twemoji, Twitter, Inc. and other contributors | training |
| @iconify-json/fluent-emoji-flat | MIT | Fluent Emoji, Microsoft Corporation | training |
| @iconify-json/fluent-emoji | MIT | Fluent Emoji, Microsoft Corporation | training |
| @iconify-json/fxemoji | Apache-2.0 | FxEmojis, Mozilla | training |
| @iconify-json/emojione | CC-BY-4.0 | EmojiOne 2.x, Emoji One | validation only |

## Training

The classifier was trained from scratch, in $steps steps with $batch images each. Half of the images are drawings on
plain backgrounds, at scales of 0.75 to 0.95, shifted, mirrored, and turned by a few degrees. The other half are such
images, encoded and decoded by the demo model's VAE with some noise on their latents, because generated images look
like this. All images vary in saturation, tint and contrast.

`python benchmarks/concepts.py FOLDER` wrote the weights and the figures.
""")

if __name__ == "__main__":
    main()
