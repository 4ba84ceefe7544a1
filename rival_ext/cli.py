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
from typing import TYPE_CHECKING, Any, NoReturn

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from rival_ext import __version__
from rival_ext.errors import RivalError
from rival_ext.pictures import contact_sheet, fit, grey_mask, on_white, read_picture, size_of_area
from rival_ext.report import Report
from rival_ext.settings import FIELDS, GUIDANCE, Field, Settings, is_writable, parse_settings, shown
from rival_ext.verdict import exactness, judge

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from rival_ext.archive import Archive
    from rival_ext.guide import Guide
    from rival_ext.hosts.diffusers import DiffusersHost, Scene

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
                f"{shown(value)} must be WIDTHxHEIGHT, each a multiple of 8 from 64 to {LARGEST_SIDE}.", param, ctx
            )
        return sides[0], sides[1]


class Guidance(click.FloatRange):
    """A float range in which a value that is no number has no place."""

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
    if field.is_picture:
        return {"type": click.Path(path_type=Path)}
    if field.default is False:
        return {"is_flag": True}
    # shown as text, since a default that differs by mode must not count as given
    shown = {"show_default": str(field.default) if field.default != "" else "empty"}
    return shown | {"type": click.Choice(field.choices) if field.choices else type(field.default)}


@click.command("python -m rival_ext", context_settings={"max_content_width": 110})
@click.argument("photo", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for images, sheet and report.")
@click.option("--prompt", default="", help="What to draw; empty takes content and style from the photo alone.")
@click.option("-n", "number", type=click.IntRange(1, 999), default=4, show_default=True, help="How many variations.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=1, show_default=True, help="Seed of the first one.")
@click.option("--steps", type=click.IntRange(2, 500), default=50, show_default=True, help="Sampling steps.")
@click.option("--mask", type=click.Path(path_type=Path), help="For inpainting: white where PHOTO is filled.")
@click.option("--size", type=Size(), help="Of the images; without it the photo's aspect at the native area.")
@click.option("--cfg", type=Guidance(1, 30), show_default="5, 7 but for variation", help="Guidance scale; 1 is off.")
@click.option("--sampler", type=click.Choice(SAMPLERS), default="ddim", show_default=True, help="Sampler.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="An SD 1.x .safetensors; else the demo model.")
@click.option(
    "--keep-inversions",
    type=click.Path(path_type=Path),
    help="Folder to keep inversions in: a next run with the same photo, checkpoint, sampler and steps inverts nothing. "
    "Some 450 MB each for 20 steps at 512x512.",
)
@click.option("--plain", is_flag=True, help="Generate without RIVAL, from the same seeds, for comparison.")
@click.option("--check", is_flag=True, help="Also reconstruct the photo and report the PSNR.")
@setting_options
def command(**options: Any) -> None:
    """Makes variations of PHOTO in the folder --out: 000.png ..., sheet.png and report.json."""
    given = {field.name: options.pop(field.name) for field in OFFERED}
    given = {name: value for name, value in given.items() if value is not None}
    for field in OFFERED:
        if field.is_picture and field.name in given:
            given[field.name] = read_picture(field.flag, given[field.name])
    vary(Job(**options), parse_settings(given | {"enabled": True}))


def vary(job: Job, settings: Settings) -> None:
    """Makes the images, the contact sheet and the report; writes all of them or nothing."""
    if not is_writable(job.prompt):
        raise RivalError(f"--prompt must be text without broken characters, not {shown(job.prompt)}.")
    photo = on_white(read_picture("the photo", job.photo))
    hole = _read_hole(job, settings)
    _refuse_folder(job.out)
    host = _load_host(job, settings, photo, hole)
    report = Report("plain" if job.plain else settings.mode, settings.t_align, settings.t_early)
    images = _generate(job, settings, host, report)
    captions = ["photo", *(f"seed {seed}" for seed in _seeds(job))]
    with _all_or_nothing(job.out) as folder:
        for index, image in enumerate(images):
            image.save(folder / f"{index:03d}.png")
        contact_sheet([fit(photo, host.scene.size), *images], captions).save(folder / "sheet.png")
        (folder / "report.json").write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    click.echo(f"{len(images)} images and {job.out / 'sheet.png'}: {report.summary()}")
    if report.inversion.psnr is not None:
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


def _generate(job: Job, settings: Settings, host: DiffusersHost, report: Report) -> list[Image.Image]:
    from rival_ext.attention import count_rows
    from rival_ext.inversion import part_of

    guide = None if job.plain else _prepare(job, settings, host, report)
    begun = time.perf_counter()
    images = []
    with count_rows(host.unet) as rows, _progress("Sampling") as advance:
        for index, seed in enumerate(_seeds(job)):
            report.steps.total = report.steps.injected = report.steps.aligned = 0
            start = guide.start([seed], host.latent_size) if guide else host.noise(seed)
            latents = host.sample(start, [seed], guide, part_of(advance, index, job.number))
            images += [_over_canvas(host.scene, image) for image in host.decode(latents)]
    if guide is None:
        report.steps.total = len(rows) // job.number
    report.rows.generation = sum(rows)
    report.seconds.generation = time.perf_counter() - begun
    return images


def _prepare(job: Job, settings: Settings, host: DiffusersHost, report: Report) -> Guide:
    from rival_ext.inversion import reconstruct
    from rival_ext.prepare import prepare

    with _progress("Inverting") as host.progress:
        guide = prepare(host, settings, _archive(job, host), report)
    if job.check:
        with _progress("Checking") as advance:
            reconstruction = reconstruct(guide.exemplars[0].chain, host.predict_noise, advance)
        ceiling, back = host.decode(host.exemplar_latent()), host.decode(reconstruction)
        report.inversion.psnr = exactness(ceiling[0], back[0])
    return guide


def _archive(job: Job, host: DiffusersHost) -> Archive | None:
    from rival_ext.archive import Archive
    from rival_ext.hosts.diffusers import DEMO_CHECKPOINT

    if job.keep_inversions is None:
        return None
    checkpoint = (job.checkpoint or DEMO_CHECKPOINT).resolve()
    made_by = [__version__, str(checkpoint), checkpoint.stat().st_size, checkpoint.stat().st_mtime_ns]
    return Archive(job.keep_inversions, made_by, host.unet.device, host.memory_budget())


def _read_hole(job: Job, settings: Settings) -> Image.Image | None:
    if job.mask is None:
        if settings.mode == "inpaint":
            raise RivalError("mode inpaint needs --mask, a picture that is white where PHOTO is filled.")
        return None
    hole = grey_mask(read_picture("--mask", job.mask))
    if np.asarray(hole).max() < 255:
        raise RivalError(f"--mask {job.mask} has no white; what is white is filled.")
    return hole


def _load_host(job: Job, settings: Settings, photo: Image.Image, hole: Image.Image | None) -> DiffusersHost:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # imported late: `--help` and bad input answer at once
    from rival_ext.hosts.diffusers import DEMO_CHECKPOINT, DiffusersHost, Request, load_pipeline, quieten_libraries

    quieten_libraries()
    pipeline = load_pipeline(job.checkpoint or DEMO_CHECKPOINT)
    guidance = job.cfg or GUIDANCE[settings.mode]
    request = Request(job.prompt, settings.exemplar_prompt, guidance, job.sampler, job.steps, settings.exact)
    scene = _scene(job, settings, pipeline, photo, hole)
    return DiffusersHost(pipeline, request, scene, lambda done, total: None)


def _scene(
    job: Job, settings: Settings, pipeline: StableDiffusionPipeline, photo: Image.Image, hole: Image.Image | None
) -> Scene:
    from rival_ext.hosts.diffusers import Scene, Shown, native_size, size_unit

    size = job.size or native_size(pipeline, photo)
    canvas = fit(photo, size)
    exemplars = []
    for slot in settings.slots:
        image = canvas
        if slot.image is not None or settings.mode == "text":
            # its own aspect: nothing of it has to lie where something of the images does
            image = on_white(slot.image or photo)
            image = fit(image, size_of_area(image, math.sqrt(size[0] * size[1]), size_unit(pipeline)))
        exemplars.append(Shown(image, slot.mask and fit(grey_mask(slot.mask), image.size), slot.weight))
    if not exemplars:
        raise RivalError("weight leaves no exemplar; raise one of the weights above 0.")
    return Scene(exemplars, size, canvas if hole else None, hole and fit(hole, size))


def _over_canvas(scene: Scene, image: Image.Image) -> Image.Image:
    """An image with the canvas's own pixels where they are kept."""
    if scene.canvas is None or scene.hole is None:
        return image
    return Image.composite(image, scene.canvas, scene.hole)


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
