"""The work on one photo: its images by RIVAL, or plain ones from the same seeds, and the report on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from rival_ext import __version__
from rival_ext.errors import RivalError, is_out_of_memory
from rival_ext.images.transforms import crop_note, fit, grey_mask, mask_array, on_white, rgb_array, size_of_area
from rival_ext.report import Report, Rows, Seconds, Steps, join_report
from rival_ext.settings import HALF, MASK_RULE, PIXELS_PER_POSITION, Settings, settings_of_check
from rival_ext.usage import flag, in_options

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor

    from rival_ext.hosts.diffusers import DiffusersHost, RequestImages
    from rival_ext.method.guide import Guide
    from rival_ext.method.store import Store


THE_PHOTO = "the photo"


@dataclass(frozen=True)
class Job:
    """What is made of one photo.

    Attributes:
        photo: The photo, as RGB.
        mask: White where the photo is filled, if it is.
        settings: The validated settings.
        prompt: The prompt of the images.
        seeds: One seed for each image.
        steps: Sampling steps.
        size: Width and height of the images. None chooses them by the photo and the checkpoint.
        cfg: The guidance scale.
        denoise: Above 0 up to 1, how much of the photo the images leave behind.
        sampler: A key of `rival_ext.hosts.diffusers.SAMPLERS`.
        checkpoint: An SD 1.x .safetensors file.
        keep_inversions: A folder for inversions, if they are kept.
        plain: Whether the images are made without RIVAL.
        check: Whether the exemplar is also led back from its inversion.
    """

    photo: Image.Image
    mask: Image.Image | None
    settings: Settings
    prompt: str
    seeds: range
    steps: int
    size: tuple[int, int] | None
    cfg: float
    denoise: float
    sampler: str
    checkpoint: Path
    keep_inversions: Path | None
    plain: bool
    check: bool


class Made(NamedTuple):
    """The images of a job, the photo at their size, and the report."""

    images: list[Image.Image]
    photo: Image.Image
    report: Report


class Sampled(NamedTuple):
    """Images, and the UNet rows and seconds that they took."""

    images: list[Image.Image]
    rows: int
    seconds: float


def make(job: Job, notes: list[str]) -> Made:
    """Make the images of a job.

    Args:
        job: What to make.
        notes: Sentences that are known before, for the report. Those on crops are added.

    Returns:
        The images and the report.

    Raises:
        RivalError: Something cannot be honoured, or memory ran out.
    """
    try:
        host = _load_host(job, notes)
        images, report = (_plain_images if job.plain else _rival_images)(job, host)
    except Exception as error:  # only CUDA's lack of memory has an error class of its own
        if is_out_of_memory(error):
            raise RivalError(
                "memory ran out; give a smaller --size, set --features to live, or close other programs."
            ) from None
        raise
    report = replace(report, notes=(*notes, *map(in_options, report.notes)))
    return Made(images, fit(job.photo, host.images.size), report)


def _plain_images(job: Job, host: DiffusersHost) -> tuple[list[Image.Image], Report]:
    """Images without RIVAL, from the same seeds, for comparison."""
    sampled = _sample(job, host, lambda seed: host.start([seed], None), None)
    report = Report(
        "plain",
        job.settings.t_align,
        job.settings.t_early,
        exemplars=0,
        steps=Steps(total=host.steps),
        rows=Rows(generation=sampled.rows),
        seconds=Seconds(generation=sampled.seconds),
    )
    return sampled.images, report


def _rival_images(job: Job, host: DiffusersHost) -> tuple[list[Image.Image], Report]:
    from rival_ext.method.prepare import prepare

    settings = settings_of_check(job.settings) if job.check else job.settings
    with _progress("Inverting") as host.progress:
        guide, inversion = prepare(host, settings, _store(job, host))
    psnr = _check(host, guide) if job.check else None

    def start(seed: int) -> Tensor:
        # the report counts the steps of one image
        guide.begin()
        return host.start([seed], guide)

    images, rows, seconds = _sample(job, host, start, guide)
    return images, join_report(job.settings, inversion, guide.counts, rows=rows, seconds=seconds, psnr=psnr)


def _sample(job: Job, host: DiffusersHost, start: Callable[[int], Tensor], guide: Guide | None) -> Sampled:
    from rival_ext.method.inversion import part_of
    from rival_ext.method.layers import count_rows

    begun = time.perf_counter()
    images = []
    with count_rows(host.unet) as rows, _progress("Sampling") as advance:
        for index, seed in enumerate(job.seeds):
            latents = host.sample(start(seed), [seed], guide, part_of(advance, index, len(job.seeds)))
            images += [_over_canvas(host.images, image) for image in host.decode(latents)]
    return Sampled(images, sum(rows), time.perf_counter() - begun)


def _check(host: DiffusersHost, guide: Guide) -> float:
    """Lead the exemplar back from its inversion, and measure how exactly it comes back, in dB."""
    import torch

    from rival_ext.method.inversion import reconstruct
    from rival_ext.method.quality import exactness

    with _progress("Checking") as advance:
        reconstruction = reconstruct(guide.exemplars[0].chain, host.predict_noise, advance)
    decoded = (host.decode(latent)[0] for latent in (host.exemplar_latent(), reconstruction))
    return exactness(*(torch.from_numpy(rgb_array(image)) for image in decoded))


def _store(job: Job, host: DiffusersHost) -> Store:
    from rival_ext.storage.disk import DiskStore
    from rival_ext.storage.store import NoStore

    if job.keep_inversions is None:
        return NoStore()
    checkpoint = job.checkpoint.resolve()
    made_by = [__version__, str(checkpoint), checkpoint.stat().st_size, checkpoint.stat().st_mtime_ns]
    return DiskStore(job.keep_inversions, made_by, host.unet.device, host.memory_budget()).open()


def _load_host(job: Job, notes: list[str]) -> DiffusersHost:
    # imported late: `--help` and bad input answer at once
    from rival_ext.hosts.checkpoint import load_pipeline, quieten_libraries
    from rival_ext.hosts.diffusers import DiffusersHost, Request

    quieten_libraries()
    pipeline = load_pipeline(job.checkpoint)
    settings = job.settings
    request = Request(
        job.prompt, settings.exemplar_prompt, job.cfg, job.sampler, job.steps, settings.exact, job.denoise
    )
    return DiffusersHost(pipeline, request, _request_images(job, pipeline, notes), lambda done, total: None)


def _request_images(job: Job, pipeline: StableDiffusionPipeline, notes: list[str]) -> RequestImages:
    from rival_ext.hosts.checkpoint import native_size, size_unit
    from rival_ext.hosts.diffusers import RequestImages

    size = job.size or native_size(pipeline, job.photo)
    canvas = fit(job.photo, size)
    exemplars = []
    for one in [] if job.plain else job.settings.exemplar_inputs:
        image, source = canvas, job.photo
        if one.image is not None or job.settings.mode == "text":
            # an aspect of its own: no part of the exemplar has to lie where a part of the images lies
            source = on_white(one.image or job.photo)
            image = fit(source, size_of_area(source, math.sqrt(size[0] * size[1]), size_unit(pipeline)))
        _note_crop(flag("exemplar" + one.suffix) if one.image else THE_PHOTO, source, image.size, notes)
        region = one.mask and _fitted_mask(flag("exemplar_mask" + one.suffix), one.mask, image.size, notes)
        exemplars.append(one._replace(image=image, mask=region))
    if not exemplars and not job.plain:
        raise RivalError("weight leaves no exemplar; raise one of the weights above 0.")
    if job.mask is None:
        return RequestImages(exemplars, size, canvas)
    _note_crop(THE_PHOTO, job.photo, size, notes)
    mask = _fitted_mask("--mask", job.mask, size, notes)
    refuse_unset(mask_array(mask, *(side // PIXELS_PER_POSITION for side in size)))
    return RequestImages(exemplars, size, canvas, mask)


def _fitted_mask(name: str, mask: Image.Image, size: tuple[int, int], notes: list[str]) -> Image.Image:
    _note_crop(name, mask, size, notes)
    return fit(grey_mask(mask), size)


def refuse_unset(mask: NDArray[np.float32]) -> None:
    """Refuse a mask to fill that counts nowhere.

    Args:
        mask: How far it is set at each place, from 0 to 1.

    Raises:
        RivalError: It is set by half nowhere.
    """
    if mask.max() < HALF:
        raise RivalError(f"--mask marks nothing to fill ({MASK_RULE}); paint a larger area white.")


def _note_crop(name: str, image: Image.Image, size: tuple[int, int], notes: list[str]) -> None:
    note = crop_note(name, image, size)
    if note and note not in notes:
        notes.append(note)


def _over_canvas(images: RequestImages, image: Image.Image) -> Image.Image:
    """Put the canvas's own pixels where they are kept."""
    if images.canvas is None or images.mask is None:
        return image
    return Image.composite(image, images.canvas, images.mask)


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told (done, total); it appears with the first step, so an earlier error stands alone."""
    with ExitStack() as stack:
        bar: tqdm[NoReturn] | None = None

        def advance(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(tqdm(desc=title, unit="step", total=total))
            bar.update(done - bar.n)

        yield advance
