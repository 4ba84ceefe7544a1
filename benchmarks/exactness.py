"""How exact the inversion and what it records are: docs/inversion.md, written by `python benchmarks/effect.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from statistics import mean
from string import Template

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from exemplars import GUIDANCE, STEPS, Exemplar, make_host, markdown_table, vae_reconstruction
from PIL import Image
from skimage.metrics import structural_similarity
from tqdm import tqdm

from rival_ext.hosts.diffusers import DiffusersHost
from rival_ext.images.transforms import rgb_array
from rival_ext.method.chain import Chain
from rival_ext.method.exemplars import Exemplar as Seen
from rival_ext.method.guide import Guide
from rival_ext.method.inversion import FirstGuess, extrapolated, invert, lower_latent, reconstruct
from rival_ext.method.layers import self_attention_layers
from rival_ext.method.precision import kept_form
from rival_ext.method.quality import FAIR, GOOD, judge, psnr
from rival_ext.settings import PAPER, Settings

FIRST_GUESSES: dict[str, FirstGuess] = {"lower latent (the authors)": lower_latent, "extrapolated": extrapolated}
ITERATIONS = (1, 2, 3)
COARSE = (4, 6, 8, 10, 15, 20)
"""Steps so few that the inversion is not always good enough."""
SEEDS = (1, 2, 3, 4)
FEWER_SEEDS = SEEDS[:2]
INVERTED = (
    "basketball-twemoji-white",
    "cat-face-emojione-white",
    "house-emojione-blue",
    "pizza-emojione-yellow",
    "taxi-twemoji-green",
)


def inversion_page(
    pipeline: StableDiffusionPipeline,
    exemplars: dict[str, Exemplar],
    known: Sequence[Exemplar],
    steps: int = STEPS,
    most: int = len(INVERTED),
) -> str:
    """docs/inversion.md, at so many sampling steps and with so many exemplars at most."""
    inverted = [exemplars[name] for name in INVERTED[:most]]
    hosts = [make_host(pipeline, exemplar, steps=steps) for exemplar in inverted]
    exactness, agreement = [], []
    for (title, first_guess), iterations in tqdm(list(product(FIRST_GUESSES.items(), ITERATIONS)), unit="inversion"):
        chains = [invert_recording(host, first_guess, iterations) for host in hosts]
        decibels = [reconstruction_psnr(host, chain) for host, chain in zip(hosts, chains, strict=True)]
        exactness.append([title, str(iterations), *(f"{value:.1f}" for value in (*decibels, mean(decibels)))])
        apart = [rms for host, chain in zip(hosts, chains, strict=True) for rms in recorded_against_live(host, chain)]
        within = sum(rms <= 1 for rms in apart)
        figures = f"{mean(decibels):.1f}", f"{mean(apart):.2f}", f"{max(apart):.2f}", f"{within} of {len(apart)}"
        agreement.append([title, str(iterations), *figures])
    seeds_apart = [
        rms for host, chain in zip(hosts, chains, strict=True) for rms in seeds_against_each_other(host, chain)
    ]
    by_steps, by_grade = good_enough_tables(pipeline, inverted, [few for few in COARSE if few <= steps] or [steps])
    return PAGE.substitute(
        by_steps=by_steps,
        by_grade=by_grade,
        fewer=len(FEWER_SEEDS),
        good=f"{GOOD:g}",
        fair=f"{FAIR:g}",
        steps=steps,
        guidance=f"{GUIDANCE:g}",
        seeds=len(SEEDS),
        least=f"{min(seeds_apart):.0f}",
        most=f"{max(seeds_apart):.0f}",
        exactness=markdown_table(["first guess", "K", *(exemplar.concept for exemplar in inverted), "mean"], exactness),
        agreement=markdown_table(
            ["first guess", "K", "PSNR, dB", "recorded against live, mean", "largest", "up to 1"], agreement
        ),
        prompts=exemplar_prompt_table(pipeline, known, steps),
        known=len(known),
    )


def good_enough_tables(
    pipeline: StableDiffusionPipeline, exemplars: Sequence[Exemplar], coarse: Sequence[int]
) -> tuple[str, str]:
    """The dB of few steps, by iterations; and by the grade that they get, how far off the images are."""
    by_steps, by_grade = [], {grade: [] for grade in ("good", "fair", "poor")}
    for steps in tqdm(coarse, unit="steps"):
        row = [str(steps)]
        for iterations in ITERATIONS:
            decibels = []
            for exemplar in exemplars:
                host = make_host(pipeline, exemplar, steps=steps)
                chain = invert_recording(host, iterations=iterations)
                decibels.append(reconstruction_psnr(host, chain))
                by_grade[judge(decibels[-1], Settings(), steps).grade] += recorded_against_live(
                    host, chain, FEWER_SEEDS
                )
            row.append(f"{mean(decibels):.1f} ({min(decibels):.1f})")
        by_steps.append(row)
    grades = [
        [grade, str(len(apart)), f"{mean(apart):.2f}", f"{max(apart):.2f}", f"{sum(rms <= 2 for rms in apart)}"]
        for grade, apart in by_grade.items()
        if apart
    ]
    return (
        markdown_table(["steps", *(f"K = {iterations}" for iterations in ITERATIONS)], by_steps),
        markdown_table(["grade", "images", "recorded against live, mean", "largest", "up to 2"], grades),
    )


def exemplar_prompt_table(pipeline: StableDiffusionPipeline, exemplars: Sequence[Exemplar], steps: int) -> str:
    """Mean reconstruction with and without a prompt for the exemplar, from the default inversion."""
    rows = []
    for title, prompts in {
        "empty": [""] * len(exemplars),
        "the full caption": [exemplar.caption for exemplar in exemplars],
    }.items():
        captioned = zip(exemplars, prompts, strict=True)
        hosts = [make_host(pipeline, one, exemplar_prompt=text, steps=steps) for one, text in captioned]
        decibels = [reconstruction_psnr(host, invert_recording(host)) for host in hosts]
        rows.append([title, f"{mean(decibels):.1f}", f"{min(decibels):.1f}"])
    return markdown_table(["exemplar prompt", "mean", "lowest"], rows)


def invert_recording(host: DiffusersHost, first_guess: FirstGuess = extrapolated, iterations: int = 1) -> Chain:
    """The exemplar's chain, with the features of every node."""
    return invert(
        host.exemplar_latent(),
        host.noise_levels(),
        host.predict_noise,
        self_attention_layers(host.unet),
        iterations=iterations,
        first_guess=first_guess,
        keep=lambda node, features: kept_form(features, 16),
    )


