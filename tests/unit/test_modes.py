"""What each mode promises, on the trained model. docs/modes.md has the figures of many more images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from benchmarks.concepts import CONCEPTS, load_classifier
from benchmarks.studio import Studio, layout_correlation
from rival_ext.cli import command
from rival_ext.hosts.diffusers import RequestImages
from rival_ext.settings import ExemplarInput
from tests.conftest import DATA, exemplar, quiet

SIZE = (128, 128)
PIZZA, HOUSE = "pizza-emojione-yellow", "house-emojione-blue"
BUS, TAXI = "bus-emojione-pink", "taxi-twemoji-green"


@pytest.fixture(scope="module")
def studio(pipeline):
    """A studio with one seed and few steps. Its store keeps the inversions of one test for the next."""
    return Studio(pipeline, seeds=(1,), steps=12)


def request_images(name):
    return RequestImages.of(exemplar(name))


def colour_distance(one, other):
    """Return the earth mover's distance between the values of each channel, in grey levels of 255."""
    flat, other_flat = (np.sort(np.asarray(image, dtype=float).reshape(-1, 3), axis=0) for image in (one, other))
    return np.abs(flat - other_flat).mean()


def layouts(studio, images, name):
    """Return for each image the correlation of its layout with that of the exemplar after the VAE."""
    seen = studio.seen(exemplar(name))
    return [layout_correlation(image, seen) for image in images]


def edge_colour(image):
    pixels = np.asarray(image, dtype=float)
    return np.concatenate([pixels[:6], pixels[-6:]]).mean(axis=(0, 1))


# text: another concept, the exemplar's style


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prompt"), [(PIZZA, "a star"), (TAXI, "a dog face")])
def test_text_draws_the_prompt_in_the_exemplars_colours(studio, name, prompt):
    photo = exemplar(name)
    (text,) = studio.rival(request_images(name), prompt, mode="text")
    (plain,) = studio.plain(request_images(name), prompt, "text")
    likely = load_classifier().probabilities([text])[0]
    assert CONCEPTS[likely.argmax()] == prompt.partition(" ")[2]
    assert colour_distance(text, photo) < 0.7 * colour_distance(plain, photo)


# edit: another background, the exemplar's layout


@pytest.fixture(scope="module")
def edits(studio):
    """By start_mix, an image of the pizza on blue. The exemplar shows it on yellow."""
    fields = {"mode": "edit", "exemplar_prompt": "a pizza, yellow background"}
    return {
        mix: studio.rival(request_images(PIZZA), "a pizza, blue background", start_mix=mix, **fields)[0]
        for mix in (0.0, 0.5, 1.0)
    }


@pytest.mark.slow
def test_edit_keeps_the_layout(studio, edits):
    (plain,) = studio.plain(request_images(PIZZA), "a pizza, blue background", "edit")
    edit, variation, without = layouts(studio, [edits[0.0], edits[1.0], plain], PIZZA)
    assert edit > variation + 0.1
    assert edit > without + 0.2


@pytest.mark.slow
def test_edit_follows_the_prompt(edits):
    red, green, blue = edge_colour(edits[0.0])
    assert blue > green + 20 > red


@pytest.mark.slow
def test_more_start_mix_keeps_less_of_the_layout(studio, edits):
    kept = layouts(studio, [edits[mix] for mix in (0.0, 0.5, 1.0)], PIZZA)
    assert min(kept[:2]) > kept[2]


# inpaint: the mask is filled from the exemplar, the rest is kept


@pytest.fixture(scope="module")
def mask():
    """A mask that is white in the right half."""
    half = Image.new("L", SIZE)
    ImageDraw.Draw(half).rectangle((64, 0, 127, 127), fill=255)
    return half


def right_half(image):
    return image.crop((64, 0, 128, 128))


@pytest.mark.slow
def test_inpaint_keeps_the_rest_exactly(studio, mask):
    photo = exemplar(HOUSE)
    host, guide = studio.guided(RequestImages([ExemplarInput(photo)], SIZE, photo, mask), mode="inpaint")
    latents = host.sample(host.start([1], guide), [1], guide, quiet)
    kept = (guide.canvas.mask == 0).expand_as(latents)
    assert kept.double().mean() == 0.5
    torch.testing.assert_close(latents[kept], host.exemplar_latent()[kept], atol=1e-4, rtol=0)
    assert (latents - host.exemplar_latent())[~kept].abs().mean() > 0.1


