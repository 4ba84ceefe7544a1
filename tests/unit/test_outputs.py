"""The folder of a run: all of its files appear or none, an earlier run's go, and nothing of the user's is touched."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress

import pytest

from rival_ext import outputs
from rival_ext.errors import RivalError
from rival_ext.outputs import files_entry, image_name, prepare_folder, replaced_run


def write_run(out, number, text):
    """A run whose files hold `text`."""
    prepare_folder(out, number)
    with replaced_run(out) as folder:
        for index in range(number):
            (folder / image_name(index)).write_text(text)
        (folder / "sheet.png").write_text(text)
        (folder / "report.json").write_text(json.dumps({"text": text, "files": files_entry(folder, {})}))


def held(out):
    return {file.name: file.read_text() for file in out.iterdir() if file.is_file() and file.name != "report.json"}


def run_of(number, text):
    return {**{image_name(index): text for index in range(number)}, "sheet.png": text}


def refusal(out, number=4):
    before = held(out)
    with pytest.raises(RivalError) as refused:
        prepare_folder(out, number)
    assert held(out) == before
    return str(refused.value)


@pytest.mark.parametrize(("first", "second"), [(4, 2), (2, 4), (3, 3)])
def test_a_run_takes_the_place_of_an_earlier_one(tmp_path, first, second):
    out = tmp_path / "out"
    write_run(out, first, "old")
    write_run(out, second, "new")
    assert held(out) == run_of(second, "new")
    assert sorted(path.name for path in out.iterdir()) == sorted([*run_of(second, "new"), "report.json"])


def test_files_of_the_users_stay(tmp_path):
    write_run(tmp_path, 4, "old")
    for name in ("notes.txt", "004.png", "1234.png"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "003.png").write_text("retouched")
    write_run(tmp_path, 2, "new")
    mine = {"notes.txt": "mine", "004.png": "mine", "1234.png": "mine", "003.png": "retouched"}
    assert held(tmp_path) == run_of(2, "new") | mine


@pytest.mark.parametrize("name", ["000.png", "003.png", "sheet.png"])
def test_a_file_that_was_changed_is_not_replaced(tmp_path, name):
    write_run(tmp_path, 4, "old")
    (tmp_path / name).write_text("retouched")
    assert refusal(tmp_path) == (
        f"RIVAL: --out {tmp_path} holds {name}, which no earlier run wrote or which has changed since; "
        "give a new or empty folder."
    )


def test_a_larger_run_does_not_replace_a_file_of_the_users(tmp_path):
    write_run(tmp_path, 2, "old")
    (tmp_path / "002.png").write_text("mine")
    assert "holds 002.png" in refusal(tmp_path)
    write_run(tmp_path, 2, "new")
    assert held(tmp_path) == run_of(2, "new") | {"002.png": "mine"}


@pytest.mark.parametrize("report", ["", "[]", "{}", '{"files": 5}', '{"files": {"000.png": "x"}}', "[" * 100_000])
def test_a_report_of_something_else_is_not_replaced(tmp_path, report):
    (tmp_path / "report.json").write_text(report)
    assert "holds report.json, which no earlier run wrote" in refusal(tmp_path)


def test_what_a_report_lists_beyond_a_runs_names_is_not_removed(tmp_path):
    out = tmp_path / "out"
    write_run(out, 1, "old")
    (out / "holiday.jpg").write_text("mine")
    (tmp_path / "precious").write_text("mine")
    listed = files_entry(out, {})
    listed["../precious"] = listed["holiday.jpg"]
    (out / "report.json").write_text(json.dumps({"files": listed}))
    write_run(out, 1, "new")
    assert held(out) == run_of(1, "new") | {"holiday.jpg": "mine"}
    assert (tmp_path / "precious").read_text() == "mine"


class Cut(BaseException):
    """Stands for the end of the process."""


def cut_at(monkeypatch, number):
    """Let the process end instead of the `number`th change of the file system; also what cleans up is cut off then."""
    left = [number]

    def counted(change):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Cut
            return change(*arguments, **options)

        return call

    monkeypatch.setattr(outputs.os, "replace", counted(os.replace))
    monkeypatch.setattr(outputs.os, "unlink", counted(os.unlink))
    monkeypatch.setattr(outputs.os, "rmdir", counted(os.rmdir))
    monkeypatch.setattr(outputs.shutil, "rmtree", counted(shutil.rmtree))


@pytest.mark.parametrize("changes", range(1, 12))
def test_a_run_that_is_cut_short_is_whole_after_the_next_look(tmp_path, monkeypatch, changes):
    out = tmp_path / "out"
    write_run(out, 4, "old")
    (out / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:
        cut_at(patch, changes)
        with suppress(Cut):
            write_run(out, 2, "new")
        assert (out / "notes.txt").read_text() == "mine"
    prepare_folder(out, 1)
    assert held(out) in (run_of(4, "old") | {"notes.txt": "mine"}, run_of(2, "new") | {"notes.txt": "mine"})
    write_run(out, 1, "newest")
    assert held(out) == run_of(1, "newest") | {"notes.txt": "mine"}
    assert [path.name for path in out.iterdir() if path.is_dir()] == []


def test_a_run_that_fails_leaves_the_earlier_one(tmp_path):
    write_run(tmp_path / "out", 2, "old")
    for out in (tmp_path / "out", tmp_path / "new"):
        with suppress(Cut), replaced_run(out) as folder:
            (folder / "000.png").write_text("half")
            raise Cut
    assert held(tmp_path / "out") == run_of(2, "old")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert refusal_of(tmp_path / "file") == f"RIVAL: --out {tmp_path / 'file'} is a file; give a folder."
    assert "Not a directory" in refusal_of(tmp_path / "file" / "out")
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: path != tmp_path)
    assert refusal_of(tmp_path / "a" / "b").endswith("cannot be written: Permission denied.")


def refusal_of(out):
    with pytest.raises(RivalError) as refused:
        prepare_folder(out, 1)
    return str(refused.value)
