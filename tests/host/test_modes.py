"""The modes and what belongs to them, case by case, on the stand-in and on a real WebUI."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from rival_ext.fields import DEFAULTS
from tests.conftest import exemplar
from tests.host.asking import STEPS, infotext, largest_difference, pictures, request
from tests.host.servers import LORA, REFINER, WEBUIS, base64_of, checkpoint_in

pytestmark = pytest.mark.long

SAMPLERS = ["DDIM", "Euler a", "DPM++ 2M"]
PIZZA, HOUSE = "pizza-emojione-yellow", "house-emojione-blue"

SIDE = 128
HOLE = (slice(40, 88), slice(40, 88))
BLURRED = 16
"""Pixels around the hole within which a blurred mask has an end."""


def from_text(server, settings=None, **fields):
    """The answer to a txt2img request that must succeed, from a pinned global generator."""
    server.plan()
    answer = server.txt2img(**text_request(settings, **fields))
    assert answer.status == 200, answer.sentence
    assert server.leftovers() == []
    return answer


def text_request(settings=None, **fields):
    payload = request(settings, **fields)
    for name in ("init_images", "denoising_strength"):
        if name not in fields:
            del payload[name]
    return payload


def uploaded(name=PIZZA, **settings):
    """The settings for txt2img with an exemplar of its own."""
    return {"mode": "text", "exemplar": base64_of(exemplar(name)), **settings}


def report(answer, name="RIVAL report"):
    return re.search(rf"{name}: ([^,\n]*)", answer.infotexts[0])[1]


def colours(images, region=...):
    """A palette: quantiles of each channel over the pixels of these pictures."""
    pixels = np.concatenate([np.asarray(image)[region].reshape(-1, 3) for image in images])
    return np.quantile(pixels, [0.1, 0.3, 0.5, 0.7, 0.9], axis=0)


def apart(palette, other):
    return np.abs(palette - other).mean()


def likeness(images, photo):
    """The correlation of brightness, place by place: how much of the photo's layout they keep."""
    grey = [np.asarray(Image.fromarray(image).convert("L"), dtype=float).ravel() for image in images]
    photo = np.asarray(photo.convert("L"), dtype=float).ravel()
    return np.mean([np.corrcoef(image, photo)[0, 1] for image in grey])


# text: txt2img with an exemplar of its own


@pytest.mark.parametrize(
    ("sampler", "width", "height"),
    [("DDIM", 128, 192), ("Euler", 192, 128), ("Euler a", 128, 192), ("DPM++ 2M", 192, 128)],
)
def test_txt2img_sees_an_uploaded_exemplar_at_any_aspect(server, sampler, width, height):
    fields = {"width": width, "height": height, "sampler_name": sampler}
    guided, plain = from_text(server, uploaded(), **fields), from_text(server, **fields)
    assert guided.pictures[0].shape == (height, width, 3)
    assert largest_difference(guided.pictures, plain.pictures) > 20
    # early_steps is 960 in this mode: DDIM starts below it, the others' first step is above
    assert f"10 layers; {'7 of 7' if sampler == 'DDIM' else '7 of 8'} steps injected" in report(guided)
    assert "RIVAL mode: text" in guided.infotexts[0]
    assert "RIVAL" not in plain.infotexts[0]
    again = from_text(server, uploaded(), **fields)
    assert largest_difference(again.pictures, guided.pictures) == 0
    assert "stored inversion" in report(again)


def test_txt2img_takes_the_exemplars_palette(server):
    photo = colours([exemplar(HOUSE)])
    fields = {"batch_size": 3, "prompt": "a house"}
    guided = colours(from_text(server, uploaded(HOUSE), **fields).pictures)
    plain = colours(from_text(server, **fields).pictures)
    assert apart(guided, photo) < 0.8 * apart(plain, photo)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_k_of_a_txt2img_batch_is_the_image_of_its_own_seed(server, sampler):
    def differences(settings):
        batch = from_text(server, settings, batch_size=3, sampler_name=sampler).pictures
        alone = [from_text(server, settings, seed=seed, sampler_name=sampler).pictures[0] for seed in (3, 4, 5)]
        assert largest_difference(batch[:2], batch[1:]) > 20
        return largest_difference(batch, alone)

    assert differences(uploaded()) <= 2 + 2 * differences(None)


