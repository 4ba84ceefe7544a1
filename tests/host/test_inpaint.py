"""The mode inpaint, case by case, on the stand-in and on each real WebUI."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import (
    STEPS,
    from_text,
    images_of,
    infotext,
    largest_difference,
    report,
    request,
    text_request,
    uploaded,
)
from tests.host.data_folder import checkpoint_in
from tests.host.measures import apart, colours
from tests.host.quick import quick_first
from tests.host.servers import WEBUIS

pytestmark = pytest.mark.long

SAMPLERS = ["DDIM", "Euler a", "DPM++ 2M"]
PIZZA = "pizza-emojione-yellow"

SIDE = 128
MASKED = (slice(40, 88), slice(40, 88))
BLURRED = 16
"""A blurred mask ends within so many pixels around the masked square."""


def painted(area=MASKED):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[area] = 255
    return Image.fromarray(mask)


def painting(settings=None, **fields):
    """Make the fields of an inpainting request for `images_of`."""
    settings = None if settings is None else {"mode": "inpaint", **settings}
    area = {"inpaint_full_res": False, "inpaint_full_res_padding": 16}
    mask = {"mask": base64_of(painted()), "mask_blur": 0, "inpainting_fill": 1}
    return {"settings": settings, **area, **mask, **fields}


def kept(blur, area=MASKED):
    """Return where the host pastes the image's own pixels over the output, unblended."""
    grown = tuple(slice(side.start - blur, side.stop + blur) for side in area)
    return np.asarray(painted(grown)) == 0


def paint_both(server, settings=None, **fields):
    """Return the images of one inpainting request with RIVAL, and those without."""
    return [images_of(server, **painting(wanted, **fields)) for wanted in (settings or {}, None)]


def holds(guided, plain, region):
    """Check that the kept region equals the photo and plain inpainting, and that the masked part differs."""
    photo = np.asarray(exemplar(PIZZA))
    for one, other in zip(guided, plain, strict=True):
        assert (one[region] == other[region]).all()
        assert (one[region] == photo[region]).all()
        assert np.abs(one.astype(int) - other)[~region].max() > 20


@pytest.mark.parametrize("only_masked", quick_first([False, True]))
@pytest.mark.parametrize("fill", quick_first([0, 1, 2, 3]))
@pytest.mark.parametrize("blur", quick_first([0, 4]))
def test_inpaint_keeps_the_rest_and_fills_the_mask(server, only_masked, fill, blur):
    fields = {"inpaint_full_res": only_masked, "inpainting_fill": fill, "mask_blur": blur}
    holds(*paint_both(server, **fields), kept(BLURRED if blur else 0))


@pytest.mark.slow
@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpaint_with_every_sampler(server, sampler, only_masked):
    fields = {"inpaint_full_res": only_masked, "sampler_name": sampler, "batch_size": 2}
    holds(*paint_both(server, **fields), kept(0))
    text = infotext(server, **painting({}, **fields))
    evaluated = 6 if sampler == "DDIM" else STEPS
    assert "RIVAL mode: inpaint" in text
    assert f"10 layers; {evaluated} of {evaluated} steps injected" in text


@pytest.mark.slow
@pytest.mark.parametrize("only_masked", [False, True])
def test_inpaint_outside_the_mask(server, only_masked):
    rest = painted().point(lambda value: 255 - value)
    fields = {"mask": base64_of(rest), "inpainting_mask_invert": 1, "inpaint_full_res": only_masked}
    inverted = paint_both(server, **fields)
    holds(*inverted, kept(0))
    assert largest_difference(inverted[0], images_of(server, **painting({}, inpaint_full_res=only_masked))) == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_kept_part_of_a_latent_comes_back_as_it_was(server, sampler):
    """Without the host's overlay, the kept part decodes to the exemplar, except near the masked part, which the decoder
    sees."""
    if server.name == "stand-in":
        pytest.skip("stand-in: it always lays the image's own pixels over what is made")
    bare = {"override_settings": {"overlay_inpaint": False}, "sampler_name": sampler}
    guided, plain = paint_both(server, **bare)
    far = kept(32)
    assert np.abs(guided[0].astype(int) - plain[0])[far].mean() < 2


@pytest.mark.parametrize("only_masked", [False, True])
def test_soft_inpainting(server, only_masked):
    if server.name == "stand-in":
        pytest.skip("stand-in: it has no Soft inpainting")
    if server.name != "real" and os.cpu_count() <= 6:
        pytest.skip("real Forge: its Soft inpainting, and that of reForge, gives the photo back on six cores or fewer")
    answers = []
    for settings in ({}, None):
        payload = request(**painting(settings, inpaint_full_res=only_masked, mask_blur=4))
        soft = {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 1, 2]}}
        payload["alwayson_scripts"] = {**payload.get("alwayson_scripts", {}), **soft}
        server.plan()
        answers.append(server.img2img(**payload))
        assert answers[-1].status == 200, answers[-1].sentence
        assert server.leftovers() == []
    assert "Soft inpainting enabled: True" in answers[0].infotexts[0]
    assert "8 of 8 steps injected" in report(answers[0])
    photo = np.asarray(exemplar(PIZZA)).astype(int)
    guided, plain = (answer.images[0].astype(int) for answer in answers)
    # it also blends the kept part, by how much the latent has changed there
    near, far = kept(BLURRED), kept(BLURRED + 8)
    assert np.abs(guided - photo)[near].max() <= np.abs(plain - photo)[near].max() + 2
    assert np.abs(guided - photo)[far].max() <= 2
    assert np.abs(guided - plain)[~near].max() > 20