def test_inpaint_leaves_the_kept_pixels_alone(pipeline, monkeypatch, tmp_path, mask):
    monkeypatch.setattr("rival_ext.hosts.checkpoint.load_pipeline", lambda checkpoint: pipeline)
    mask.save(tmp_path / "mask.png")
    photo, out = DATA / "exemplars" / f"{HOUSE}.png", tmp_path / "out"
    options = {"--mask": tmp_path / "mask.png", "--out": out, "--mode": "inpaint", "--steps": 2, "-n": 1}
    command.main([str(photo), *(str(part) for option in options.items() for part in option)], standalone_mode=False)
    filled, wmask = (np.asarray(image) for image in (Image.open(out / "000.png"), exemplar(HOUSE)))
    assert np.array_equal(filled[:, :64], wmask[:, :64])
    assert not np.array_equal(filled[:, 64:], wmask[:, 64:])


@pytest.mark.slow
def test_inpaint_fills_the_mask_from_the_image_itself(studio, mask):
    photo = exemplar(HOUSE)
    wmask = RequestImages([ExemplarInput(photo)], SIZE, photo, mask)
    (filled,), (plain,) = studio.rival(wmask, mode="inpaint"), studio.plain(wmask, mode="inpaint")
    distances = [colour_distance(right_half(image), right_half(photo)) for image in (filled, plain)]
    assert distances[0] < 0.6 * distances[1]


@pytest.mark.slow
def test_inpaint_fills_the_mask_from_another_exemplar(studio, mask):
    photo, other = exemplar(BUS), exemplar(HOUSE)
    filled_from_other = RequestImages([ExemplarInput(other)], SIZE, photo, mask)
    (filled,) = studio.rival(filled_from_other, mode="inpaint")
    (plain,) = studio.plain(filled_from_other, mode="inpaint")
    aim = other.resize((64, 128))
    distances = [colour_distance(right_half(image), aim) for image in (filled, plain)]
    assert distances[0] < 0.85 * distances[1]


# a region of the exemplar


@pytest.mark.slow
def test_nothing_outside_the_region_is_used(studio):
    region = Image.new("L", SIZE)
    ImageDraw.Draw(region).ellipse((14, 14, 113, 113), fill=255)
    photo = exemplar(HOUSE)
    painted = Image.composite(photo, Image.new("RGB", SIZE, "magenta"), region)

    def moved_by_the_paint(mask):
        (one,), (other,) = (
            studio.rival(RequestImages([ExemplarInput(image, mask)], SIZE), "a house") for image in (photo, painted)
        )
        return colour_distance(one, other)

    assert moved_by_the_paint(region) < 0.4 * moved_by_the_paint(None)


# several exemplars


@pytest.mark.slow
def test_the_weights_move_the_colours_from_one_exemplar_to_the_other(studio):
    one, other = exemplar(TAXI), exemplar("red-heart-emojione-purple")
    balance = []
    for weight in (1.0, 0.5, 0.0):
        shown = [ExemplarInput(image, weight=share) for image, share in ((one, weight), (other, 1 - weight)) if share]
        (image,) = studio.rival(RequestImages(shown, SIZE), "a star")
        balance.append(colour_distance(image, one) - colour_distance(image, other))
    assert balance[0] + 5 < balance[1] < balance[2] - 5


# how similar


@pytest.mark.slow
def test_similarity_leads_towards_the_exemplar(studio):
    photo = exemplar(HOUSE)
    made = [studio.rival(request_images(HOUSE), "a house", similarity=value)[0] for value in (0.0, 0.5, 1.0)]
    colours = [colour_distance(image, photo) for image in made]
    kept = layouts(studio, made, HOUSE)
    assert colours[0] > colours[1] > colours[2]
    assert kept[2] > kept[0] + 0.06


# how much, and through which layers


@pytest.fixture(scope="module")
def star_distance(studio):
    """(fields of the settings) -> the distance of a star's colours from those of the red heart."""
    name = "red-heart-emojione-purple"
    return lambda **fields: colour_distance(studio.rival(request_images(name), "a star", **fields)[0], exemplar(name))


@pytest.mark.slow
def test_more_strength_brings_more_of_the_exemplars_colours(star_distance):
    distances = [star_distance(strength=strength) for strength in (0.0, 0.5, 1.0)]
    assert distances[0] > 1.15 * distances[1] > 1.15**2 * distances[2]


@pytest.mark.slow
def test_the_fine_layers_bring_more_of_the_exemplars_colours_than_the_coarse_ones(star_distance):
    everything, fine, coarse, nothing = (
        star_distance(**fields) for fields in ({}, {"layers": "fine"}, {"layers": "coarse"}, {"strength": 0.0})
    )
    assert everything <= 1.1 * fine
    assert 1.25 * fine < coarse < nothing
