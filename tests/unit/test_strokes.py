"""What is painted on an exemplar, where it comes apart from it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rival_ext.fields import EXEMPLAR_SUFFIXES
from rival_ext.hosts.webui.inputs import with_strokes
from rival_ext.settings import parse_settings


def picture():
    return Image.new("RGBA", (16, 16), (200, 100, 50, 255))


def strokes(*box):
    """On nothing, and black, since the brush has any colour."""
    canvas = Image.new("RGBA", (16, 16))
    if box:
        canvas.paste((0, 0, 0, 255), box)
    return canvas


def test_what_is_painted_is_the_exemplars_region():
    values = with_strokes({"exemplar": picture()}, [strokes(4, 4, 8, 12)])
    mask = np.asarray(parse_settings(values).exemplar_inputs[0].mask)
    assert mask[4:12, 4:8].all()
    assert mask.astype(bool).sum() == 32


def test_nothing_painted_is_no_region():
    assert parse_settings(with_strokes({"exemplar": picture()}, [strokes()])).exemplar_inputs[0].mask is None


@pytest.mark.parametrize("ending", EXEMPLAR_SUFFIXES)
def test_each_exemplar_has_its_own(ending):
    painted = [strokes(0, 0, 2, 2) if ending == other else None for other in EXEMPLAR_SUFFIXES]
    values = with_strokes({"exemplar" + other: picture() for other in EXEMPLAR_SUFFIXES}, painted)
    assert [isinstance(values["exemplar" + other], dict) for other in EXEMPLAR_SUFFIXES] == [
        other == ending for other in EXEMPLAR_SUFFIXES
    ]


def test_strokes_on_no_picture_are_none():
    values = {"exemplar": None, "mode": "edit"}
    assert with_strokes(values, [strokes(0, 0, 2, 2)]) == values
