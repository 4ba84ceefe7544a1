"""The command line: variations of a photo without any WebUI."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from PIL import Image

from rival_ext import __version__
from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import DEFAULTS, FIELDS, Field
from rival_ext.files import NamedFile, NamedImage, read_image_file
from rival_ext.images.transforms import contact_sheet, grey_mask, mask_array, on_white
from rival_ext.outputs import FILES, REPORT, SHEET, files_entry, image_name, prepare_folder, refuse_file, replaced_run
from rival_ext.record import RUN, VERSION, WEBUI_SAMPLERS, Recorded, file_entry, png_info, read_record
from rival_ext.settings import (
    GUIDANCE,
    WITHOUT_PROMPT,
    best_denoising_strength,
    changed_values,
    is_encodable,
    mode_defaults,
    parse_settings,
    preset_values,
    steps_made,
)
from rival_ext.usage import Run, check_usage, flag, in_options
from rival_ext.variations import THE_PHOTO, Job, Made, make, refuse_unset

SAMPLERS = tuple(WEBUI_SAMPLERS)
LARGEST_SIDE = 2048
LAST_SEED = 2**32 - 1
SIZE = re.compile(r"(\d{1,4})x(\d{1,4})", re.ASCII)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
TAG = re.compile(r"<\w+:[^>]*>")
"""What the WebUI reads as a LoRA or another network in a prompt."""

OFFERED = tuple(field for field in FIELDS if field.name != "enabled")
"""The fields of the settings that have an option."""

FOLDERS = {"out", "keep_inversions"}
"""The options that name a folder to write into. No report may name one: anybody may have written the report."""

IMAGES = ("photo", "mask", *(field.name for field in OFFERED if field.is_image))
"""The options that name an image."""


class FilePath(click.ParamType[Path]):
    """A path. An address is refused as it is written, which a path would not keep."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if ADDRESS.match(str(value)):
            self.fail(f"{value} is an address, and no address is opened; give a path on this computer.", param, ctx)
        return Path(value)


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