def reconstruction_psnr(host: DiffusersHost, chain: Chain) -> float:
    """dB of the exemplar led back from its inversion, against the VAE's own reconstruction of it."""
    back = host.decode(reconstruct(chain, host.predict_noise))[0]
    return psnr(*(torch.from_numpy(rgb_array(image)) for image in (vae_reconstruction(host), back)))


def recorded_against_live(host: DiffusersHost, chain: Chain, seeds: Sequence[int] = SEEDS) -> list[float]:
    """By seed: RMS, of 255, between the images from recorded features and from the exemplar evaluated beside them."""
    live = variations(host, replace(chain, features={}), seeds)
    return [rms(one, other) for one, other in zip(variations(host, chain, seeds), live, strict=True)]


def seeds_against_each_other(host: DiffusersHost, chain: Chain) -> list[float]:
    """RMS, of 255, between each two variations of one exemplar."""
    return [rms(one, other) for one, other in combinations(variations(host, chain), 2)]


def variations(host: DiffusersHost, chain: Chain, seeds: Sequence[int] = SEEDS) -> list[Image.Image]:
    """An image for each seed, in the paper's form."""
    layers = self_attention_layers(host.unet)
    guide = Guide([Seen(chain)], Settings(**PAPER), host.schedule, layers, host.predict_noise)
    start = host.start(seeds, guide)
    return host.decode(host.sample(start, seeds, guide, lambda done, total: None))


def rms(one: Image.Image, other: Image.Image) -> float:
    """Root of the mean squared difference of two images, of 255."""
    difference = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    return float((difference**2).mean() ** 0.5)


def similarity(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity (SSIM) of two images: 1 is the same image."""
    return float(structural_similarity(np.asarray(one), np.asarray(other), channel_axis=2))


PAGE = Template("""\
# How exact the inversion is

Each step of the inversion is solved by fixed-point iteration: K evaluations of the UNet, from a first guess. There are
two first guesses:

- **lower latent**, which the authors use: the latent of the lower noise level is the guess for the higher one.
- **extrapolated**, the default: a step along the noise prediction, which is extrapolated from the last two noise
  levels. It needs no additional evaluation.

The table gives the PSNR in dB of a held-out image that was inverted and led back in $steps DDIM steps. It is compared
with the image that was encoded and decoded by the VAE alone. The model is the small demo model, with an empty prompt.
Both images have 8 bits a channel, so rounding alone limits the PSNR to about 56 dB.

$exactness

With one evaluation a step, the extrapolated guess is more exact than the authors' guess with two, so the default is
one evaluation. A second one makes most images more exact, but not all, and doubles the time of the inversion.

## Recorded features

The inputs of the self-attention layers in the last evaluation of a step are recorded, and every image that is made
later uses them: by default those of eight noise levels, with the layers' keys and values linear in between; in this
table those of every level. The alternative is to evaluate the exemplar again beside each image. The more exact the
inversion is, the better the two agree. The table gives the RMS difference, of 255, between an image made in one way and
in the other, for the five exemplars above with $seeds seeds each and guidance $guidance. It also says how many of the
images differ by 1 or less. Two seeds of one exemplar differ by $least to $most.

$agreement

From the extrapolated guess, one evaluation a step is enough for recording: live features change almost nothing. From
the authors' guess, one evaluation is too few: features that are recorded there make visibly different images.

## Good enough

*Check inversion*, the command line's `--check` and the API's `invert` grade an inversion by this PSNR: from $good dB
on it is good, from $fair dB on it is fair, and below that it is poor. The table gives the mean over the five
exemplars, and in brackets the lowest, by sampling steps and K (*Inversion iterations*):

$by_steps

The next table gives the difference between images from recorded and from live features, with $fewer seeds for each of
these inversions. Two seeds differ by $least to $most:

$by_grade

With few steps, a second and a third iteration help nearly as much as twice and three times the steps, and do not make
the images slower.

## Fewer noise levels

All tables on this page are of inversions at each noise level of the sampler, the form that modes edit and inpaint and
`start_mix` below 1 always use, and every check. Where the start is random, the exemplar is inverted at ten of the
levels by default ([inversion_nodes](parameters.md#inversion-nodes)): the images then need its colours and its features,
and not the exemplar itself. The report says how far such a chain may be off between its levels.

## A prompt for the exemplar

The table gives the same PSNR with one evaluation a step, over $known held-out images of things that the model knows:

$prompts

With its caption the exemplar comes back a little more exactly on average. [The effect](effect.md#exemplar-prompt) on
the images that are made from it is small.

`python benchmarks/effect.py` wrote these figures.
""")
