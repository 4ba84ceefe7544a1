"""docs/peers.md and docs/peers.png from what `peers.py` has asked for; asks for nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from string import Template
from typing import Any

import torch
from concepts import PROMPTS as CONCEPTS
from concepts import Classifier, load_classifier
from diffusers import StableDiffusionPipeline
from effect import Palette, labelled_grid, palette, palette_distance
from exactness import rms, similarity
from exemplars import SUBJECTS, Exemplar, make_host, markdown_table, vae_reconstruction
from PIL import Image
from samplers_page import picture_of
from tqdm import tqdm
from wholeness import WHOLE_BELOW, surprises

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline

Record = dict[str, Any]

PLAIN = "plain 1.0"
PROMPTS: Mapping[str, Callable[[Exemplar], str]] = {
    "concept": lambda exemplar: SUBJECTS.get(exemplar.name, exemplar.concept),
    "empty": lambda exemplar: "",
}
"""What the prompt says of an exemplar: a thing that the model knows, or nothing."""
COLUMNS = {
    "palette": ".2f",
    "concept": ".2f",
    "top-1": ".2f",
    "whole": ".2f",
    "seeds differ": ".0f",
    "RMS": ".0f",
    "SSIM": ".2f",
}
"""The figures of images, with the format of their means."""


@dataclass(frozen=True)
class Result:
    """What one turn gave: its images, CPU seconds, and figures, one value an image or a pair of images."""

    sampler: str
    exemplar: str
    prompt: str
    arm: str
    steps: int
    seconds: Sequence[float]
    images: Sequence[Image.Image]
    figures: Mapping[str, Sequence[float]]

    @property
    def place(self) -> tuple[str, str, str]:
        """What it shares with the turns of the other arms."""
        return self.sampler, self.exemplar, self.prompt


@dataclass
class Judge:
    """Measures images against their exemplar."""

    pipeline: StableDiffusionPipeline = field(default_factory=lambda: load_pipeline(DEMO_CHECKPOINT))
    classifier: Classifier = field(default_factory=load_classifier)

    def aim(self, exemplar: Exemplar) -> Aim:
        """An exemplar as the VAE gives it back, with its palette and what the classifier takes it for."""
        seen = vae_reconstruction(make_host(self.pipeline, exemplar))
        return Aim(seen, palette(seen), int(self.classifier.probabilities([seen]).argmax()))

    def figures(self, images: Sequence[Image.Image], prompt: str, aim: Aim) -> dict[str, list[float]]:
        """How near images are to an exemplar, whether they show a concept in one piece, and how they differ."""
        probabilities = self.classifier.probabilities(images)
        concept = CONCEPTS.index(prompt) if prompt else aim.concept
        return {
            "palette": [palette_distance(palette(image), aim.palette) for image in images],
            "concept": probabilities[:, concept].tolist(),
            "top-1": (probabilities.argmax(dim=1) == concept).double().tolist(),
            "whole": [float(surprise < WHOLE_BELOW) for surprise in surprises(self.pipeline, images, prompt)],
            "seeds differ": [rms(one, other) for one, other in combinations(images, 2)],
            "RMS": [rms(image, aim.seen) for image in images],
            "SSIM": [similarity(image, aim.seen) for image in images],
        }


@dataclass(frozen=True)
class Aim:
    """An exemplar to compare with: how it is seen, its palette, and the number of its concept."""

    seen: Image.Image
    palette: Palette
    concept: int


def write(
    out: Path, host: Record, records: Sequence[Record], exemplars: Sequence[Exemplar], arms: Sequence[str]
) -> None:
    """docs/peers.md and peers.png."""
    out.mkdir(parents=True, exist_ok=True)
    results = judged(records, exemplars)
    (out / "peers.md").write_text(page(host, results, arms))
    contact_sheet(results, exemplars, arms).quantize(256).save(out / "peers.png", optimize=True)


def judged(records: Sequence[Record], exemplars: Sequence[Exemplar]) -> list[Result]:
    """The figures of all turns."""
    # with two threads on a busy machine the small model takes thirty times as long
    torch.set_num_threads(1)
    judge = Judge()
    shown = {exemplar.name: (exemplar, judge.aim(exemplar)) for exemplar in exemplars}
    results = []
    for record in tqdm(records, unit="turn"):
        exemplar, aim = shown[record["exemplar"]]
        images = [picture_of(picture) for picture in record["pictures"]]
        figures = judge.figures(images, PROMPTS[record["prompt"]](exemplar), aim)
        names = {name: record[name] for name in ("sampler", "exemplar", "prompt", "arm", "steps", "seconds")}
        results.append(Result(**names, images=images, figures=figures))
    return results


def values(results: Sequence[Result], column: str) -> list[float]:
    """A figure of all images of some turns."""
    return [value for result in results for value in result.figures[column]]


def rows(results: Sequence[Result], arms: Sequence[str]) -> list[list[str]]:
    """A row for each arm: the means of all figures, the palette's as a ratio to plain, then the cost."""
    plain = [result for result in results if result.arm == PLAIN]
    scales = {"palette": mean(values(plain, "palette"))}
    found = []
    for arm in arms:
        own = [result for result in results if result.arm == arm]
        figures = [
            format(mean(values(own, column)) / scales.get(column, 1), form) if values(own, column) else "-"
            for column, form in COLUMNS.items()
        ]
        found.append([arm, *figures, *costs(own, plain)])
    return found