class Number(click.FloatRange):
    """A float range that refuses NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class Call:
    """One call of the command: its options, which of them the user chose, and what is said of them.

    Args:
        ctx: The context of the command.
        options: The values of all options. Those that a chosen preset sets are removed by `forget_what_presets_set`.
    """

    def __init__(self, ctx: click.Context, options: dict[str, Any]):
        self.options = options
        self.defaults = {param.name: param.default for param in ctx.command.params}
        self.recorded: Recorded = ctx.obj or Recorded(Path(), {})
        self.chosen = {name for name in options if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        self.notes = list(self.recorded.notes)

    def forget_what_presets_set(self) -> None:
        """Let a mode or a similarity that is given beside `--from` set what it sets, as in the panel."""
        taken = self.recorded.options
        presets = [name for name in self.chosen & {"mode", "similarity"} if str(self.options[name]) != taken.get(name)]
        for name in preset_values({name: DEFAULTS[name] for name in presets}).keys() - self.chosen:
            self.options[name] = None

    def given(self, values: Mapping[str, Any]) -> set[str]:
        """Return the names of the options with a value that is not just their default."""
        defaults = self.defaults | mode_defaults(values["mode"]) | _defaults_of_run(values)
        taken = (name for name in self.recorded.options if values[name] is not False)
        several = {"number"} if values["number"] > 1 else set()
        return (self.chosen - {"number"}) | {name for name in taken if values[name] != defaults[name]} | several

    def read_image(self, name: str, path: Path) -> NamedImage:
        """Read the image that an option names."""
        label = THE_PHOTO if name == "photo" else flag(name)
        if name not in self.chosen and name in self.recorded.hashes and not path.exists():
            raise RivalError(
                f"{label} {path} of --from {self.recorded.source} does not exist; give it as {flag(name)}."
            )
        file = read_image_file(label, path)
        self._compare(name, f"{label} {path}", file.sha256)
        return file

    def checkpoint(self, path: Path | None) -> NamedFile:
        """Look into the checkpoint, by default the demo's."""
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        # imported late: `--help` and bad input answer at once
        from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, identify

        file = NamedFile(path or DEMO_CHECKPOINT, identify(path or DEMO_CHECKPOINT))
        self._compare("checkpoint", f"the checkpoint {file.path}", file.sha256)
        return file

    def _compare(self, name: str, what: str, sha256: str) -> None:
        """Refuse another file than that of the run that is repeated, unless the user chose it; then say so."""
        expected = self.recorded.hashes.get(name)
        if expected is None or sha256.startswith(expected):
            return
        if name not in self.chosen:
            raise RivalError(
                f"{what} is not the file of --from {self.recorded.source}, which had the SHA-256 {expected[:10]}; give "
                f"{flag(name)} to use it or another one."
            )
        self.notes.append(f"{flag(name)} is another file than in the run that is repeated")


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds an option for each field of the settings but the switch, with its own help and default."""
    for field in reversed(OFFERED):
        command = click.option(field.flag, default=None, help=f"{field.help}.", **_option_kind(field))(command)
    return command


def _option_kind(field: Field) -> dict[str, Any]:
    if field.is_image:
        return {"type": FilePath()}
    if field.default is False:
        return {"is_flag": True}
    # shown as text, since a default that differs by mode must not count as given
    shown = {"show_default": str(field.default) if field.default != "" else "empty"}
    return shown | {"type": click.Choice(field.choices) if field.choices else type(field.default)}


def _repeat(ctx: click.Context, param: click.Parameter, source: Path | None) -> None:
    """Take the options of an earlier run as defaults of this one."""
    if source is None:
        return
    recorded = read_record(source)
    repeatable = {one.name for one in ctx.command.params} - FOLDERS
    if unknown := recorded.options.keys() - repeatable:
        raise RivalError(f"--from {source} has an option that is not known here: {short_repr(min(unknown))}.")
    # a run that names no denoising strength, such as one in txt2img, was made at 1
    ctx.obj, ctx.default_map = recorded, {"denoise": "1", **recorded.options}


@click.command("python -m rival_ext", context_settings={"max_content_width": 110})
@click.argument("photo", type=FilePath())
@click.option("--out", type=FilePath(), required=True, help="Folder for images, sheet and report.")
@click.option(
    "--from",
    "source",
    type=FilePath(),
    is_eager=True,
    expose_value=False,
    callback=_repeat,
    help="A report.json or a PNG of an earlier run, which is repeated: everything but --out is taken from it, PHOTO "
    "too. Options that are given beside it win.",
)
@click.option("--prompt", default="", help="What to draw. If empty, content and style come from the photo alone.")
@click.option("-n", "number", type=click.IntRange(1, 999), default=4, show_default=True, help="How many variations.")
@click.option("--seed", type=click.IntRange(0, LAST_SEED), default=1, show_default=True, help="Seed of the first one.")
@click.option("--steps", type=click.IntRange(2, 500), default=50, show_default=True, help="Sampling steps.")
@click.option("--mask", type=FilePath(), help="For inpainting: white where PHOTO is filled.")
@click.option(
    "--size",
    type=Size(),
    help="Size of the images. Default: the photo's aspect ratio, with as many pixels as the checkpoint was made for.",
)
@click.option("--cfg", type=Number(1, 30), show_default="5 in mode variation, else 7", help="Guidance scale; 1 is off.")
@click.option(
    "--denoise",
    type=Number(0, 1, min_open=True),
    show_default=f"1; {WITHOUT_PROMPT:g} in mode variation without --prompt, --exemplar and --mask",
    help="How far the images leave the photo: near 0 they are the photo, at 1 they take only content and style "
    "from it. This share of --steps is made.",
)
@click.option("--sampler", type=click.Choice(SAMPLERS), default="ddim", show_default=True, help="Sampler.")
@click.option("--checkpoint", type=FilePath(), help="An SD 1.x .safetensors file. Default: the demo model.")
@click.option(
    "--keep-inversions",
    type=FilePath(),
    help="Folder to store inversions in. The next run with the same photo and checkpoint finds the inversion there, "
    "in modes edit and inpaint also only with the same sampler and steps. Each takes about 100 MB at 512x512.",
)
@click.option("--plain", is_flag=True, help="Generate without RIVAL, from the same seeds, for comparison.")
@click.option("--check", is_flag=True, help="Also reconstruct the photo and report the PSNR.")
@setting_options
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Makes variations of PHOTO in the folder --out: 000.png ..., sheet.png and report.json."""
    call = Call(ctx, options)
    call.forget_what_presets_set()
    files = {name: call.read_image(name, path) for name in IMAGES if (path := options[name])}
    given = {field.name: options[field.name] for field in OFFERED if options[field.name] is not None}
    images = {name: file.image for name, file in files.items() if name in given}
    settings = parse_settings(given | images | {"enabled": True})
    values = options | dict(settings)
    values |= {name: default for name, default in _defaults_of_run(values).items() if values[name] is None}
    _refuse_values(values)
    call.notes += check_usage(Run(call.given(values), values))
    mask = _mask(values, files)
    prepare_folder(values["out"], values["number"])
    if values["keep_inversions"]:
        refuse_file("--keep-inversions", values["keep_inversions"])
    checkpoint = call.checkpoint(values["checkpoint"])
    job = Job(
        photo=on_white(files["photo"].image),
        mask=mask,
        settings=settings,
        seeds=range(values["seed"], values["seed"] + values["number"]),
        checkpoint=checkpoint.path,
        **{name: values[name] for name in ("prompt", "steps", "size", "cfg", "denoise", "sampler")},
        **{name: values[name] for name in ("keep_inversions", "plain", "check")},
    )
    _write(job, make(job, call.notes), values["out"], files | {"checkpoint": checkpoint})


