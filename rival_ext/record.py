"""What a run writes so that it can be repeated, and reading that back for `--from`.

`report.json` and each PNG hold the run's options under "run": files by their path, relative to the folder of the run,
and their SHA-256. A PNG also holds the WebUI's infotext.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from rival_ext import __version__
from rival_ext.errors import RivalError, short_repr
from rival_ext.fields import INFOTEXT_FIELDS
from rival_ext.files import refuse_unreadable
from rival_ext.images.decoding import MEGABYTE, MEGABYTES, png_texts
from rival_ext.infotext import HIRES_REPORT, MODE, REPORT, read_infotext, settings_to_infotext, write_infotext
from rival_ext.settings import Settings

RUN, VERSION = "run", "version"
"""The keys of a report, and of the record in a PNG, that hold the run's options and RIVAL's version."""

RECORD_CHUNK, INFOTEXT_CHUNK = "rival", "parameters"
"""The text chunks of a PNG. The WebUI reads the second one."""

WEBUI_SAMPLERS: dict[str, tuple[str, str | None]] = {
    "ddim": ("DDIM", None),
    "euler": ("Euler", "Uniform"),
    "euler-a": ("Euler a", "Uniform"),
    "dpm++2m": ("DPM++ 2M", "Uniform"),
    "dpm++2m-karras": ("DPM++ 2M", "Karras"),
}
"""The command line's samplers: the WebUI's sampler and schedule. DDIM uses no schedule."""

AUTOMATIC_SCHEDULES = {"Euler": "Uniform", "Euler a": "Uniform", "DPM++ 2M": "Karras"}
"""What the WebUI's schedule Automatic is with each sampler."""

WEBUI_OPTIONS = {
    "Steps": "steps",
    "CFG scale": "cfg",
    "Seed": "seed",
    "Size": "size",
    "Denoising strength": "denoise",
    **{one.infotext: one.name for one in INFOTEXT_FIELDS},
}
"""The parameters of an infotext that are an option of the command line."""

ACCEPTED = {"RNG": ("CPU",), "Clip skip": ("1",)}
"""The parameters that are no option, with the values that the command line always has."""

WITHOUT_EFFECT = ("Model", "Version", "User", "Init image hash", "RIVAL version", REPORT, HIRES_REPORT)
READ_ELSEWHERE = ("Sampler", "Schedule type", "Model hash")

WEBUI_SYNTAX = re.compile(r"(?<!\\)[()\[\]]|\bAND\b|\bBREAK\b")
"""What the WebUI does not read as words in a prompt, besides tags."""

FILES_TO_REPEAT = "a report.json or a PNG of an earlier run"


@dataclass(frozen=True)
class Recorded:
    """An earlier run, as `--from` reads it.

    Attributes:
        source: The report or PNG.
        options: The values of options by their names, as texts.
        hashes: For each file the SHA-256 of what it held, or the beginning of that.
        notes: Sentences for the report of the run that repeats it.
    """

    source: Path
    options: Mapping[str, str]
    hashes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def file_entry(path: Path, sha256: str, folder: Path) -> dict[str, str]:
    """Describe a file that a run has read.

    Args:
        path: The file.
        sha256: The hash of its bytes.
        folder: The folder of the run.

    Returns:
        Its path from that folder, or from the root if there is no way, and the hash.
    """
    try:
        written = os.path.relpath(path, folder)
    except ValueError:  # on another drive of Windows
        written = os.path.abspath(path)
    return {"path": Path(written).as_posix(), "sha256": sha256}


def png_info(run: Mapping[str, Any], settings: Settings, report: str) -> PngInfo:
    """Make the text chunks of an image.

    Args:
        run: The options of a run that makes this image alone.
        settings: The settings of the run.
        report: The run's report in one line.

    Returns:
        The record for `--from`, and the infotext for the WebUI.
    """
    sampler, schedule = WEBUI_SAMPLERS[run["sampler"]]
    parameters = {
        "Steps": run["steps"],
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": run["cfg"],
        "Seed": run["seed"],
        "Size": run["size"],
        "Model hash": run["checkpoint"]["sha256"][:10],
        "Model": Path(run["checkpoint"]["path"]).stem,
    }
    if not run["plain"] or run["denoise"] < 1:
        parameters["Denoising strength"] = f"{run['denoise']:g}"
    if not run["plain"]:
        parameters |= {**settings_to_infotext(settings), REPORT: report}
    info = PngInfo()
    info.add_text(INFOTEXT_CHUNK, write_infotext(run["prompt"], parameters | {"RIVAL version": __version__}))
    info.add_text(RECORD_CHUNK, json.dumps({VERSION: __version__, RUN: run}))
    return info


