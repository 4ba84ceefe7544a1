"""The command line: variations of a photo without any WebUI."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from rival_ext import __version__
from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import FIELDS, Field
from rival_ext.images.transforms import contact_sheet, fit, grey_mask, on_white, read_image, rgb_array, size_of_area
from rival_ext.report import GuidePart, Report, Rows, Seconds, Steps, join_report
from rival_ext.settings import GUIDANCE, Settings, is_encodable, parse_settings

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from torch import Tensor

    from rival_ext.hosts.diffusers import DiffusersHost, RequestImages
    from rival_ext.method.guide import Guide
    from rival_ext.method.host import Store

SAMPLERS = ("ddim", "euler", "euler-a", "dpm++2m", "dpm++2m-karras")
LARGEST_SIDE = 2048
SIZE = re.compile(r"(\d{1,4})x(\d{1,4})", re.ASCII)
OFFERED = tuple(field for field in FIELDS if field.name != "enabled")
"""The fields of the settings that have an option."""


class Size(click.ParamType["tuple[int, int]"]):
    """WxH, each a multiple of 8 from 64 to 2048."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        written = SIZE.fullmatch(value.lower())
        sides = tuple(map(int, written.groups())) if written else ()
        if not sides or any(side % 8 or not 64 <= side <= LARGEST_SIDE for side in sides):
            self.fail(
                f"{short_repr(value)} must be WIDTHxHEIGHT, each a multiple of 8 from 64 to {LARGEST_SIDE}.", param, ctx
            )
        return sides[0], sides[1]


