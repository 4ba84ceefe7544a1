"""The fields layers, strength and similarity, on the stand-in and on each real WebUI."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rival_ext.fields import DEFAULTS
from rival_ext.settings import similarity_values
from tests.conftest import exemplar
from tests.host.asking import STEPS, images_of, infotext, largest_difference, request
from tests.host.quick import quick_first

pytestmark = pytest.mark.long

PIZZA = "pizza-emojione-yellow"


@pytest.mark.slow
def test_layers_by_name_and_by_size(server):
    fine, coarse = images_of(server, {"layers": "fine"}), images_of(server, {"layers": "coarse"})
    every = images_of(server, {})
    assert min(largest_difference(*pair) for pair in ((fine, coarse), (fine, every), (coarse, every))) > 5
    layers = {name: report_of_layers(server, name) for name in ("fine", "coarse", "all")}
    assert layers["fine"] + layers["coarse"] == layers["all"] == 10
    assert min(layers.values()) > 0
    # the smallest tokens of this checkpoint are one latent position
    assert largest_difference(images_of(server, {"layers": [8]}), fine) == 0
    assert largest_difference(images_of(server, {"layers": "8, 16, 32"}), every) == 0
    answer = server.img2img(**request({"layers": "64"}))
    assert answer.status == 422
    assert "token sizes" in answer.sentence


def report_of_layers(server, name):
    return int(re.search(r"RIVAL report: (\d+) layers", infotext(server, {"layers": name}))[1])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["variation", "edit"])
def test_strength_zero_injects_nothing(server, mode):
    zero = {"mode": mode, "strength": 0}
    text = infotext(server, zero)
    assert "0 layers; 0 of 8 steps injected" in text
    assert f"+ {2 * STEPS} UNet rows" in text
    replaced, concatenated = ({"t_align": t_align} for t_align in (0, 1000))
    assert largest_difference(images_of(server, {"mode": mode, **replaced}), images_of(server, zero)) > 20
    ways = [images_of(server, {**zero, **way}) for way in (replaced, concatenated)]
    # the inversion is stored by now, so only the generation could hook anything
    assert not any("attn1:" in hooked for hooked in server.hooked())
    assert largest_difference(*ways) == 0


@pytest.mark.parametrize("similarity", quick_first([0, 0.8, 1]))
def test_similarity_stands_for_other_fields(server, similarity):
    stands_for = similarity_values(similarity)
    preset = images_of(server, {"similarity": similarity})
    assert largest_difference(preset, images_of(server, stands_for)) == 0
    assert largest_difference(preset, images_of(server, {})) > 0
    written = {f"RIVAL {name}: {value}" for name, value in stands_for.items() if value != DEFAULTS[name]}
    assert written <= said(server, {"similarity": similarity})


@pytest.mark.slow
def test_an_explicit_value_overrides_what_similarity_stands_for(server):
    wanted = said(server, {"similarity": 0.8, "t_align": 500})
    t_early = similarity_values(0.8)["t_early"]
    assert {"RIVAL similarity: 0.8", "RIVAL t_align: 500", f"RIVAL t_early: {t_early}"} <= wanted


@pytest.mark.slow
def test_more_similarity_is_closer(server):
    photo = np.asarray(exemplar(PIZZA), dtype=float)

    def distance(similarity):
        images = images_of(server, {"similarity": similarity}, batch_size=3)
        return np.mean([np.abs(image - photo).mean() for image in images])

    assert distance(1) < distance(0.5) < distance(0)


def said(server, settings):
    return set(re.split("[,\n] ?", infotext(server, settings)))