def costs(results: Sequence[Result], plain: Sequence[Result]) -> list[str]:
    """CPU seconds of the first image and of the next ones, as ratios to plain: the median over all turns."""
    base = {result.place: mean(result.seconds) for result in plain}
    first = [result.seconds[0] / base[result.place] for result in results]
    following = [seconds / base[result.place] for result in results for seconds in result.seconds[1:]]
    return [f"{median(ratios):.2f}" if ratios else "-" for ratios in (first, following)]


def by_sampler(results: Sequence[Result], arms: Sequence[str]) -> str:
    """A row for each arm: palette, top-1 and whole for each sampler with each prompt."""
    kinds: dict[str, list[Result]] = {}
    for result in results:
        kinds.setdefault(f"{result.sampler}, {result.prompt}", []).append(result)
    found = [[arm] for arm in arms]
    for some in kinds.values():
        for line, (_, closeness, _, top, whole, *_) in zip(found, rows(some, arms), strict=True):
            line.append(f"{closeness}, {top}, {whole}")
    return markdown_table(["", *kinds], found)


def contact_sheet(
    results: Sequence[Result], exemplars: Sequence[Exemplar], arms: Sequence[str], edge: int = 96
) -> Image.Image:
    """docs/peers.png: a row for each exemplar, prompt and sampler, a column for each arm, all of the first seed."""
    found: dict[str, dict[str, Image.Image]] = {}
    photos = {exemplar.name: exemplar for exemplar in exemplars}
    for result in results:
        exemplar = photos[result.exemplar]
        asked = PROMPTS[result.prompt](exemplar) or f"{exemplar.concept},\nno prompt"
        title = f"{asked},\n{result.sampler}".removesuffix(" Karras").partition(" ")[2]
        found.setdefault(title, {"photo": exemplar.image})[result.arm] = result.images[0]
    columns = ["photo", *arms]
    return labelled_grid(
        [column.replace(" ", "\n", 1) for column in columns],
        {
            title: [row[column].resize((edge, edge), Image.Resampling.LANCZOS) for column in columns]
            for title, row in found.items()
        },
    )


def page(host: Record, results: Sequence[Result], arms: Sequence[str]) -> str:
    """docs/peers.md."""
    header = ["", *COLUMNS, "cost, first", "cost, next"]
    tables = {
        prompt: markdown_table(header, rows([result for result in results if result.prompt == prompt], arms))
        for prompt in PROMPTS
    }
    exemplars, samplers = ({getattr(result, name) for result in results} for name in ("exemplar", "sampler"))
    seeds = len(results[0].images)
    return PAGE.substitute(
        {**host, **tables},
        by_sampler=by_sampler(results, arms),
        exemplars=len(exemplars),
        samplers=" and ".join(sorted(samplers)),
        seeds=seeds,
        steps=results[0].steps,
        images=len(samplers) * len(exemplars) * seeds,
    )