class Guidance(click.FloatRange):
    """A float range that refuses NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


@dataclass(frozen=True)
class Job:
    """What one call of the command does, beside the method's own settings."""

    photo: Path
    mask: Path | None
    out: Path
    prompt: str
    number: int
    seed: int
    steps: int
    size: tuple[int, int] | None
    cfg: float | None
    sampler: str
    checkpoint: Path | None
    keep_inversions: Path | None
    plain: bool
    check: bool


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each field of the settings but the switch, with its own help and default."""
    for field in reversed(OFFERED):
        command = click.option(field.flag, default=None, help=f"{field.help}.", **_option_kind(field))(command)
    return command


def _option_kind(field: Field) -> dict[str, Any]:
    if field.is_image:
        return {"type": click.Path(path_type=Path)}
    if field.default is False:
        return {"is_flag": True}
    # shown as text, since a default that differs by mode must not count as given
    shown = {"show_default": str(field.default) if field.default != "" else "empty"}
    return shown | {"type": click.Choice(field.choices) if field.choices else type(field.default)}


@click.command("python -m rival_ext", context_settings={"max_content_width": 110})
@click.argument("photo", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for images, sheet and report.")
@click.option("--prompt", default="", help="What to draw. If empty, content and style come from the photo alone.")
@click.option("-n", "number", type=click.IntRange(1, 999), default=4, show_default=True, help="How many variations.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=1, show_default=True, help="Seed of the first one.")
@click.option("--steps", type=click.IntRange(2, 500), default=50, show_default=True, help="Sampling steps.")
@click.option("--mask", type=click.Path(path_type=Path), help="For inpainting: white where PHOTO is filled.")
@click.option(
    "--size",
    type=Size(),
    help="Size of the images. Default: the photo's aspect ratio, with as many pixels as the checkpoint was made for.",
)
@click.option(
    "--cfg", type=Guidance(1, 30), show_default="5 in mode variation, else 7", help="Guidance scale; 1 is off."
)
@click.option("--sampler", type=click.Choice(SAMPLERS), default="ddim", show_default=True, help="Sampler.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="An SD 1.x .safetensors file. Default: the demo model."
)
@click.option(
    "--keep-inversions",
    type=click.Path(path_type=Path),
    help="Folder to store inversions in. The next run with the same photo, checkpoint, sampler and steps finds the "
    "inversion there. Each takes about 450 MB for 20 steps at 512x512.",
)
@click.option("--plain", is_flag=True, help="Generate without RIVAL, from the same seeds, for comparison.")
@click.option("--check", is_flag=True, help="Also reconstruct the photo and report the PSNR.")
@setting_options
def command(**options: Any) -> None:
    """Makes variations of PHOTO in the folder --out: 000.png ..., sheet.png and report.json."""
    given = {field.name: options.pop(field.name) for field in OFFERED}
    given = {name: value for name, value in given.items() if value is not None}
    for field in OFFERED:
        if field.is_image and field.name in given:
            given[field.name] = read_image(field.flag, given[field.name])
    vary(Job(**options), parse_settings(given | {"enabled": True}))


def vary(job: Job, settings: Settings) -> None:
    """Make the images, the contact sheet and the report. All of them are written, or none.

    Args:
        job: What the command was asked for.
        settings: The validated settings.

    Raises:
        RivalError: Something cannot be honoured.
    """
    if not is_encodable(job.prompt):
        raise RivalError(f"--prompt must be text that UTF-8 can encode, not {short_repr(job.prompt)}.")
    photo = on_white(read_image("the photo", job.photo))
    mask = _read_mask(job, settings)
    _refuse_folder(job.out)
    host = _load_host(job, settings, photo, mask)
    images, report = _plain_images(job, host, settings) if job.plain else _rival_images(job, host, settings)
    captions = ["photo", *(f"seed {seed}" for seed in _seeds(job))]
    with _all_or_nothing(job.out) as folder:
        for index, image in enumerate(images):
            image.save(folder / f"{index:03d}.png")
        contact_sheet([fit(photo, host.images.size), *images], captions).save(folder / "sheet.png")
        (folder / "report.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    click.echo(f"{len(images)} images and {job.out / 'sheet.png'}: {report.summary()}")
    if report.inversion.psnr is not None:
        from rival_ext.method.quality import judge

        click.echo(judge(report.inversion.psnr, settings, job.steps).sentence)


def main() -> None:
    """Runs the command; bad input is one sentence on standard error and exit code 2."""
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        sys.exit(_complain(error.format_message()))
    except RivalError as error:
        sys.exit(_complain(str(error)))
    except click.Abort:
        sys.exit(130)


class Sampled(NamedTuple):
    """Images, and the UNet rows and seconds that they took."""

    images: list[Image.Image]
    rows: int
    seconds: float


def _plain_images(job: Job, host: DiffusersHost, settings: Settings) -> tuple[list[Image.Image], Report]:
    """Images without RIVAL, from the same seeds, for comparison."""
    sampled = _sample(job, host, host.noise, None)
    report = Report(
        "plain",
        settings.t_align,
        settings.t_early,
        steps=Steps(total=len(host.scheduler.timesteps)),
        rows=Rows(generation=sampled.rows),
        seconds=Seconds(generation=sampled.seconds),
    )
    return sampled.images, report


def _rival_images(job: Job, host: DiffusersHost, settings: Settings) -> tuple[list[Image.Image], Report]:
    from rival_ext.method.prepare import prepare

    with _progress("Inverting") as host.progress:
        guide, inversion = prepare(host, settings, _store(job, host))
    psnr = _check(host, guide) if job.check else None

    def start(seed: int) -> Tensor:
        # the report counts the steps of one image
        guide.counts = GuidePart()
        return guide.start([seed], host.latent_size)

    images, rows, seconds = _sample(job, host, start, guide)
    return images, join_report(settings, inversion, guide.counts, rows=rows, seconds=seconds, psnr=psnr)


def _sample(job: Job, host: DiffusersHost, start: Callable[[int], Tensor], guide: Guide | None) -> Sampled:
    from rival_ext.method.inversion import part_of
    from rival_ext.method.layers import count_rows

    begun = time.perf_counter()
    images = []
    with count_rows(host.unet) as rows, _progress("Sampling") as advance:
        for index, seed in enumerate(_seeds(job)):
            latents = host.sample(start(seed), [seed], guide, part_of(advance, index, job.number))
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
    from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT
    from rival_ext.storage.disk import DiskStore
    from rival_ext.storage.store import NoStore

    if job.keep_inversions is None:
        return NoStore()
    checkpoint = (job.checkpoint or DEMO_CHECKPOINT).resolve()
    made_by = [__version__, str(checkpoint), checkpoint.stat().st_size, checkpoint.stat().st_mtime_ns]
    return DiskStore(job.keep_inversions, made_by, host.unet.device, host.memory_budget()).open()


def _read_mask(job: Job, settings: Settings) -> Image.Image | None:
    if job.mask is None:
        if settings.mode == "inpaint":
            raise RivalError("mode inpaint needs --mask, an image that is white where PHOTO is filled.")
        return None
    mask = grey_mask(read_image("--mask", job.mask))
    if np.asarray(mask).max() < 255:
        raise RivalError(f"--mask {job.mask} has no white part; paint white what is to be filled.")
    return mask


def _load_host(job: Job, settings: Settings, photo: Image.Image, mask: Image.Image | None) -> DiffusersHost:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # imported late: `--help` and bad input answer at once
    from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline, quieten_libraries
    from rival_ext.hosts.diffusers import DiffusersHost, Request

    quieten_libraries()
    pipeline = load_pipeline(job.checkpoint or DEMO_CHECKPOINT)
    guidance = job.cfg or GUIDANCE[settings.mode]
    request = Request(job.prompt, settings.exemplar_prompt, guidance, job.sampler, job.steps, settings.exact)
    images = _request_images(job, settings, pipeline, photo, mask)
    return DiffusersHost(pipeline, request, images, lambda done, total: None)


def _request_images(
    job: Job, settings: Settings, pipeline: StableDiffusionPipeline, photo: Image.Image, mask: Image.Image | None
) -> RequestImages:
    from rival_ext.hosts.checkpoint import native_size, size_unit
    from rival_ext.hosts.diffusers import RequestImages

    size = job.size or native_size(pipeline, photo)
    canvas = fit(photo, size)
    exemplars = []
    for one in settings.exemplar_inputs:
        image = canvas
        if one.image is not None or settings.mode == "text":
            # an aspect of its own: no part of the exemplar has to lie where a part of the images lies
            image = on_white(one.image or photo)
            image = fit(image, size_of_area(image, math.sqrt(size[0] * size[1]), size_unit(pipeline)))
        exemplars.append(one._replace(image=image, mask=one.mask and fit(grey_mask(one.mask), image.size)))
    if not exemplars:
        raise RivalError("weight leaves no exemplar; raise one of the weights above 0.")
    return RequestImages(exemplars, size, canvas if mask else None, mask and fit(mask, size))


def _over_canvas(images: RequestImages, image: Image.Image) -> Image.Image:
    """Put the canvas's own pixels where they are kept."""
    if images.canvas is None or images.mask is None:
        return image
    return Image.composite(image, images.canvas, images.mask)


