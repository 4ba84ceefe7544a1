"""Chains in a folder: a chain is read back as it was written, whole or not at all."""

from __future__ import annotations

import json
import os
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from rival_ext.errors import RivalError
from rival_ext.hosts.checkpoint import DEMO, DEMO_CHECKPOINT
from rival_ext.method.chain import Chain
from rival_ext.storage.disk import DiskStore
from tests.unit.synthetic import anything

QUICK = ("-n", 1, "--steps", 2, "--size", "64x64", "--denoise", 1)
PHOTO = DEMO / "pizza.png"
LAYERS = ("down.2.attn1", "down.10.attn1", "up.1.attn1")
"""Names whose order in the network is not alphabetical."""


def chain(nodes=3, recorded=3, visits=""):
    levels = torch.arange(nodes + 1, dtype=torch.float64)
    features = {node: {layer: torch.randn(1, 4, 2).half() for layer in LAYERS} for node in range(1, recorded + 1)}
    return Chain(levels, torch.randn(nodes + 1, 4, 2, 2), features, 7, 0.125, 0.5, nodes, visits)


def disk_store(folder, *made_by, budget=1e9):
    return DiskStore(folder, made_by, torch.device("cpu"), budget)


@pytest.mark.parametrize("recorded", [0, 2, 3])
def test_a_chain_is_read_as_it_was_written_with_its_layers_in_order(tmp_path, recorded):
    kept = chain(recorded=recorded)
    disk_store(tmp_path, "checkpoint").put("key", kept, 0)
    found = disk_store(tmp_path, "checkpoint").get("key", anything)
    assert torch.equal(found.noise_levels, kept.noise_levels)
    assert found.noise_levels.dtype == torch.float64
    assert torch.equal(found.latents, kept.latents)
    assert (found.evaluations, found.residual, found.bend, found.evaluated) == (7, 0.125, 0.5, 3)
    assert list(found.features) == list(kept.features)
    for node, features in kept.features.items():
        assert list(found.features[node]) == list(LAYERS)
        assert all(torch.equal(found.features[node][layer], h) for layer, h in features.items())
        assert all(h.dtype == torch.float16 for h in found.features[node].values())


def test_another_key_or_another_checkpoint_finds_nothing(tmp_path):
    disk_store(tmp_path, "checkpoint", 1).put("key", chain(), 0)
    assert disk_store(tmp_path, "checkpoint", 1).get("other", anything) is None
    assert disk_store(tmp_path, "checkpoint", 2).get("key", anything) is None
    assert disk_store(tmp_path, "checkpoint", 1).get("key", anything) is not None


def test_a_chain_larger_than_the_budget_is_not_read(tmp_path):
    disk_store(tmp_path).put("key", chain(), 0)
    assert disk_store(tmp_path, budget=100).get("key", anything) is None


def test_chains_for_other_levels_lie_side_by_side_and_the_latest_that_serves_is_found(tmp_path):
    store = disk_store(tmp_path)
    for index, visits in enumerate(("", "one", "other")):
        store.put("key", chain(nodes=3 + index, visits=visits), 0)
    assert len(list(tmp_path.iterdir())) == 3
    assert store.get("key", lambda levels, evaluated, visits: visits == "one").visits == "one"
    assert len(store.get("key", lambda levels, evaluated, visits: evaluated < 5).noise_levels) == 5
    assert store.get("key", lambda levels, evaluated, visits: len(levels) > 6) is None
    store.put("key", chain(nodes=9), 0)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_file_holds_tensors_and_figures_only_and_appears_when_it_is_whole(tmp_path, monkeypatch):
    disk_store(tmp_path).put("key", chain(), 0)
    (file,) = tmp_path.iterdir()
    with safe_open(file, framework="pt") as kept:
        assert set(kept.metadata()) == {"evaluations", "residual", "bend", "evaluated", "visits", "eight_bits_of"}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RivalError, match=r"--keep-inversions .* cannot be used: No space left on device"):
        disk_store(tmp_path).put("other", chain(), 0)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_damaged_file_is_named_in_the_error(tmp_path, content):
    disk_store(tmp_path).put("key", chain(), 0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.raises(
        RivalError, match=f"{file.name} of --keep-inversions is damaged, or is not an inversion; delete it"
    ):
        disk_store(tmp_path).get("key", anything)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_a_second_run_of_the_command_inverts_nothing_and_makes_the_same_image(run, tmp_path):
    keep = ("--keep-inversions", tmp_path / "kept")
    run(PHOTO, *QUICK, *keep, "--out", tmp_path / "first")
    code, _ = run(PHOTO, *QUICK, *keep, "--seed", 5, "--cfg", 3, "--t-align", 300, "--out", tmp_path / "next")
    run(PHOTO, *QUICK, "--seed", 5, "--cfg", 3, "--t-align", 300, "--out", tmp_path / "without")
    assert code == 0
    assert (report_of(tmp_path / "first")["store"], report_of(tmp_path / "next")["store"]) == ("miss", "hit")
    assert report_of(tmp_path / "next")["rows"] == {"inversion": 0, "generation": 4}
    images = [np.asarray(Image.open(tmp_path / name / "000.png")) for name in ("next", "without")]
    assert np.array_equal(*images)


def test_an_option_that_changes_the_inversion_inverts_anew(run, tmp_path):
    keep = ("--keep-inversions", tmp_path / "kept")
    run(PHOTO, *QUICK, *keep, "--out", tmp_path / "first")
    others = [("--steps", 3), ("--sampler", "euler"), ("--exemplar-prompt", "a pizza"), ("--inversion-iterations", 2)]
    for files, other in enumerate(others, 2):
        out = tmp_path / str(files)
        assert run(PHOTO, *QUICK, *keep, *other, "--out", out) == (0, ANY)
        assert report_of(out)["store"] == "miss"
        assert len(list((tmp_path / "kept").iterdir())) == files


@pytest.mark.slow
def test_a_changed_checkpoint_inverts_anew(run, tmp_path):
    checkpoint = tmp_path / DEMO_CHECKPOINT.name
    checkpoint.write_bytes(DEMO_CHECKPOINT.read_bytes())
    checkpoint.with_name(f"{checkpoint.stem}-config").symlink_to(DEMO / f"{checkpoint.stem}-config")
    asked = (PHOTO, *QUICK, "--checkpoint", checkpoint, "--keep-inversions", tmp_path / "kept")
    run(*asked, "--out", tmp_path / "first")
    os.utime(checkpoint, (1, 1))
    code, _ = run(*asked, "--out", tmp_path / "next")
    assert code == 0
    assert report_of(tmp_path / "next")["store"] == "miss"


def test_a_folder_that_is_a_file_is_refused_and_nothing_written(run, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, message = run(PHOTO, *QUICK, "--keep-inversions", tmp_path / "file", "--out", tmp_path / "out")
    assert code == 2
    assert "--keep-inversions" in message
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "out").exists()
