"""RIVAL beside other extensions on a real WebUI. They steer the generation, never the exemplar."""

from __future__ import annotations

import re

import pytest

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import STEPS, largest_difference, request
from tests.host.compat_servers import (
    CONTROLNET,
    HYPERNETWORK,
    SHUFFLE,
    CompatServer,
    controlnet,
    dynamic_thresholding,
    freeu,
)
from tests.host.conftest import SKIPPED
from tests.host.servers import real_folder

REFERENCES = ["reference_only", "reference_adain", "reference_adain+attn"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """Two servers: one with RIVAL and the other extensions, one with only the other extensions."""
    folder = real_folder()
    if folder is None:
        pytest.skip(SKIPPED)
    if controlnet() is None:
        pytest.skip("ControlNet: not found; set RIVAL_CONTROLNET to its folder")
    started = []
    try:
        for extended in (True, False):
            started.append(CompatServer(folder, tmp_path_factory.mktemp("compat"), extended))
        yield tuple(started)
    finally:
        for server in started:
            server.stop()


@pytest.fixture
def server(servers):
    servers[0].plan()
    servers[0].forget()
    return servers[0]


def unit(module="none", model=CONTROLNET, **fields):
    """Make a unit of ControlNet with an image."""
    image = base64_of(exemplar("house-emojione-blue"))
    return {"enabled": True, "module": module, "model": model, "image": image, "save_detected_map": False, **fields}


def reference(module="reference_only"):
    return unit(module, "None")


def ask(server, settings=None, *units, scripts=None, at_call=0, action="", **fields):
    """Send a request with these units, and with other extensions' arguments in `scripts`."""
    server.plan(at_call, action)
    payload = request(settings, **fields)
    always_on = payload.setdefault("alwayson_scripts", {})
    if units:
        always_on["ControlNet"] = {"args": list(units)}
    always_on.update({name: {"args": args} for name, args in (scripts or {}).items()})
    return server.img2img(**payload)


def images_of(*args, **fields):
    answer = ask(*args, **fields)
    assert answer.status == 200, answer.sentence
    return answer.images


def infotext(*args, **fields):
    answer = ask(*args, **fields)
    assert answer.status == 200, answer.sentence
    return answer.infotexts[0]


def differs(some, others):
    return largest_difference(some, others) > 20


def chain(text):
    """Return the infotext's words about the inversion."""
    return re.search(r"inverted in \d+ evaluations \(residual [^)]+\)", text)[0]


# ControlNet


def test_switched_off_controlnets_image_is_bit_identical_to_one_without_the_extension(servers):
    extended, bare = servers
    for server in servers:
        # ControlNet draws from the global generator when it loads a model
        images_of(server, None, unit())
    before = images_of(bare, None, unit())
    images_of(extended, {}, unit())
    assert largest_difference(images_of(extended, None, unit()), before) == 0
    assert largest_difference(images_of(extended, {"enabled": False}, unit()), before) == 0


@pytest.mark.parametrize("sampler", ["DDIM", "Euler", "Euler a", "DPM++ 2M"])
def test_both_act(server, sampler):
    both = images_of(server, {}, unit(), sampler_name=sampler)
    assert differs(both, images_of(server, {"t_early": 400}, sampler_name=sampler))
    assert differs(both, images_of(server, None, unit(), sampler_name=sampler))


@pytest.mark.parametrize("units", [[unit()], [reference()], [unit(), reference("reference_adain+attn")]])
def test_the_inversion_is_the_same_with_units_and_without(server, units):
    without = infotext(server, {"t_early": 400})
    image = images_of(server, {"t_early": 400})
    assert "stored inversion" in infotext(server, {}, *units)
    server.forget()
    assert chain(infotext(server, {}, *units)) == chain(without)
    again = ask(server, {"t_early": 400})
    assert "stored inversion" in again.infotexts[0]
    assert largest_difference(again.images, image) == 0


@pytest.mark.parametrize("memory", [2048, 0])
def test_no_residual_is_made_for_the_exemplar_recorded_or_live(server, memory):
    infotext(server, {}, unit(), override_settings={"rival_memory_mb": memory})
    counts = server.watch()["counts"]
    assert counts["control rows"] == counts["patched rows"] == 2 * STEPS
    assert counts["plain rows"] == (STEPS if memory else 2 * STEPS)


@pytest.mark.parametrize("units", [[unit()], [reference("reference_adain+attn")]])
def test_nothing_is_left_hooked_that_controlnet_does_not_leave_itself(server, units):
    images_of(server, None, *units)
    left = server.watch()["hooked"]
    images_of(server, {}, *units)
    assert server.watch()["hooked"] == left


@pytest.mark.parametrize("end", ["refused", "stopped in the inversion"])
def test_nothing_of_controlnets_steers_the_other_tab_afterwards(server, end):
    text = {"prompt": "a pizza", "seed": 3, "steps": STEPS, "width": 128, "height": 128, "cfg_scale": 5}
    before = server.txt2img(**text).images
    if end == "refused":
        assert ask(server, {"mode": "paint"}, unit()).status == 422
    else:
        assert end in ask(server, {}, unit(), at_call=2, action="interrupt").infotexts[0]
    server.plan()
    assert largest_difference(server.txt2img(**text).images, before) == 0


def test_t_early_is_400_beside_a_unit_unless_the_request_says(server):
    assert "RIVAL t_early: 400" in infotext(server, {}, unit())
    assert "RIVAL t_early: 500" in infotext(server, {"t_early": 500}, unit())
    # the mode's default is not written
    assert "RIVAL t_early" not in infotext(server, {"t_early": 600}, unit())
    assert "RIVAL t_early" not in infotext(server, {}, {**unit(), "enabled": False})


def test_control_modes_find_the_rows_of_prompt_and_negative_prompt(server):
    """At guidance 1 the negative prompt's rows have no effect, so modes that differ only in these rows give the same
    image."""
    soft, control_only = ({"control_mode": f"{name} is more important"} for name in ("My prompt", "ControlNet"))
    same = [images_of(server, {}, unit(**mode), cfg_scale=1) for mode in (soft, control_only)]
    assert largest_difference(*same) <= 2
    guided = [images_of(server, {}, unit(**mode)) for mode in (soft, control_only, {})]
    assert differs(guided[0], guided[1])
    assert differs(guided[0], guided[2])


def test_exact_guidance_keeps_the_rows_in_order(server):
    settings = {"exemplar_prompt": "a pizza", "exact": True}
    batch = images_of(server, settings, unit(), batch_size=2)
    alone = [images_of(server, settings, unit(), seed=seed)[0] for seed in (3, 4)]
    assert largest_difference(batch, alone) <= 4


def test_low_memory_and_averaged_residuals(server):
    assert largest_difference(images_of(server, {}, unit(low_vram=True)), images_of(server, {}, unit())) == 0
    assert differs(images_of(server, {}, unit(model=SHUFFLE)), images_of(server, {}, unit()))


# reference units


@pytest.mark.parametrize("kind", REFERENCES)
@pytest.mark.parametrize("t_align", [0, 600])
def test_reference_units_and_rival_both_act(server, kind, t_align):
    settings = {"t_align": t_align, "t_early": 400}
    both = images_of(server, settings, reference(kind))
    assert differs(both, images_of(server, settings))
    assert differs(both, images_of(server, None, reference(kind)))


def test_exact_guidance_beside_a_reference_unit_is_refused(server):
    answer = ask(server, {"exemplar_prompt": "a pizza", "exact": True}, reference())
    assert answer.status == 422
    assert "reference units" in answer.sentence
    assert ask(server, {"exact": True}, reference()).status == 200


# others


@pytest.mark.parametrize(
    "fields",
    [
        {"override_settings": {"token_merging_ratio": 0.5}},
        {"override_settings": {"sd_hypernetwork": HYPERNETWORK}},
        {"prompt": f"a pizza <hypernet:{HYPERNETWORK}:1>"},
        {"tiling": True},
    ],
)
def test_what_changes_the_model_takes_part_in_the_inversion(server, fields):
    plain, varied = images_of(server, **fields), images_of(server, {})
    both = ask(server, {}, **fields)
    assert "inverted in" in both.infotexts[0]
    assert largest_difference(both.images, plain) > 5
    assert largest_difference(both.images, varied) > 5
    assert "stored inversion" in infotext(server, {})


def test_dynamic_thresholding_and_rival_both_act(server):
    if dynamic_thresholding() is None:
        pytest.skip("Dynamic Thresholding: not found; set RIVAL_DYNAMIC_THRESHOLDING to its folder")
    scripts = {"Dynamic Thresholding (CFG Scale Fix)": [True, 3.0, 95.0]}
    both = images_of(server, {}, scripts=scripts)
    assert largest_difference(both, images_of(server, {})) > 5
    assert largest_difference(both, images_of(server, scripts=scripts)) > 5


def test_freeu_leaves_the_exemplar_alone(server):
    if freeu() is None:
        pytest.skip("FreeU: not found; set RIVAL_FREEU to its folder")
    without = infotext(server, {})
    server.forget()
    stage = {"backbone_factor": 1.5, "skip_factor": 0.5}
    enabled = {"enable": True, "start_ratio": 0.0, "stop_ratio": 1.0, "stage_infos": [stage] * 3}
    assert chain(infotext(server, {}, scripts={"FreeU": [enabled]})) == chain(without)


def test_loopback_varies_each_image_anew(server):
    answer = ask(server, {}, script_name="Loopback", script_args=[3, 0.9, "Linear", "None"])
    assert answer.status == 200
    assert server.watch()["counts"]["plain rows"] > 3 * STEPS


def test_sd_upscale_varies_each_tile_and_refuses_several_at_once(server):
    script = {"script_name": "SD upscale", "script_args": ["", 64, "Lanczos", 2.0], "steps": 4}
    (image,) = images_of(server, {}, **script)
    assert image.shape == (256, 256, 3)
    answer = ask(server, {}, batch_size=2, **script)
    assert answer.status == 422
    assert "Batch size" in answer.sentence


def test_a_plot_over_seed_and_steps_inverts_once_for_each_number_of_steps(server):
    seed, steps = 1, 4  # their indices in the plot's list
    axes = [seed, "3,4", [], steps, "4,6", [], 0, "", []]
    script_args = [*axes, True, True, False, False, False, False, False, 0, False]
    answer = ask(server, {}, script_name="X/Y/Z plot", script_args=script_args)
    assert answer.status == 200, answer.sentence
    # the first infotext is the grid's
    assert ["inverted in" in text for text in answer.infotexts[1:]] == [True, False, True, False]


def test_a_folder_of_images_varies_each(server, tmp_path):
    for name in ("pizza-emojione-yellow", "house-emojione-blue"):
        exemplar(name).save(tmp_path / f"{name}.png")
    texts = server.folder({"enabled": True}, tmp_path)
    assert len({chain(text) for text in texts}) == 2