def _seeds(job: Job) -> range:
    return range(job.seed, job.seed + job.number)


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


@contextmanager
def _all_or_nothing(out: Path) -> Iterator[Path]:
    """A folder whose files appear in `out` together, when all of them are written."""
    existed = out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out) as folder:
            yield Path(folder)
            for file in sorted(Path(folder).iterdir()):
                os.replace(file, out / file.name)
    except OSError as error:
        if not existed:
            shutil.rmtree(out, ignore_errors=True)
        raise _unwritable(out, error) from None


def _refuse_folder(out: Path) -> None:
    """Nothing of the user's is overwritten: an `out` that holds other files than an earlier run's is refused."""
    try:
        is_file, holds_something = out.exists() and not out.is_dir(), out.is_dir() and any(out.iterdir())
        is_of_earlier_run = (out / "report.json").is_file()
    except (OSError, ValueError) as error:
        raise _unwritable(out, error) from None
    if is_file:
        raise RivalError(f"--out {out} is a file; give a folder.")
    if holds_something and not is_of_earlier_run:
        raise RivalError(f"--out {out} holds other files; give a new or empty folder.")


def _unwritable(out: Path, error: Exception) -> RivalError:
    return RivalError(f"--out {out} cannot be written: {getattr(error, 'strerror', None) or error}.")


def _complain(sentence: str) -> int:
    # in one line, and of a file's name nothing that a terminal would take for a command
    line = " ".join(sentence.split())
    click.echo("".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line), err=True)
    return 2
