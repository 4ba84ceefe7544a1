"""The smallest sizes, masks and regions, and sizes between two positions: what the plain host paints, RIVAL paints."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.conftest import exemplar, quick
from tests.host.answers import base64_of
from tests.host.asking import images_of, largest_difference, report, request, text_request, uploaded
from tests.host.quick import quick_first

pytestmark = [pytest.mark.long, pytest.mark.slow]

SIDE, CELL = 128, 8
HOLE = (64, 64, 64 + CELL, 64 + CELL)
"""One position of the latent."""
OTHER = {"exemplar": base64_of(exemplar("blue-heart-noto-white"))}


def painted(box=None, value=255, ground=0):
    """Make a mask with a box in it."""
    mask = Image.new("L", (SIDE, SIDE), ground)
    if box:
        mask.paste(value, box)
    return base64_of(mask)


def masked(mask, fill=1, **fields):
    """Make the fields of an inpainting request."""
    return {"mask": mask, "mask_blur": 0, "inpaint_full_res": False, "inpainting_fill": fill, **fields}


def answer_of(server, settings=None, **fields):
    """Return the answer to a request that must succeed and leave nothing behind."""
    server.plan()
    answer = server.img2img(**request(settings, **fields))
    assert answer.status == 200, answer.sentence
    assert server.leftovers() == []
    return answer


def refusal(server, settings=None, **fields):
    """Return the sentence of a request that must be refused before anything is evaluated."""
    server.plan()
    answer = server.img2img(**request({} if settings is None else settings, **fields))
    assert (answer.status, server.calls()) == (422, 0), answer.sentence
    return answer.sentence


# one position


@pytest.mark.parametrize("settings", [{}, OTHER, {"start_mix": 0.5}, {"alignment": "latent"}])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "Euler a"])
def test_an_image_of_one_position(server, sampler, settings):
    size = {"width": CELL, "height": CELL, "sampler_name": sampler}
    if server.img2img(**request(**size)).status != 200:
        pytest.skip("real Forge: it takes the image of one position for an inpainting checkpoint's, and fails itself")
    (image,) = answer_of(server, settings, **size).images
    assert image.shape[:2] == (CELL, CELL)


@pytest.mark.parametrize("settings", [OTHER, {}, {"start_mix": 0.5}])
@pytest.mark.parametrize("fill", quick([0, 1, 2, 3], 1, 2))
def test_a_hole_of_one_position(server, fill, settings):
    fields = masked(painted(HOLE), fill)
    guided, plain = (images_of(server, wanted, **fields)[0].astype(int) for wanted in (settings, None))
    changed = np.abs(guided - plain).max(-1) > 0
    assert changed[HOLE[1] : HOLE[3], HOLE[0] : HOLE[2]].any()
    assert changed.sum() <= CELL * CELL


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("fill", quick([0, 1, 2, 3], 0, 2))
def test_a_mask_that_leaves_next_to_nothing(server, fill, positions):
    """What is left is no region of an exemplar that could be too small: the request has no exemplar_mask."""
    left = (64, 64, 64 + positions * CELL, 64 + CELL)
    fields = masked(painted(left, 0, 255), fill)
    assert largest_difference(images_of(server, {}, **fields), images_of(server, **fields)) > 20


# masks that count nowhere


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("fill", quick_first([0, 1, 2, 3]))
def test_where_a_blur_leaves_nothing_to_paint_the_host_keeps_the_image_and_the_report_says_so(
    server, fill, only_masked
):
    fields = masked(painted((40, 40, 90, 90)), fill, mask_blur=32, inpaint_full_res=only_masked)
    answer = answer_of(server, {"mode": "inpaint"}, **fields)
    assert "the mask covers no position of 8x8 pixels by half so nothing was painted" in report(answer)
    assert largest_difference(answer.images, images_of(server, **fields)) <= 1


@pytest.mark.parametrize(("box", "side"), [((20, 50, 100, 53), SIDE), ((60, 60, 61, 61), CELL)])
def test_so_it_is_of_strokes_that_vanish_as_they_are_reduced(server, box, side):
    if side == CELL and server.name == "forge":
        pytest.skip("real Forge: it fails with an image of one position itself")
    fields = masked(painted(box), width=side, height=side)
    answer = answer_of(server, {"mode": "inpaint"}, **fields)
    assert "nothing was painted" in report(answer)
    assert largest_difference(answer.images, images_of(server, **fields)) <= 1


@pytest.mark.parametrize("only_masked", [False, True])
def test_an_empty_mask_is_said_to_be_empty(server, only_masked):
    fields = masked(painted(), inpaint_full_res=only_masked)
    assert "RIVAL: the mask is empty; paint over the area" in refusal(server, {"mode": "inpaint"}, **fields)


def test_only_masked_with_an_empty_mask_is_img2img_as_in_the_host(server):
    fields = masked(painted(), inpaint_full_res=True)
    assert largest_difference(images_of(server, {}, **fields), images_of(server, {})) <= 1


def test_a_mask_counts_where_it_is_set_by_half(server):
    fields = masked(painted((40, 40, 88, 88), 128))
    guided, plain = (images_of(server, wanted, **fields) for wanted in ({}, None))
    assert largest_difference(guided, plain) > 20


# regions


def test_a_region_that_shows_all_is_none(server):
    whole = images_of(server, OTHER)
    for value in (255, 128):
        assert (
            largest_difference(images_of(server, {**OTHER, "exemplar_mask": painted(None, ground=value)}), whole) == 0
        )
    own = images_of(server, {})
    assert largest_difference(images_of(server, {"exemplar_mask": painted(None, ground=128)}), own) == 0


@pytest.mark.parametrize("value", [0, 127])
def test_a_region_that_counts_nowhere_is_refused_by_its_own_name(server, value):
    settings = {"exemplar_2": OTHER["exemplar"], "exemplar_mask_2": painted(None, ground=value)}
    sentence = refusal(server, settings)
    assert sentence.startswith("RIVAL: exemplar_mask_2 shows too little of the exemplar")
    assert "a mask counts in a position of 8x8 pixels that it covers by half or more" in sentence


def test_a_region_that_the_mask_paints_over_is_refused_as_such(server):
    hole = painted((40, 40, 88, 88))
    fields = masked(hole, 0)
    assert "RIVAL: exemplar_mask shows what the mask paints over" in refusal(server, {"exemplar_mask": hole}, **fields)
    assert answer_of(server, {"exemplar_mask": hole}, **masked(hole, 1)).images


# sizes


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, {}),
        (OTHER, {}),
        ({"exemplar_mask": painted((0, 0, 64, 128))}, {}),
        ({}, masked(painted((40, 40, 90, 90)), 0)),
        ({}, masked(painted((40, 40, 90, 90)), 2, inpaint_full_res=True)),
    ],
)
def test_a_size_between_two_positions_is_the_hosts(server, sampler, settings, fields):
    size = {"width": 150, "height": 110, "sampler_name": sampler}
    guided, plain = (images_of(server, wanted, **size, **fields) for wanted in (settings, None))
    assert [image.shape for image in guided] == [image.shape for image in plain]
    assert largest_difference(guided, plain) > 20


def test_an_exemplar_is_encoded_for_the_size_that_is_made(server):
    server.forget()
    answer_of(server, OTHER, width=150, height=110)
    assert "stored inversion" in report(answer_of(server, OTHER, width=144, height=104))


def test_in_txt2img_too_few_steps_are_not_put_down_to_a_strength_that_nobody_gave(server):
    server.plan()
    answer = server.txt2img(**text_request(uploaded(), steps=1, sampler_name="DDIM"))
    assert (answer.status, server.calls()) == (422, 0)
    assert answer.sentence == "RIVAL: sampling steps must be more than 1 for this sampler."


# what is said of an exemplar


def test_the_report_tells_that_an_exemplar_is_cropped(server):
    def said(width):
        long = exemplar("house-emojione-blue").resize((width, 10))
        return report(answer_of(server, {"exemplar_2": base64_of(long)}))

    assert "97% of exemplar_2 was cut off to fit its 1330x10 pixels into " in said(1330)
    assert "was cut off" not in said(40)