def main() -> None:
    """Runs the command; bad input is one sentence on standard error and exit code 2."""
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        sys.exit(_complain(error.format_message()))
    except RivalError as error:
        sys.exit(_complain(in_options(str(error))))
    except click.Abort:
        sys.exit(130)


def _defaults_of_run(values: Mapping[str, Any]) -> dict[str, float]:
    """The defaults that depend on other options. They are the same with --plain, so that the two can be compared."""
    varies_photo = values["exemplar"] is None and values["mask"] is None
    denoise = best_denoising_strength(values["mode"], values["prompt"], varies_photo)
    return {"cfg": GUIDANCE[values["mode"]], "denoise": denoise}


def _refuse_values(values: Mapping[str, Any]) -> None:
    """Refuse prompts that would not be read as they are meant, runs without a step, and seeds beyond the last one."""
    steps_made(values["steps"], values["denoise"])
    for name in ("prompt", "exemplar_prompt"):
        if not is_encodable(values[name]):
            raise RivalError(f"{flag(name)} must be text that UTF-8 can encode, not {short_repr(values[name])}.")
        if tag := TAG.search(values[name]):
            raise RivalError(
                f"{flag(name)} has the tag {short_repr(tag[0])}, but the command line reads no LoRAs; remove the tag."
            )
    last = values["seed"] + values["number"] - 1
    if last > LAST_SEED:
        raise RivalError(
            f"--seed {values['seed']} with -n {values['number']} goes beyond {LAST_SEED}; lower one of them."
        )


def _mask(values: Mapping[str, Any], files: Mapping[str, NamedImage]) -> Image.Image | None:
    if "mask" not in files:
        if values["mode"] == "inpaint":
            raise RivalError("mode inpaint needs --mask, an image that is white where PHOTO is filled.")
        return None
    mask = grey_mask(files["mask"].image)
    refuse_unset(mask_array(mask, *mask.size))
    return mask


def _write(job: Job, made: Made, out: Path, files: Mapping[str, NamedFile]) -> None:
    """Write images, contact sheet and report, and say what was done."""
    run: dict[str, Any] = {name: file_entry(file.path, file.sha256, out) for name, file in files.items()}
    run |= {"prompt": job.prompt, "number": len(job.seeds), "seed": job.seeds[0], "steps": job.steps}
    run |= {"size": "{}x{}".format(*made.photo.size), "cfg": job.cfg, "sampler": job.sampler}
    run |= {"denoise": job.denoise}
    run |= {"plain": job.plain, "check": job.check, "mode": job.settings.mode, **changed_values(job.settings)}
    summary = made.report.summary()
    names = [image_name(index) for index in range(len(made.images))]
    captions = ["photo", *(f"seed {seed}" for seed in job.seeds)]
    with replaced_run(out) as folder:
        for name, seed, image in zip(names, job.seeds, made.images, strict=True):
            info = png_info(run | {"seed": seed, "number": 1}, job.settings, summary)
            image.save(folder / name, pnginfo=info)
        sheet = contact_sheet([made.photo, *made.images], captions)
        sheet.save(folder / SHEET, pnginfo=png_info(run, job.settings, summary))
        listed = {FILES: files_entry(folder, dict(zip(names, job.seeds, strict=True)))}
        report = {VERSION: __version__, RUN: run} | made.report.as_dict() | listed
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    click.echo(f"{len(made.images)} image{'s' * (len(made.images) > 1)} and {out / SHEET}: {summary}")
    if made.report.inversion.psnr is not None:
        from rival_ext.method.quality import judge

        click.echo(judge(made.report.inversion.psnr, job.settings, job.steps).sentence)


def _complain(sentence: str) -> int:
    # in one line, and of a file's name nothing that a terminal would take for a command
    line = " ".join(sentence.split())
    click.echo("".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line), err=True)
    return 2
