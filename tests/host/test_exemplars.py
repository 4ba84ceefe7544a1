"""Several exemplars, their regions and weights, on the stand-in and on each real WebUI."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import from_text, images_of, infotext, largest_difference, report, request
from tests.host.measures import apart, colours

pytestmark = pytest.mark.long

PIZZA, HOUSE = "pizza-emojione-yellow", "house-emojione-blue"
SIDE = 128


def halves(left, right):
    """Make an image from two others side by side, and the mask of its left half."""
    both = exemplar(left).resize((SIDE, SIDE))
    both.paste(exemplar(right).resize((SIDE // 2, SIDE)), (SIDE // 2, 0))
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    return both, mask


@pytest.mark.slow
def test_a_region_shows_its_part_of_the_exemplar_alone(server):
    both, left = halves(PIZZA, HOUSE)
    right = left.point(lambda value: 255 - value)
    # only attention should carry colour
    settings = {"mode": "text", "exemplar": base64_of(both), "t_align": 300}
    seen = {
        name: from_text(server, {**settings, "exemplar_mask": base64_of(mask)}, batch_size=3, prompt="")
        for name, mask in {"left": left, "right": right}.items()
    }
    assert all("; 0 aligned;" in report(answer) for answer in seen.values())
    pizza, house = (colours([half]) for half in (both.crop((0, 0, 64, 128)), both.crop((64, 0, 128, 128))))
    of_left, of_right = (colours(answer.images) for answer in seen.values())
    assert apart(of_left, pizza) - apart(of_left, house) < apart(of_right, pizza) - apart(of_right, house)
    assert largest_difference(*(answer.images for answer in seen.values())) > 20


def test_a_region_of_the_hosts_own_image(server):
    _, left = halves(PIZZA, HOUSE)
    masked = images_of(server, {"exemplar_mask": base64_of(left)})
    assert largest_difference(masked, images_of(server, {})) > 20
    separate = {"exemplar": base64_of(exemplar(PIZZA)), "exemplar_mask": base64_of(left)}
    assert largest_difference(masked, images_of(server, separate)) == 0


def test_a_region_that_shows_nothing_is_a_plain_sentence(server):
    answer = server.img2img(**request({"exemplar_mask": base64_of(Image.new("L", (SIDE, SIDE)))}))
    assert answer.status == 422
    assert "exemplar_mask" in answer.sentence
    assert server.calls() == 0


@pytest.mark.slow
def test_two_exemplars_by_weight(server):
    house = base64_of(exemplar(HOUSE))
    first = images_of(server, {})
    second = images_of(server, {"exemplar": house})
    assert largest_difference(images_of(server, {"exemplar_2": house, "weight_2": 0}), first) == 0
    assert largest_difference(images_of(server, {"exemplar_2": house, "weight": 0}), second) == 0
    text = infotext(server, {"exemplar_2": house, "weight_2": 0.5})
    assert "RIVAL weight_2: 0.5" in text
    assert "2 exemplars; 10 layers; 8 of 8 steps injected" in text
    photo = colours([exemplar(HOUSE)])
    shares = [{"weight_2": 0.25}, {}, {"weight": 0.25}]
    mixed = [images_of(server, {"exemplar_2": house, **share}, batch_size=3) for share in shares]
    distances = [apart(colours(images), photo) for images in mixed]
    assert distances == sorted(distances, reverse=True)
    assert min(largest_difference(images[:1], only) for images in mixed for only in (first, second)) > 20


def test_without_any_weight_is_a_plain_sentence(server):
    answer = server.img2img(**request({"weight": 0, "exemplar_2": base64_of(exemplar(HOUSE)), "weight_2": 0}))
    assert answer.status == 422
    assert "weight leaves no exemplar" in answer.sentence
    assert server.calls() == 0
