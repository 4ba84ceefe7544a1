"""The benchmarks' measure of whole objects: what it says of an intact and a torn drawing, and of its own judgements."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import exemplar
from tests.host.data_folder import ROOT

# the folder of the benchmarks, which import each other by name
sys.path.append(str(ROOT / "benchmarks"))
pytest.importorskip("scipy", reason="benchmarks: scipy is not installed (the docs extra)")

from wholeness import ARMS, Judgement, Measured, accuracy, area_under_curve, best_threshold, read_judgements, surprises

from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline

KNOWN = {"pizza-emojione-yellow": "a pizza", "panda-emojione-white": "a panda", "bus-emojione-pink": "a bus"}


def torn(image, side=8):
    """The image's blocks of pixels, every second one in the place of another."""
    blocks = np.asarray(image).reshape(image.height // side, side, image.width // side, side, 3).swapaxes(1, 2)
    blocks = blocks.reshape(-1, side, side, 3).copy()
    blocks[::2] = blocks[::2][torch.randperm(len(blocks[::2]), generator=torch.Generator().manual_seed(0)).numpy()]
    rows = blocks.reshape(image.height // side, image.width // side, side, side, 3).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(image.height, image.width, 3))


def measured(*pairs):
    """A measured image for each surprise and judgement."""
    image = Image.new("RGB", (8, 8))
    return [
        Measured(Judgement("x", "a pizza", "plain", 11, whole), image, surprise, surprise) for surprise, whole in pairs
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_a_torn_drawing_surprises_the_model_more_than_the_drawing(name):
    image = exemplar(name)
    whole, broken = surprises(load_pipeline(DEMO_CHECKPOINT), [image, torn(image)], KNOWN[name])
    assert broken > 1.5 * whole


def test_agreement_is_counted_as_the_page_says():
    clear = measured((0.2, True), (0.3, True), (0.6, False), (0.9, False))
    assert area_under_curve(clear) == 1
    assert best_threshold(clear) == pytest.approx(0.45)
    mixed = measured((0.2, True), (0.7, True), (0.6, False), (0.9, False))
    assert area_under_curve(mixed) == 0.75
    assert accuracy(mixed, 0.45) == 0.75


def test_every_judgement_can_be_made_again():
    judgements = read_judgements()
    assert len(judgements) > 150
    assert len(set(judgements)) == len(judgements)
    assert {judgement.arm for judgement in judgements} == set(ARMS)
    for judgement in judgements:
        assert (ROOT / "tests" / "data" / "exemplars" / f"{judgement.exemplar}.png").exists()