@pytest.mark.parametrize("mode", ["text", "variation", "edit"])
def test_txt2img_without_an_exemplar_is_a_plain_sentence_before_sampling(server, mode):
    answer = server.txt2img(**text_request({"mode": mode}))
    assert answer.status == 422
    assert "exemplar is missing" in answer.sentence
    assert server.calls() == 0
    assert server.leftovers() == []


# edit


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_edit_keeps_the_layout(server, sampler):
    fields = {"batch_size": 3, "sampler_name": sampler}
    photo = exemplar(PIZZA)
    edited = likeness(pictures(server, {"mode": "edit"}, **fields), photo)
    assert edited > likeness(pictures(server, {}, **fields), photo) + 0.1
    in_text = from_text(server, uploaded(mode="edit"), **fields).pictures
    assert likeness(in_text, photo) > likeness(from_text(server, uploaded(), **fields).pictures, photo) + 0.1


def test_the_infotext_says_edit_for_its_defaults_and_explicit_values_override(server):
    text = infotext(server, {"mode": "edit"})
    assert "RIVAL mode: edit" in text
    assert not re.search("RIVAL (start_mix|early_steps)", text)
    assert "7 of 8 steps injected" in text
    text = infotext(server, {"mode": "edit", "start_mix": 0.5, "early_steps": 700})
    assert {"RIVAL mode: edit", "RIVAL start_mix: 0.5", "RIVAL early_steps: 700"} <= set(re.split("[,\n] ?", text))
    assert "5 of 8 steps injected" in text


# inpaint


def painted(hole=HOLE):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[hole] = 255
    return Image.fromarray(mask)


def painting(settings=None, **fields):
    """The fields of an inpainting request for `pictures`."""
    settings = None if settings is None else {"mode": "inpaint", **settings}
    area = {"inpaint_full_res": False, "inpaint_full_res_padding": 16}
    mask = {"mask": base64_of(painted()), "mask_blur": 0, "inpainting_fill": 1}
    return {"settings": settings, **area, **mask, **fields}


def kept(blur, hole=HOLE):
    """Where the host lays the picture's own pixels over what is made, unblended."""
    grown = tuple(slice(side.start - blur, side.stop + blur) for side in hole)
    return np.asarray(painted(grown)) == 0


def paint_both(server, settings=None, **fields):
    """(with RIVAL, without) of one inpainting request."""
    return [pictures(server, **painting(wanted, **fields)) for wanted in (settings or {}, None)]


def holds(guided, plain, region):
    """The kept region is the photo's and plain inpainting's, pixel by pixel; the hole is another one."""
    photo = np.asarray(exemplar(PIZZA))
    for one, other in zip(guided, plain, strict=True):
        assert (one[region] == other[region]).all()
        assert (one[region] == photo[region]).all()
        assert np.abs(one.astype(int) - other)[~region].max() > 20


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("fill", [0, 1, 2, 3])
@pytest.mark.parametrize("blur", [0, 4])
def test_inpaint_keeps_the_rest_and_fills_the_hole(server, only_masked, fill, blur):
    fields = {"inpaint_full_res": only_masked, "inpainting_fill": fill, "mask_blur": blur}
    holds(*paint_both(server, **fields), kept(BLURRED if blur else 0))


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_inpaint_with_every_sampler(server, sampler, only_masked):
    fields = {"inpaint_full_res": only_masked, "sampler_name": sampler, "batch_size": 2}
    holds(*paint_both(server, **fields), kept(0))
    text = infotext(server, **painting({}, **fields))
    evaluated = 6 if sampler == "DDIM" else STEPS
    assert "RIVAL mode: inpaint" in text
    assert f"10 layers; {evaluated} of {evaluated} steps injected" in text


@pytest.mark.parametrize("only_masked", [False, True])
def test_inpaint_outside_the_mask(server, only_masked):
    rest = painted().point(lambda value: 255 - value)
    fields = {"mask": base64_of(rest), "inpainting_mask_invert": 1, "inpaint_full_res": only_masked}
    inverted = paint_both(server, **fields)
    holds(*inverted, kept(0))
    assert largest_difference(inverted[0], pictures(server, **painting({}, inpaint_full_res=only_masked))) == 0


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_kept_part_of_a_latent_comes_back_as_it_was(server, sampler):
    """Without the host's overlay: what is decoded there is what the exemplar's own latent decodes to, but for the
    decoder's view of the hole nearby."""
    if server.name == "stand-in":
        pytest.skip("stand-in: it always lays the picture's own pixels over what is made")
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
    guided, plain = (answer.pictures[0].astype(int) for answer in answers)
    # it blends what is kept as well, by how much its latent has changed
    near, far = kept(BLURRED), kept(BLURRED + 8)
    assert np.abs(guided - photo)[near].max() <= np.abs(plain - photo)[near].max() + 2
    assert np.abs(guided - photo)[far].max() <= 2
    assert np.abs(guided - plain)[~near].max() > 20


