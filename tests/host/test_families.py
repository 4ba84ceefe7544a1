"""Checkpoints of every family on a real WebUI. Each is inverted and injected as Stable Diffusion 1.x is."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import largest_difference, request
from tests.host.conftest import SKIPPED
from tests.host.families import (
    FAMILIES,
    REFUSED,
    SD1,
    SD1_EDITING,
    SD1_INPAINTING,
    SD2_EPS,
    SD2_V,
    SDXL_BASE,
    SDXL_INPAINTING,
    SDXL_REFINER,
    SDXL_V_ZERO,
    FamiliesServer,
    given_folder,
)
from tests.host.servers import real_folder

SAMPLERS = [("Euler", "Automatic"), ("DDIM", "Automatic"), ("DPM++ 2M", "Karras"), ("Euler a", "Automatic")]
PHOTO = "pizza-emojione-yellow"
SIDE = 64

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = real_folder()
    if folder is None:
        pytest.skip(SKIPPED)
    if given_folder() is None:
        pytest.skip("checkpoints of other families: not found; set RIVAL_FAMILIES to their folder")
    started = FamiliesServer(folder, tmp_path_factory.mktemp("families"))
    yield started
    started.stop()


def ask(server, family, settings=None, kind="img2img", options=None, **fields):
    """Send a small request to a family's checkpoint. `settings` is the extension's object."""
    server.plan()
    fields = {"width": SIDE, "height": SIDE, "steps": 6, **fields}
    payload = request(settings, override_settings=family.settings(**(options or {})), **fields)
    if kind == "txt2img":
        for name in {"init_images", "denoising_strength"} - fields.keys():
            del payload[name]
    return getattr(server, kind)(**payload)


def answered(*args, **fields):
    """Send a request that must succeed and leave nothing behind."""
    server, family = args[:2]
    answer = ask(*args, **fields)
    assert answer.status == 200, answer.sentence
    assert f"Model: {family.file}" in answer.infotexts[0]
    assert server.leftovers() == []
    return answer


def varied(*args, **fields):
    """Send a request with RIVAL. Every self-attention layer must see the recorded exemplar in every step."""
    server, family, settings, *kind = args if len(args) > 2 else (*args, {})
    answer = answered(server, family, settings, *kind, **fields)
    text = answer.infotexts[0]
    assert steps(server, text) + evaluations(text) == server.calls()
    return answer


def steps(server, text):
    """Return the number of steps. All layers must have been injected in all of them, with recorded features."""
    layers, injected, total = re.search(r"(\d+) layers; (\d+) of (\d+) steps injected", text).groups()
    assert int(layers) == server.layers()
    assert injected == total
    assert "recorded features" in text
    return int(total)


def evaluations(text):
    """Return the number of evaluations of the inversion."""
    return int((re.search(r"inverted in (\d+) evaluations", text) or [0, 0])[1])


def rows(text):
    """Return the UNet rows of the generation."""
    return int(re.search(r"\+ (\d+) UNet rows", text)[1])


def difference(one, other):
    return largest_difference(one.images, other.images)


def centre_mask():
    """Make a mask that is white in a square in the middle."""
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).rectangle([SIDE // 4, SIDE // 4, SIDE * 3 // 4 - 1, SIDE * 3 // 4 - 1], fill=255)
    return mask


# every family


@pytest.mark.parametrize(("sampler", "scheduler"), SAMPLERS)
@each_family
def test_every_layer_sees_the_exemplar_in_every_step(server, family, sampler, scheduler):
    fields = {"sampler_name": sampler, "scheduler": scheduler}
    plain, first = answered(server, family, **fields), varied(server, family, **fields)
    assert difference(first, plain) > 5
    again = varied(server, family, **fields)
    assert "stored inversion" in again.infotexts[0]
    assert difference(again, first) == 0


@each_family
def test_image_two_of_a_batch_is_the_image_of_its_own_seed(server, family):
    """The host's plain images differ between batch sizes, so RIVAL's may differ too."""
    fields = {"sampler_name": "Euler a", "steps": 4}
    batch, alone, plain_batch, plain_alone = (
        answered(server, family, settings, **fields, **one).images[-1:]
        for settings in ({}, None)
        for one in ({"batch_size": 2}, {"seed": 4})
    )
    if family.inpaints:
        # these see a sample of the VAE's posterior, another one for each image of a batch
        assert np.abs(batch[0].astype(float) - alone[0]).mean() < 3
    else:
        assert largest_difference(batch, alone) <= 2 + 2 * largest_difference(plain_batch, plain_alone)


@pytest.mark.parametrize(("sampler", "number"), [("Euler a", 1), ("LCM", 4), ("Euler a", 8)])
@each_family
def test_guidance_one_with_few_steps(server, family, sampler, number):
    """Distilled models are sampled so."""
    fields = {"cfg_scale": 1, "steps": number, "sampler_name": sampler}
    answer = varied(server, family, **fields)
    assert steps(server, answer.infotexts[0]) == number
    assert difference(answer, answered(server, family, **fields)) > 5


@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@each_family
def test_the_inverted_start_at_guidance_one_gives_the_exemplar_back(server, family, sampler):
    """A prediction that is misread, a wrong noise level, or a wrong size told to SDXL would not give it back."""
    if family.edits:
        pytest.skip("instruct-pix2pix sees the image in the generation and none in the inversion")
    settings = {"start_mix": 0.0, "alignment": "off", "inversion_iterations": 4}
    decoded = answered(server, family, denoising_strength=0).images[0].astype(float)
    back = varied(server, family, settings, cfg_scale=1, prompt="", steps=12, sampler_name=sampler).images[0]
    assert np.abs(back - decoded).mean() < 4


@pytest.mark.parametrize("family", [SD2_V, SDXL_BASE], ids=lambda family: family.name)
def test_exact_guidance_and_a_prompt_of_two_parts(server, family):
    settings = {"exemplar_prompt": "a pizza", "exact": True, "t_align": 300}
    fields = {"prompt": "a pizza AND a house :0.5"}
    batch = varied(server, family, settings, batch_size=2, **fields)
    alone = varied(server, family, settings, seed=4, **fields)
    plain = [answered(server, family, **fields, **one).images[-1:] for one in ({"batch_size": 2}, {"seed": 4})]
    assert largest_difference(batch.images[1:], alone.images) <= 2 + 2 * largest_difference(*plain)


@pytest.mark.parametrize("family", [SD2_V, SDXL_BASE], ids=lambda family: family.name)
def test_both_passes_of_hires_fix_see_the_exemplar(server, family):
    settings = {"exemplar": base64_of(exemplar(PHOTO))}
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    text = answered(server, family, settings, "txt2img", **hires).infotexts[0]
    first, second = text.split("RIVAL hires report")
    assert steps(server, first) == 6
    assert steps(server, second) >= 3


def test_switching_the_checkpoint_never_reuses_another_ones_inversion(server):
    """Two of them have the same weights. Only their descriptions say what the weights predict."""
    fields = {"sampler_name": "DDIM", "steps": 5}
    first = {family.name: varied(server, family, **fields) for family in FAMILIES}
    assert all("inverted in" in answer.infotexts[0] for answer in first.values())
    for family in FAMILIES:
        again = varied(server, family, **fields)
        assert "stored inversion" in again.infotexts[0]
        assert difference(again, first[family.name]) == 0


def test_a_checkpoint_that_takes_anothers_place_in_memory_is_inverted_anew(server):
    fields = {"sampler_name": "DDIM", "steps": 7}
    server.set(sd_checkpoints_limit=1)
    try:
        first = [varied(server, family, **fields) for family in (SDXL_BASE, SD2_V, SDXL_BASE)]
    finally:
        server.set(sd_checkpoints_limit=10)
    assert all("inverted in" in answer.infotexts[0] for answer in first)
    assert difference(first[0], first[2]) == 0


# SDXL


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
@pytest.mark.parametrize("family", [SDXL_BASE, SDXL_INPAINTING], ids=lambda family: family.name)
def test_an_exemplar_of_another_aspect(server, family, kind):
    """The exemplar is told its own size, so a wide output and a tall output share its inversion."""
    settings = {"exemplar": base64_of(exemplar(PHOTO).resize((192, 96)))}
    standing, lying = (
        varied(server, family, settings, kind, width=width, height=height)
        for width, height in ((SIDE, 2 * SIDE), (2 * SIDE, SIDE))
    )
    assert standing.images[0].shape == (2 * SIDE, SIDE, 3)
    assert "stored inversion" in lying.infotexts[0]
    assert difference(lying, answered(server, family, None, kind, width=2 * SIDE, height=SIDE)) > 20


def test_the_crop_is_told_to_the_generation_only(server):
    whole = varied(server, SDXL_BASE)
    cropped = varied(server, SDXL_BASE, options={"sdxl_crop_top": 256, "sdxl_crop_left": 128})
    assert "stored inversion" in cropped.infotexts[0]
    assert difference(cropped, whole) > 0


# inpainting, instruct-pix2pix, others


@pytest.mark.parametrize("mode", ["variation", "inpaint"])
@pytest.mark.parametrize("sampler", ["Euler", "DDIM"])
@pytest.mark.parametrize("family", [SD1_INPAINTING, SDXL_INPAINTING], ids=lambda family: family.name)
def test_inpainting_fills_the_mask_and_keeps_the_rest(server, family, sampler, mode):
    photo = exemplar(PHOTO).resize((SIDE, SIDE))
    fields = {"image": photo, "mask": base64_of(centre_mask()), "mask_blur": 0, "sampler_name": sampler}
    filled = varied(server, family, {"mode": mode}, **fields)
    assert difference(filled, answered(server, family, **fields)) > 20
    kept = np.asarray(centre_mask()) == 0
    assert (filled.images[0][kept] == np.asarray(photo)[kept]).all()


@pytest.mark.parametrize(("image_guidance", "rows_a_call"), [(1.0, 2), (1.5, 3)])
def test_instruct_pix2pix_evaluates_the_image_too(server, image_guidance, rows_a_call):
    """The third row of a call is the negative prompt without the image."""
    fields = {"image_cfg_scale": image_guidance, "batch_size": 2}
    settings = {"exemplar_prompt": "a pizza", "exact": True, "t_align": 300}
    for asked in ({}, settings):
        batch = varied(server, SD1_EDITING, asked, **fields)
        text = batch.infotexts[0]
        assert rows(text) == 2 * rows_a_call * steps(server, text)
        alone = varied(server, SD1_EDITING, asked, **{**fields, "batch_size": 1, "seed": 4})
        assert largest_difference(batch.images[1:], alone.images) <= 4


def test_instruct_pix2pix_has_no_image_in_txt2img(server):
    answer = ask(server, SD1_EDITING, {"exemplar": base64_of(exemplar(PHOTO))}, "txt2img")
    assert answer.status == 422
    assert "img2img" in answer.sentence
    assert server.calls() == 0


def test_another_family_is_refused_before_sampling(server):
    assert answered(server, REFUSED)
    answer = ask(server, REFUSED, {})
    assert answer.status == 422
    assert "checkpoint" in answer.sentence
    assert server.calls() == 0
    assert server.leftovers() == []


# the refiner


@pytest.mark.parametrize(("kind", "sampler", "loaded"), [("img2img", "Euler", 10), ("txt2img", "DDIM", 1)])
@pytest.mark.parametrize(
    ("family", "refiner"),
    [(SDXL_BASE, SDXL_REFINER), (SDXL_BASE, SDXL_V_ZERO), (SD2_V, SD2_EPS)],
    ids=lambda family: family.name,
)
def test_injection_ends_with_the_switch_to_a_refiner(server, family, refiner, kind, sampler, loaded):
    """With one loaded checkpoint, the host reads a checkpoint again when it switches to it."""
    exemplars = {"exemplar": base64_of(exemplar(PHOTO))}
    refined = {"refiner_checkpoint": f"{refiner.file}.safetensors", "refiner_switch_at": 0.6}

    def made(settings, **others):
        return answered(server, family, settings, kind, steps=10, sampler_name=sampler, batch_size=2, **others)

    def made_by_a_loaded_one(settings):
        # the host's first image after it has loaded a checkpoint differs by 1/255 at times
        made(None)
        return made(settings)

    server.set(sd_checkpoints_limit=loaded)
    try:
        plain, guided = made_by_a_loaded_one(None), made(exemplars)
        both, again, plain_refined = made(exemplars, **refined), made(exemplars, **refined), made(None, **refined)
        assert difference(made_by_a_loaded_one(None), plain) == 0
        assert difference(made(exemplars), guided) == 0
    finally:
        server.set(sd_checkpoints_limit=10)
    injected, calls = re.search(r"layers; (\d+) of (\d+) steps injected", both.infotexts[0]).groups()
    assert injected == calls
    assert 5 <= int(calls) <= 6
    assert "injection ended with the switch to the refiner" in both.infotexts[0]
    assert difference(again, both) <= 1
    assert min(difference(both, other) for other in (plain, guided, plain_refined)) > 2


# half precision


def test_weights_in_eight_bits(server):
    """On a CPU the host then computes in bfloat16. Its OpenCLIP encoders (SD 2, SDXL) cannot."""
    family = SD1
    plain, usual = answered(server, family), varied(server, family)
    eight_bits = {"fp8_storage": "Enable"}
    first = varied(server, family, options=eight_bits)
    assert "inverted in" in first.infotexts[0]
    assert difference(first, answered(server, family, options=eight_bits)) > 20
    # the host rounds the noise levels of a checkpoint that was in eight bits
    off = difference(answered(server, family), plain)
    assert difference(varied(server, family), usual) <= 2 + 2 * off
