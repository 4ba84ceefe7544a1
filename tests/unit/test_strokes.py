"""The strokes on an exemplar, for WebUIs that give the strokes and the exemplar separately."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rival_ext.fields import EXEMPLAR_SUFFIXES
from rival_ext.settings import parse_settings


@pytest.fixture(scope="module")
def with_strokes(import_on_stand_in):
    return import_on_stand_in("rival_ext.hosts.webui.inputs").with_strokes


def image():
    return Image.new("RGBA", (16, 16), (200, 100, 50, 255))


def strokes(*box):
    """A transparent image with one black stroke. Black, since the brush may have any colour."""
    canvas = Image.new("RGBA", (16, 16))
    if box:
        canvas.paste((0, 0, 0, 255), box)
    return canvas


def test_the_strokes_are_the_exemplars_region(with_strokes):
    values = with_strokes({"exemplar": image()}, [strokes(4, 4, 8, 12)])
    mask = np.asarray(parse_settings(values).exemplar_inputs[0].mask)
    assert mask[4:12, 4:8].all()
    assert mask.astype(bool).sum() == 32


def test_without_strokes_there_is_no_region(with_strokes):
    assert parse_settings(with_strokes({"exemplar": image()}, [strokes()])).exemplar_inputs[0].mask is None


@pytest.mark.parametrize("suffix", EXEMPLAR_SUFFIXES)
def test_each_exemplar_has_its_own_strokes(with_strokes, suffix):
    painted = [strokes(0, 0, 2, 2) if suffix == other else None for other in EXEMPLAR_SUFFIXES]
    values = with_strokes({"exemplar" + other: image() for other in EXEMPLAR_SUFFIXES}, painted)
    assert [isinstance(values["exemplar" + other], dict) for other in EXEMPLAR_SUFFIXES] == [
        other == suffix for other in EXEMPLAR_SUFFIXES
    ]


def test_strokes_without_an_exemplar_are_ignored(with_strokes):
    values = {"exemplar": None, "mode": "edit"}
    assert with_strokes(values, [strokes(0, 0, 2, 2)]) == values