def read_record(source: Path) -> Recorded:
    """Read what a run wrote.

    Args:
        source: A `report.json`, a PNG of the command line, or a PNG that the WebUI made with RIVAL.

    Returns:
        The run.

    Raises:
        RivalError: The file holds no run, or one that the command line cannot repeat.
    """
    refuse_unreadable("--from", source, FILES_TO_REPEAT)
    try:
        with source.open("rb") as file:
            data = file.read(MEGABYTES * MEGABYTE)
    except OSError:
        raise RivalError(f"--from {source} cannot be opened; give a file that you may read.") from None
    texts = png_texts(data)
    if INFOTEXT_CHUNK in texts and RECORD_CHUNK not in texts:
        return _from_infotext(source, texts[INFOTEXT_CHUNK])
    return _from_json(source, texts.get(RECORD_CHUNK, data))


def _from_json(source: Path, text: str | bytes) -> Recorded:
    try:
        record = json.loads(text)
        run, version = dict(record[RUN]), str(record[VERSION])
        files = {name: entry for name, entry in run.items() if isinstance(entry, dict)}
        paths = {name: os.path.normpath(source.parent / entry["path"]) for name, entry in files.items()}
        hashes = {name: str(entry["sha256"]) for name, entry in files.items()}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise RivalError(f"--from {source} holds no run that can be repeated; give {FILES_TO_REPEAT}.") from None
    options = {name: str(value) for name, value in run.items() if value is not None} | paths
    notes = () if version == __version__ else (f"repeats a run of RIVAL {version} and images can differ from its own",)
    return Recorded(source, options, hashes, notes)


def _from_infotext(source: Path, text: str) -> Recorded:
    prompt, negative_prompt, parameters = read_infotext(text)
    if MODE not in parameters:
        raise RivalError(f"--from {source} was made without RIVAL; give {FILES_TO_REPEAT}.")
    if negative_prompt:
        raise RivalError(f"--from {source} has a negative prompt, which the command line does not take.")
    if WEBUI_SYNTAX.search(prompt):
        raise RivalError(
            f"--from {source} has weights or other syntax of the WebUI in its prompt, which the command line reads as "
            "words; give the words as --prompt without --from."
        )
    for name, value in parameters.items():
        known = name in WEBUI_OPTIONS or name in WITHOUT_EFFECT or name in READ_ELSEWHERE
        if not known and value not in ACCEPTED.get(name, ()):
            raise RivalError(f"--from {source} has {short_repr(f'{name}: {value}')}, which the command line cannot do.")
    options = {WEBUI_OPTIONS[name]: value for name, value in parameters.items() if name in WEBUI_OPTIONS}
    options |= {"prompt": prompt, "number": "1", "sampler": _sampler_of(source, parameters)}
    hashes = {"checkpoint": parameters["Model hash"]} if "Model hash" in parameters else {}
    return Recorded(source, options, hashes, ("repeats a run of the WebUI and images can differ from its own",))


def _sampler_of(source: Path, parameters: Mapping[str, str]) -> str:
    sampler, schedule = parameters.get("Sampler", ""), parameters.get("Schedule type", "Automatic")
    if schedule == "Automatic" or sampler == "DDIM":
        schedule = AUTOMATIC_SCHEDULES.get(sampler, schedule)
    for name, (webui_sampler, webui_schedule) in WEBUI_SAMPLERS.items():
        if sampler == webui_sampler and webui_schedule in (None, schedule):
            return name
    raise RivalError(
        f"--from {source} has {short_repr(f'{sampler}, {schedule}')}, which is none of the command line's samplers."
    )