@pytest.mark.slow
def test_a_mask_filled_from_another_exemplar_takes_its_palette(server):
    fields = {"batch_size": 3, "prompt": "", "inpainting_fill": 0}
    plain = images_of(server, **painting(**fields))
    others = [exemplar(name) for name in ("blue-heart-noto-white", "trophy-noto-pink")]
    filled = [images_of(server, **painting({"exemplar": base64_of(other)}, **fields)) for other in others]
    palettes = [colours([other]) for other in others]
    distances = [[apart(colours(images, MASKED), palette) for palette in palettes] for images in [*filled, plain]]
    # negative: nearer to the heart than to the trophy
    heart, trophy, neither = (to_heart - to_trophy for to_heart, to_trophy in distances)
    assert heart < neither < trophy
    for images in filled:
        holds(images, plain, kept(0))


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
def test_inpaint_without_a_mask_is_a_plain_sentence_before_sampling(server, kind):
    settings = uploaded(mode="inpaint")
    answer = getattr(server, kind)(**(request(settings) if kind == "img2img" else text_request(settings)))
    assert answer.status == 422
    assert "mode inpaint needs a mask" in answer.sentence
    assert server.calls() == 0
    assert server.leftovers() == []


# a checkpoint for inpainting


def of_inpainting(webui):
    """Make a class of servers whose checkpoint sees the mask and the masked image beside the latent."""

    class InpaintingServer(webui):
        @staticmethod
        def _fill(data, with_extension):
            webui._fill(data, with_extension)
            checkpoint = checkpoint_in(data)
            weights = load_file(checkpoint)
            name = "model.diffusion_model.input_blocks.0.0.weight"
            seen_beside = np.random.default_rng(3).normal(size=(len(weights[name]), 5, 3, 3)) * 0.02
            weights[name] = np.concatenate([weights[name], seen_beside.astype(weights[name].dtype)], axis=1)
            save_file(weights, checkpoint)
            description = checkpoint.with_suffix(".yaml")
            text = description.read_text().replace("LatentDiffusion", "LatentInpaintDiffusion")
            text = text.replace("conditioning_key: crossattn", "conditioning_key: hybrid\n    finetune_keys: null")
            # the first of two, which is the UNet's
            description.write_text(text.replace("in_channels: 4", "in_channels: 9", 1))

    return InpaintingServer


@pytest.fixture(scope="module", params=WEBUIS)
def inpainting_server(request, tmp_path_factory):
    webui = WEBUIS[request.param]
    if webui.folder() is None:
        pytest.skip(webui.skipped())
    server = of_inpainting(webui)(webui.folder(), tmp_path_factory.mktemp("webui"))
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_checkpoint_for_inpainting(inpainting_server, sampler):
    guided, plain = paint_both(inpainting_server, sampler_name=sampler)
    holds(guided, plain, kept(0))
    filled = from_text(inpainting_server, uploaded(), sampler_name=sampler)
    # mode text skips the first step; the DDIM family makes one less
    assert f"10 layers; {6 if sampler == 'DDIM' else 7} of" in report(filled)
    assert largest_difference(filled.images, from_text(inpainting_server, sampler_name=sampler).images) > 20


@pytest.mark.parametrize("name", quick_first(["pizza-emojione-yellow", "house-emojione-blue", "panda-emojione-white"]))
@pytest.mark.parametrize("fill", [0, 2, 3])
def test_a_large_mask_whose_content_is_not_shown_is_filled_in_the_tone_of_the_rest(server, name, fill):
    """The statistics of a flat filler gave a saturated slab."""
    if server.name == "stand-in":
        pytest.skip("stand-in: its plain inpainting does not fit the rest of the image either")
    photo = exemplar(name)
    left = Image.new("L", photo.size)
    left.paste(255, (0, 0, photo.width // 2, photo.height))
    fields = {"prompt": "", "cfg_scale": 7, "sampler_name": "DPM++ 2M", "steps": 20, "inpainting_fill": fill}
    (image,) = images_of(server, {"mode": "inpaint"}, image=photo, mask=base64_of(left), **fields)
    filled, kept = np.split(image.astype(float), 2, axis=1)
    assert np.abs(filled.mean((0, 1)) - kept.mean((0, 1))).max() < 50
