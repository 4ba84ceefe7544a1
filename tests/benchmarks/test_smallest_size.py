"""Every script under benchmarks/ runs at its smallest size and writes what it publishes."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image, ImageDraw

pytest.importorskip("scipy", reason="benchmarks: scipy is not installed (the docs extra)")

from benchmarks.concepts import CONCEPTS, HELD_OUT_VENDOR, VENDORS, _slug, load_classifier
from tests.benchmarks.scripts import run, written

WITH_A_WEBUI = ("RIVAL_WEBUI", "RIVAL_FAMILIES")
WITH_CONTROLNET = ("RIVAL_WEBUI", "RIVAL_CONTROLNET")

pytestmark = pytest.mark.slow


def test_sampling_times_every_arm(tmp_path):
    figures, profile = tmp_path / "figures.json", tmp_path / "profile.md"
    size = ("--model", "tiny", "--steps", 2, "--repeats", 1)
    run("sampling.py", *size, "--json", figures, "--docs", tmp_path, "--profile", profile)
    result = json.loads(figures.read_text())
    # two steps: plain 2 rows a step; the inversion 1; the authors 4
    assert result["rows"] == {
        **{"plain": 4, "first": 6, "noised": 6, "every_level": 6, "next": 4, "half": 4, "quarter": 4, "live": 6},
        **{"authors": 8, "authors_first": 10},
    }
    assert all(ratio["median"] > 0 for ratio in result["ratios"].values())
    assert written(tmp_path) == ["benchmark-tiny.md", "benchmark-tiny.png", "figures.json", "profile.md"]


def test_effect_writes_both_pages_and_the_sheet(tmp_path):
    run("effect.py", "--steps", 2, "--exemplars", 1, "--seeds", 1, "--out", tmp_path)
    assert written(tmp_path) == ["effect.md", "effect.png", "inversion.md"]


def test_starts_measures_every_section(tmp_path):
    figures = tmp_path / "figures.json"
    run("starts.py", "--steps", 2, "--exemplars", 1, "--seeds", 1, "--json", figures, "--out", tmp_path)
    assert written(tmp_path) == ["figures.json", "starts-noprompt.png", "starts-starts.png", "starts.md"]
    assert "not measured" not in (tmp_path / "starts.md").read_text()


def test_nodes_measures_every_arm(tmp_path):
    figures = tmp_path / "figures.json"
    run("nodes.py", "--steps", 2, "--exemplars", 2, "--json", figures, "--out", tmp_path)
    records = json.loads(figures.read_text())
    assert len(records) == 2 * 6 * 8
    assert written(tmp_path) == ["figures.json", "nodes.md"]


def test_wholeness_measures_the_images_that_were_judged(tmp_path):
    run("wholeness.py", "--steps", 2, "--exemplars", 2, "--out", tmp_path)
    assert written(tmp_path) == ["wholeness.md", "wholeness.png"]


def test_modes_measures_every_section(tmp_path):
    run("modes.py", "--steps", 2, "--seeds", 1, "--cases", 1, "--out", tmp_path)
    sections = ("edit", "inpaint", "layers", "region", "several", "similarity", "text")
    assert written(tmp_path) == [*(f"modes-{section}.png" for section in sections), "modes.md"]


def test_parameters_draws_the_strips_of_each_kind(tmp_path):
    strips = ("alignment", "exemplar_mask", "filling", "mode", "weight")
    run("parameters.py", *strips, "--steps", 2, "--rows", 1, "--out", tmp_path)
    assert written(tmp_path) == [f"{strip}.png" for strip in strips]


def test_concepts_trains_and_measures_a_classifier(tmp_path):
    for number, vendor in enumerate((*VENDORS, HELD_OUT_VENDOR)):
        (tmp_path / "artwork" / vendor).mkdir(parents=True)
        for concept in CONCEPTS[number % 2 : 4 : 2]:
            drawing = Image.new("RGBA", (64, 64))
            ImageDraw.Draw(drawing).ellipse((8, 8, 40 + number, 56), fill=(200, 40 * number, 90, 255))
            drawing.save(tmp_path / "artwork" / vendor / f"{_slug(concept)}.png")
    out = tmp_path / "out"
    out.mkdir()
    size = ("--steps", 2, "--prompts", 2, "--sampler-steps", 2)
    run("concepts.py", tmp_path / "artwork", *size, "--out", out)
    assert written(out) == ["concepts.md", "concepts.safetensors"]
    assert load_classifier(out / "concepts.safetensors").probabilities([Image.new("RGB", (64, 64))]).shape[1] == 121


@pytest.mark.skipif(
    not all(os.environ.get(name) for name in WITH_A_WEBUI),
    reason="real WebUI: benchmarks/samplers.py needs " + " and ".join(WITH_A_WEBUI),
)
def test_samplers_measures_one_sampler_on_a_real_webui(tmp_path):
    one = ("--families", "SD 1.x", "--samplers", "DDIM", "--schedules", "Automatic")
    run("samplers.py", *one, "--json", tmp_path / "kept.json", "--out", tmp_path)
    assert written(tmp_path) == ["kept.json", "samplers-sheet.png", "samplers.md", "samplers.png"]


@pytest.mark.skipif(
    not all(os.environ.get(name) for name in WITH_CONTROLNET),
    reason="real WebUI: benchmarks/peers.py needs " + " and ".join(WITH_CONTROLNET),
)
def test_peers_asks_every_arm_on_a_real_webui(tmp_path):
    smallest = ("--steps", 4, "--exemplars", 1, "--seeds", 1)
    run("peers.py", *smallest, "--json", tmp_path / "kept.json", "--out", tmp_path)
    assert written(tmp_path) == ["kept.json", "peers.md", "peers.png"]
