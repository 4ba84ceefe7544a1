"""The folder that a run writes: all of its files appear, or none, and an earlier run's files make room for them.

`report.json` lists the files of its run with their hashes. By these an earlier run's files are told from the user's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rival_ext.errors import RivalError
from rival_ext.files import file_sha256

REPORT = "report.json"
SHEET = "sheet.png"
FILES = "files"
"""The key of `report.json` that lists the other files of the run."""

OF_A_RUN = re.compile(r"\d{3}\.png|sheet\.png", re.ASCII)
"""The names that the files of a run have. A report that lists others was changed by somebody."""

UNFINISHED, COMPLETE = ".rival-unfinished", ".rival-complete"
"""A run's files are first written into the one folder. It is renamed to the other when nothing is missing, and then
its files are moved out. If that is cut short, the next run moves the rest."""


def image_name(index: int) -> str:
    """Return the name of the file of one image.

    Args:
        index: Its place among the images of the run, from 0.
    """
    return f"{index:03d}.png"


def prepare_folder(out: Path, number: int) -> None:
    """Get a folder ready for a run: move the rest of an earlier run that was cut short, and refuse what cannot be used.

    Args:
        out: The folder. It need not exist, and is not made.
        number: How many images the run will make.

    Raises:
        RivalError: The folder is a file, cannot be written, or holds files of the user's that the run would replace.
    """
    try:
        if not _exists(out):
            _refuse_unwritable(next(folder for folder in out.absolute().parents if folder.exists()), out)
            return
        refuse_file("--out", out)
        _refuse_unwritable(out, out)
        _finish(out)
        _refuse_others(out, {REPORT, SHEET, *map(image_name, range(number))})
    except (OSError, ValueError) as error:
        raise _unwritable(out, error) from None


def refuse_file(option: str, folder: Path) -> None:
    """Refuse a file in place of a folder.

    Args:
        option: The option that names the folder.
        folder: A path that may not exist.

    Raises:
        RivalError: The path exists and is no folder.
    """
    # false for what does not exist and for what cannot be: those are refused where they are written
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise RivalError(f"{option} {folder} is a file; give a folder.")


@contextmanager
def replaced_run(out: Path) -> Iterator[Path]:
    """Offer a folder to write a run's files into. Afterwards they are in `out`, and the earlier run's are gone.

    Args:
        out: The folder of the run, as `prepare_folder` left it.

    Yields:
        An empty folder.

    Raises:
        RivalError: `out` cannot be written.
    """
    existed = out.exists()
    unfinished = out / UNFINISHED
    try:
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        yield unfinished
        _flush(unfinished)
        os.replace(unfinished, out / COMPLETE)
        _finish(out)
    except OSError as error:
        raise _unwritable(out, error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not existed and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def files_entry(folder: Path, seeds: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """List the files of a run for its report.

    Args:
        folder: The folder that holds them and nothing else.
        seeds: The seed of each image, by the name of its file.

    Returns:
        For each file its SHA-256, and its seed if it is an image.
    """
    names = sorted(file.name for file in folder.iterdir())
    return {
        name: {"sha256": file_sha256(folder / name)} | ({"seed": seeds[name]} if name in seeds else {})
        for name in names
    }


def _exists(out: Path) -> bool:
    try:
        out.stat()
    except FileNotFoundError:
        return False
    return True


def _refuse_unwritable(existing: Path, out: Path) -> None:
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RivalError(f"--out {out} cannot be written: Permission denied.")


def _refuse_others(out: Path, written: set[str]) -> None:
    """Refuse a folder that holds other files than an earlier run's, or that holds them where this run writes."""
    names = {file.name for file in out.iterdir()} - {UNFINISHED}
    if names and REPORT not in names:
        raise RivalError(f"--out {out} holds other files; give a new or empty folder.")
    foreign = (names & written) - {REPORT} - _earlier_files(out).keys()
    if REPORT in names and _files_in_report(out) is None:
        foreign = {REPORT}
    if foreign:
        raise RivalError(
            f"--out {out} holds {min(foreign)}, which no earlier run wrote or which has changed since; "
            "give a new or empty folder."
        )


def _finish(out: Path) -> None:
    """Move the files of a complete run out of their folder. It can be cut short anywhere and begun again."""
    complete = out / COMPLETE
    if not complete.is_dir():
        return
    # the old report tells what is stale, so the new report takes its place last
    if (complete / REPORT).is_file():
        for name in _earlier_files(out).keys() - (_files_in_report(complete) or {}).keys():
            (out / name).unlink(missing_ok=True)
    for file in sorted(complete.iterdir(), key=lambda file: (file.name == REPORT, file.name)):
        os.replace(file, out / file.name)
    complete.rmdir()


def _earlier_files(out: Path) -> dict[str, str]:
    """The files of an earlier run that are still as it wrote them, with their hashes."""
    listed = _files_in_report(out) or {}
    return {
        name: sha256 for name, sha256 in listed.items() if (out / name).is_file() and file_sha256(out / name) == sha256
    }


def _files_in_report(folder: Path) -> dict[str, str] | None:
    """The hashes of a run's files by their names, after its report. None if that is no report of a run."""
    try:
        listed = json.loads((folder / REPORT).read_text())[FILES]
        return {name: str(entry["sha256"]) for name, entry in listed.items() if OF_A_RUN.fullmatch(name)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _flush(folder: Path) -> None:
    """Make sure that the files are on the disk before anything earlier is replaced."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _unwritable(out: Path, error: Exception) -> RivalError:
    return RivalError(f"--out {out} cannot be written: {getattr(error, 'strerror', None) or error}.")