def test_a_hole_filled_from_another_exemplar_takes_its_palette(server):
    fields = {"batch_size": 3, "prompt": "", "inpainting_fill": 0}
    plain = pictures(server, **painting(**fields))
    others = [exemplar(name) for name in ("blue-heart-noto-white", "trophy-noto-pink")]
    filled = [pictures(server, **painting({"exemplar": base64_of(other)}, **fields)) for other in others]
    palettes = [colours([other]) for other in others]
    distances = [[apart(colours(images, HOLE), palette) for palette in palettes] for images in [*filled, plain]]
    (heart_to_heart, heart_to_trophy), (trophy_to_heart, trophy_to_trophy), plains = distances
    assert heart_to_heart < min(plains[0], trophy_to_heart)
    assert trophy_to_trophy < min(plains[1], heart_to_trophy)
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


# exemplars, regions, weights


@pytest.mark.parametrize("thickness", [0, 3])
def test_a_mask_without_a_latent_position_is_a_plain_sentence_before_sampling(server, thickness):
    server.plan()
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (20, 50, 100, 50 + thickness))
    answer = server.img2img(**request({"mode": "inpaint"}, mask=base64_of(mask), inpaint_full_res=False))
    assert answer.status == 422
    assert "the mask is empty, or too thin" in answer.sentence
    assert server.calls() == 0