PAGE = Template("""\
# RIVAL beside its peers

Several things in AUTOMATIC1111's WebUI make images from one exemplar without training and without further weights.
Here they made the same images as RIVAL, and all images were measured in the same way. They ran on a real WebUI $webui
(Python $python, torch $torch, on the processor, in fp32) through its API, beside ControlNet in the version of
[compat.md](compat.md), with the small demo model.

![The exemplars and the first seed of every arm](peers.png)

The sheet shows every exemplar with every prompt and sampler, always with seed 1. Nothing was picked.

## How it was measured

- **Images**: $exemplars held-out exemplars with which no default of RIVAL was chosen, $samplers, $seeds seeds, $steps
  steps, 128x128, guidance 5. The prompt is the exemplar's concept, or nothing. So a figure in the first two tables is
  the mean of $images images.
- **Turns**: the arms take turns within each image, and each image begins with another arm. So a busy machine slows all
  of them alike.
- **plain**: img2img of the exemplar at this denoising strength. 1.0 is what all others are compared with.
- **reference**: ControlNet's preprocessors `reference_only` and `reference_adain+attn` ("AdaIN") at this style
  fidelity, as their users use them: in txt2img, with weight 1 and control mode *Balanced*.
- **alternative**: the WebUI's script *img2img alternative test* as it is set when it is opened, with the prompt as the
  original prompt, and once with randomness 0.5. It samples with Euler whatever sampler is chosen, and with guidance 2,
  because it asks for 2 or less.
- **RIVAL paper**: the preset `paper`, which is the authors' form. **RIVAL new**: the defaults. Both at denoising
  strength 1, and the defaults also at 0.75.

The columns:

- **palette**: the distance of the palettes, as in [effect.md](effect.md), as a ratio to plain 1.0 with the same
  prompt. Smaller is nearer to the exemplar's colours.
- **concept, top-1**: the probability that the [classifier](../benchmarks/concepts.md) gives to the prompt's concept,
  and how often this is its first choice. Without a prompt, the concept is what the classifier takes the exemplar for.
- **whole**: the fraction of images whose object is in one piece, by the
  [measure of wholeness](../benchmarks/wholeness.md).
- **seeds differ**: the RMS difference between two seeds, of 255. With 0 every seed gives the same image.
- **RMS, SSIM**: the difference from the exemplar and the similarity to it. With variations neither should be extreme:
  an RMS of 0 is a copy.
- **cost**: the server's CPU time for a whole request, on one thread, as a ratio to plain 1.0; the median over all
  turns. *First* is the first seed, which pays for an inversion, *next* is the second one, which finds it stored.

## With the concept as the prompt

$concept

## Without a prompt

$empty

## By sampler

Palette, top-1 and whole:

$by_sampler

## What came out

- **Colours**: with the concept as the prompt, RIVAL's defaults are at 0.40 of plain, as near as the alternative. The
  reference modes are at 0.49 to 0.82, and the paper's form at 0.53. Without a prompt the defaults are at 0.22, and at
  0.19 with denoising strength 0.75, nearer than everything else.
- **Shapes by eye**: the 208 images with the concept as the prompt were looked at in random order without their arms.
  Whole are 16 of 16 of plain, of the alternative, of reference only 0.0 and of all three of RIVAL's arms; 13 and 14 of
  reference only and AdaIN at 0.5, and 8 of 16 of each at 1.0, whose surfaces are shattered. So no reference mode is
  as near in colours, and those that come closest break images.
- **Cost**: a stored run costs half of what a reference mode costs for every image (1.1 to 1.2, theirs 2.2 to 2.5), the
  first run two thirds (1.5).
- **Content without a prompt**: with denoising strength 0.75, RIVAL keeps the exemplar's concept in 0.56 of the images,
  plain img2img at this strength in 0.25, the reference modes in at most 0.31.

## Where RIVAL loses

- **Concept**: with the prompt the defaults have the concept in the first place in 0.75 of the images, plain in all. All
  four that lose it are the smiling face with horns: its photo is red, the images become red too, and the classifier
  takes the photo itself for an enraged face. The doughnut, whose photo it does not recognise either, loses
  probability. On sixteen exemplars the loss is 0.04 ([starts.md](starts.md#start-and-share)).
- **Diversity**: two seeds differ by 29, plain's by 46, those of the reference modes by 31 to 40. What is nearer to the
  exemplar differs less.
- **Content without a prompt at denoising strength 1**: the concept is there in 0.19 of the images. The alternative
  keeps it in 0.75.
- **A near copy**: the alternative has the greatest SSIM at the price of a plain image. But its seeds are all the same,
  it loses the asked concept in half of the images, and with randomness 0.5 it is where reference only 0.5 is.
- **Price**: plain img2img at denoising strength 0.5 is at 0.52 in colours for half of plain's price, with whole shapes
  and a little less diversity. RIVAL's first image costs 1.5.

$exemplars exemplars on one small model are few, and the two samplers make nearly the same images. So differences of 0.1
mean little here.

## What the projects do with the exemplar

Plain generation with guidance costs 1 here, and the other costs follow from the UNet rows that a project's code or
paper evaluates, without the longer attention. The projects in the second table are those of the last two years, and
Ditail. None of them was run here: they are for transformers such as Flux, which RIVAL does not support, or need weights
of their own, or do something else.

| | models | more weights | the exemplar is | cost of an image |
| --- | --- | --- | --- | --- |
| plain img2img | all | no | noised, then forgotten | 1 |
| reference (ControlNet, Forge) | SD 1, 2, XL | no | noised anew and evaluated in every step | 2 |
| img2img alternative | SD 1 | no | inverted; the start comes from it | 1; the first one 2 |
| RIVAL, the authors' code | SD 1 | no | inverted, and evaluated in every step | 2; the first one 2.5 |
| **RIVAL, this project** | SD 1, 2, XL | no | inverted once; its features are kept | 1, and 10 evaluations once |
| Tiled Diffusion, noise inversion | SD 1, 2, XL | no | inverted; the start comes from it | 1, and an inversion |
| ComfyUI Unsampler | UNets | no | inverted; the start comes from it | 1, and an inversion |
| MasaCtrl | SD 1, XL | no | inverted, and evaluated in every step | 2, and an inversion |
| StyleAligned | SDXL | no | one more image of the batch | 2 for one image, and an inversion |
| IP-Adapter | SD 1, XL, others | yes | a few tokens beside the prompt's | 1 |

| | models | more weights | the exemplar is | cost of an image |
| --- | --- | --- | --- | --- |
| [Ditail] (2023) | SD 1 | a checkpoint | inverted with one checkpoint, evaluated beside another | 1.5 or more |
| Flux Redux (2024) | Flux | yes | 729 tokens beside the prompt's | a little more than 1 |
| [Flux Kontext] (2025) | its own | all | its tokens stand beside the image's in every step | about 2 |
| AlignedGen (2025) | Flux | no | evaluated in every step; its positions are shifted | about 2 |
| [IFE] (2025) | SD 1 | no | inverted with one evaluation a step, and nothing else | the inversion alone |
| [Untwisting RoPE] (2026) | Flux, Krea 2 | no | evaluated in every step; its keys lose high frequencies | 2 |

[Ditail]: https://arxiv.org/abs/2312.08873
[Flux Kontext]: https://arxiv.org/abs/2506.15742
[IFE]: https://arxiv.org/abs/2512.08547
[Untwisting RoPE]: https://arxiv.org/abs/2602.05013

None of these inverts once and then makes each image at the cost of a plain one. Of these only IP-Adapter takes several
exemplars with masks, as RIVAL does here. None says in a report what it did. IFE inverts with one evaluation a step by
another formula than this project; recording the features in that evaluation is this project's own.

`python benchmarks/peers.py --exemplars $exemplars` wrote the measured figures and the image. The exemplars in it are
EmojiOne 2.x by Emoji One, CC BY 4.0 ([licences](../tests/data/held_out/LICENCES.md)), placed on plain backgrounds.
""")