def halves(left, right):
    """A picture of two others, side by side, and the mask of its left."""
    both = exemplar(left).resize((SIDE, SIDE))
    both.paste(exemplar(right).resize((SIDE // 2, SIDE)), (SIDE // 2, 0))
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    return both, mask


def test_a_region_shows_its_part_of_the_exemplar_alone(server):
    both, left = halves(PIZZA, HOUSE)
    right = left.point(lambda value: 255 - value)
    # nothing but attention is to carry colour
    settings = {"mode": "text", "exemplar": base64_of(both), "t_align": 300}
    seen = {
        name: from_text(server, {**settings, "exemplar_mask": base64_of(mask)}, batch_size=3, prompt="")
        for name, mask in {"left": left, "right": right}.items()
    }
    assert all("; 0 aligned;" in report(answer) for answer in seen.values())
    pizza, house = (colours([half]) for half in (both.crop((0, 0, 64, 128)), both.crop((64, 0, 128, 128))))
    of_left, of_right = (colours(answer.pictures) for answer in seen.values())
    assert apart(of_left, pizza) - apart(of_left, house) < apart(of_right, pizza) - apart(of_right, house)
    assert largest_difference(*(answer.pictures for answer in seen.values())) > 20


def test_a_region_of_the_hosts_own_image(server):
    _, left = halves(PIZZA, HOUSE)
    masked = pictures(server, {"exemplar_mask": base64_of(left)})
    assert largest_difference(masked, pictures(server, {})) > 20
    separate = {"exemplar": base64_of(exemplar(PIZZA)), "exemplar_mask": base64_of(left)}
    assert largest_difference(masked, pictures(server, separate)) == 0


def test_a_region_that_shows_nothing_is_a_plain_sentence(server):
    answer = server.img2img(**request({"exemplar_mask": base64_of(Image.new("L", (SIDE, SIDE)))}))
    assert answer.status == 422
    assert "exemplar_mask" in answer.sentence
    assert server.calls() == 0


def test_two_exemplars_by_weight(server):
    house = base64_of(exemplar(HOUSE))
    first = pictures(server, {})
    second = pictures(server, {"exemplar": house})
    assert largest_difference(pictures(server, {"exemplar_2": house, "weight_2": 0}), first) == 0
    assert largest_difference(pictures(server, {"exemplar_2": house, "weight": 0}), second) == 0
    text = infotext(server, {"exemplar_2": house, "weight_2": 0.5})
    assert "RIVAL weight_2: 0.5" in text
    assert "2 exemplars; 10 layers; 8 of 8 steps injected" in text
    photo = colours([exemplar(HOUSE)])
    shares = [{"weight_2": 0.25}, {}, {"weight": 0.25}]
    mixed = [pictures(server, {"exemplar_2": house, **share}, batch_size=3) for share in shares]
    distances = [apart(colours(images), photo) for images in mixed]
    assert distances == sorted(distances, reverse=True)
    assert min(largest_difference(images[:1], only) for images in mixed for only in (first, second)) > 20


def test_without_any_weight_is_a_plain_sentence(server):
    answer = server.img2img(**request({"weight": 0, "exemplar_2": base64_of(exemplar(HOUSE)), "weight_2": 0}))
    assert answer.status == 422
    assert "weight leaves no exemplar" in answer.sentence
    assert server.calls() == 0


# layers, strength, similarity


def test_layers_by_name_and_by_size(server):
    fine, coarse = pictures(server, {"layers": "fine"}), pictures(server, {"layers": "coarse"})
    every = pictures(server, {})
    assert min(largest_difference(*pair) for pair in ((fine, coarse), (fine, every), (coarse, every))) > 5
    layers = {name: report_of_layers(server, name) for name in ("fine", "coarse", "all")}
    assert layers["fine"] + layers["coarse"] == layers["all"] == 10
    assert min(layers.values()) > 0
    # the smallest tokens of this checkpoint lie a latent's position apart
    assert largest_difference(pictures(server, {"layers": [8]}), fine) == 0
    assert largest_difference(pictures(server, {"layers": "8, 16, 32"}), every) == 0
    answer = server.img2img(**request({"layers": "64"}))
    assert answer.status == 422
    assert "token sizes" in answer.sentence


def report_of_layers(server, name):
    return int(re.search(r"RIVAL report: (\d+) layers", infotext(server, {"layers": name}))[1])


@pytest.mark.parametrize("mode", ["variation", "edit"])
def test_strength_nought_injects_nothing(server, mode):
    nought = {"mode": mode, "strength": 0}
    text = infotext(server, nought)
    assert "0 layers; 0 of 8 steps injected" in text
    assert f"+ {2 * STEPS} UNet rows" in text
    replaced, concatenated = ({"t_align": t_align} for t_align in (0, 1000))
    assert largest_difference(pictures(server, {"mode": mode, **replaced}), pictures(server, nought)) > 20
    ways = [pictures(server, {**nought, **way}) for way in (replaced, concatenated)]
    # the inversion is stored by now: what is hooked is the generation's
    assert not any("attn1:" in hooked for hooked in server.hooked())
    assert largest_difference(*ways) == 0


@pytest.mark.parametrize(
    ("similarity", "stands_for"),
    [
        (0, {"t_align": 1000, "t_early": 1000, "start_mix": 1.0}),
        (0.8, {"t_align": 360, "t_early": 360, "start_mix": 0.4}),
        (1, {"t_align": 200, "t_early": 200, "start_mix": 0.0}),
    ],
)
def test_similarity_stands_for_three_fields(server, similarity, stands_for):
    preset = pictures(server, {"similarity": similarity})
    assert largest_difference(preset, pictures(server, stands_for)) == 0
    assert largest_difference(preset, pictures(server, {})) > 0
    written = {f"RIVAL {name}: {value}" for name, value in stands_for.items() if value != DEFAULTS[name]}
    assert written <= said(server, {"similarity": similarity})


def test_an_explicit_value_overrides_what_similarity_stands_for(server):
    wanted = said(server, {"similarity": 0.8, "t_align": 500})
    assert {"RIVAL similarity: 0.8", "RIVAL t_align: 500", "RIVAL t_early: 360"} <= wanted


def test_more_similarity_is_closer(server):
    photo = np.asarray(exemplar(PIZZA), dtype=float)

    def distance(similarity):
        images = pictures(server, {"similarity": similarity}, batch_size=3)
        return np.mean([np.abs(image - photo).mean() for image in images])

    assert distance(1) < distance(0.5) < distance(0)


def said(server, settings):
    return set(re.split("[,\n] ?", infotext(server, settings)))


# beside what else the host can do


def only_on_the_real_host(server, what):
    if server.name == "stand-in":
        pytest.skip(f"stand-in: it has no {what}")


@pytest.mark.parametrize("memory", [512, 0])
def test_an_inversion_without_loras_is_the_one_of_a_prompt_without(server, memory):
    only_on_the_real_host(server, "LoRA")
    fields = {"override_settings": {"rival_memory_mb": memory}}
    prompt = {"prompt": f"a pizza <lora:{LORA}:0.5>"}
    plain = pictures(server, {}, **fields)
    stored = "stored inversion" if memory else "inverted in"
    apart_from = server.img2img(**request({"plain_inversion": True}, **prompt, **fields))
    assert stored in report(apart_from)
    assert largest_difference(apart_from.pictures, plain) > 5
    with_lora = server.img2img(**request({}, **prompt, **fields))
    assert largest_difference(apart_from.pictures, with_lora.pictures) > 5
    assert largest_difference(pictures(server, {"plain_inversion": True}, **prompt, **fields), apart_from.pictures) == 0
    assert largest_difference(pictures(server, {}, **fields), plain) == 0
    assert largest_difference(pictures(server, {"plain_inversion": True}, **fields), plain) == 0


def test_live_features_without_loras_are_the_recorded_ones(server):
    only_on_the_real_host(server, "LoRA")
    # an inversion that is solved well records what is seen live, where a few large steps do not
    settings = {"plain_inversion": True, "inversion_iterations": 10}
    fields = {"prompt": f"a pizza <lora:{LORA}:0.05>", "steps": 20}
    nothing = {"override_settings": {"rival_memory_mb": 0}}
    (recorded,) = pictures(server, settings, **fields)
    (live,) = pictures(server, settings, **fields, **nothing)
    (with_lora,) = pictures(server, {**settings, "plain_inversion": False}, **fields, **nothing)

    def distance(one, other):
        return np.sqrt(np.mean((one.astype(float) - other) ** 2))

    assert distance(live, recorded) < 1
    assert distance(live, recorded) < 0.5 * distance(live, with_lora)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_both_passes_of_hires_fix_see_the_exemplar(server, sampler):
    only_on_the_real_host(server, "hires fix")
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    hires["sampler_name"] = sampler
    guided, plain = from_text(server, uploaded(), **hires), from_text(server, **hires)
    assert guided.pictures[0].shape == (192, 192, 3)
    assert largest_difference(guided.pictures, plain.pictures) > 20
    assert f"10 layers; {'7 of 7' if sampler == 'DDIM' else '7 of 8'} steps injected" in report(guided)
    injected, total = re.search(r"10 layers; (\d+) of (\d+) steps", report(guided, "RIVAL hires report")).groups()
    assert injected == total
    assert int(total) >= 3
    again = from_text(server, uploaded(), **hires)
    assert largest_difference(again.pictures, guided.pictures) == 0
    assert "stored inversion" in report(again, "RIVAL hires report")
    assert largest_difference(from_text(server, **hires).pictures, plain.pictures) == 0


@pytest.mark.parametrize("kind", ["img2img", "txt2img"])
def test_injection_ends_with_the_switch_to_a_refiner(server, kind):
    only_on_the_real_host(server, "refiner")

    def ask(settings, **fields):
        fields = {"steps": 10, **fields}
        server.plan()
        answer = getattr(server, kind)(**(request if kind == "img2img" else text_request)(settings, **fields))
        assert answer.status == 200, answer.sentence
        assert server.leftovers() == []
        return answer

    settings = uploaded(mode="variation")
    refined = {"refiner_checkpoint": REFINER, "refiner_switch_at": 0.6}
    plain, guided, plain_refined = ask(None), ask(settings), ask(None, **refined)
    both = ask(settings, **refined)
    assert "6 of 6 steps injected" in report(both)
    assert "injection ended with the switch to the refiner" in report(both)
    assert server.calls() == 20
    assert "10 of 10 steps injected" in report(guided)
    others = (plain, guided, plain_refined)
    assert min(largest_difference(both.pictures, other.pictures) for other in others) > 5
    assert largest_difference(ask(None).pictures, plain.pictures) == 0
    assert largest_difference(ask(settings).pictures, guided.pictures) == 0


# a checkpoint for inpainting


def of_inpainting(webui):
    """A real server whose checkpoint sees the mask and the masked picture beside the latent."""

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
            # the UNet's, the first of two
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
    assert "10 layers; 7 of" in report(filled)
    assert largest_difference(filled.pictures, from_text(inpainting_server, sampler_name=sampler).pictures) > 20
