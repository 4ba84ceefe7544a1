"""On a real reForge: its own samplers, its own extensions, a checkpoint for inpainting."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import images_of, largest_difference, request
from tests.host.control_models import CONTROL, place_models
from tests.host.data_folder import add_options, checkpoint_in
from tests.host.families import (
    SD1_EDITING,
    SD1_INPAINTING,
    SD2_EPS,
    SD2_V,
    SDXL_BASE,
    SDXL_INPAINTING,
    SDXL_REFINER,
    SETTINGS,
    given_folder,
    place,
)
from tests.host.servers import ReforgeServer

pytestmark = pytest.mark.long

ON_PARTS = ["Euler Dy", "Euler SMEA Dy"]
"""Samplers that evaluate parts of the image, or a larger one."""
UNGUIDED_FIRST = [
    *("Euler CFG++", "Euler Ancestral CFG++", "DPM++ 2M CFG++", "DPM++ SDE CFG++", "Euler DY CFG++"),
    *("Euler SMEA DY CFG++", "Euler A DY CFG++", "RES Multistep CFG++", "RES Multistep Ancestral CFG++"),
    *("Gradient Estimation CFG++", "DPM++ 2S Ancestral CFG++ Intern"),
]
"""Samplers that take their direction from the prediction without the prompt."""
COMFY = ["Euler A Comfy", "DPM++ 2M SDE Comfy", "DPM++ SDE Comfy", "Heun Comfy", "Euler A Turbo"]
OTHERS = [
    "ER SDE",
    "SEEDS 2 DP",
    "SA-Solver-Pece",
    "DEIS",
    "IPNDM",
    "RES Solver",
    "HeunPP2",
    "DDPM",
    "DPM++ SDE Classic",
]
SOLVERS = ["ODE (Dopri5)"]
SAMPLING = "advanced model sampling for reforge"
EXTENSIONS = {
    "SAG": "selfattentionguidance integrated",
    "FreeU": "freeu integrated",
    "Kohya HRFix": "kohya hrfix integrated",
    "RescaleCFG": "rescalecfg for reforge",
    "Mahiro": "mahiro cfg for reforge",
}
"""The arguments that switch each extension on, by its title."""
UNITS_OF = "controlnet"
UNIT = {"enabled": True, "image": base64_of(exemplar("house-emojione-blue")), "module": "None"}
"""Units of the host's ControlNet. Its reference units change no image, even without RIVAL."""
GIVEN = [(SD2_V, 16), (SD2_EPS, 16), (SDXL_BASE, 17), (SDXL_INPAINTING, 17)]
"""Families made from the small checkpoints, with the number of their self-attention layers."""


class FamiliesOnReforge(ReforgeServer):
    """A reForge with a checkpoint of each family. It starts with SD 1.x."""

    @staticmethod
    def _fill(data, with_extension):
        ReforgeServer._fill(data, with_extension)
        add_options(data, SETTINGS)
        place_models(data / "models", checkpoint_in(data))
        given = [*(family for family, _ in GIVEN), SDXL_REFINER] if given_folder() else []
        for family in (SD1_INPAINTING, SD1_EDITING, *given):
            place(family, checkpoint_in(data).parent)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = ReforgeServer.folder()
    if folder is None:
        pytest.skip(ReforgeServer.skipped())
    started = FamiliesOnReforge(folder, tmp_path_factory.mktemp("reforge"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def defaults(server):
    """Return the default arguments of each script in img2img."""
    known = server.client.get("/sdapi/v1/script-info").json()
    return {s["name"]: [arg["value"] for arg in s["args"]] for s in known if s["is_img2img"]}


def beside(server, defaults, title, *args, settings=None, **fields):
    """Send a request with these first arguments of another script."""
    server.plan()
    payload = request(settings, **fields)
    asked = [*args, *defaults[title][len(args) :]]
    payload["alwayson_scripts"] = {**payload.get("alwayson_scripts", {}), title: {"args": asked}}
    return server.img2img(**payload)


def colour_distance(images):
    """Return the distance of the images' mean colour from the exemplar's, in 255ths."""
    photo = np.asarray(exemplar("pizza-emojione-yellow").convert("RGB")).reshape(-1, 3).mean(0)
    return np.mean([np.abs(image.reshape(-1, 3).mean(0) - photo).mean() for image in images])


@pytest.mark.parametrize("sampler", [*UNGUIDED_FIRST, *COMFY, *OTHERS, *ON_PARTS])
def test_reforges_own_samplers_are_run_dry_and_guided_in_every_step(server, sampler):
    plain, guided = (server.img2img(**request(wanted, sampler_name=sampler, steps=10)) for wanted in (None, {}))
    assert (plain.status, guided.status) == (200, 200), guided.sentence
    injected, total = map(int, re.search(r"10 layers; (\d+) of (\d+) steps injected", guided.infotexts[0]).groups())
    # one of them ends a step earlier
    assert injected == total >= 9
    assert "recorded features" in guided.infotexts[0]
    assert server.leftovers() == []
    # a direction without the correction ends in noise, and so does a correction at a wrong level
    assert roughness(guided.images[0]) < 1.5 * roughness(plain.images[0])


def roughness(image):
    """Return the mean difference of adjacent pixels."""
    return np.abs(np.diff(image.astype(float), axis=0)).mean()


@pytest.mark.parametrize("sampler", SOLVERS)
def test_reforges_solvers_see_the_exemplar_live(server, sampler):
    answer = server.img2img(**request({}, sampler_name=sampler))
    assert answer.status == 200, answer.sentence
    assert "live features" in answer.infotexts[0]
    assert "the sampler chooses its noise levels as it runs" in answer.infotexts[0]


@pytest.mark.parametrize("name", EXTENSIONS)
def test_reforges_own_extensions_and_rival_both_act(server, defaults, name):
    title = EXTENSIONS[name]
    plain, varied = images_of(server), images_of(server, {})
    alone, together = (beside(server, defaults, title, True, settings=wanted) for wanted in (None, {}))
    assert (alone.status, together.status) == (200, 200), together.sentence
    assert "8 of 8 steps injected" in together.infotexts[0]
    for others in (plain, varied, alone.images):
        assert largest_difference(together.images, others) > 5
    assert largest_difference(images_of(server, {}), varied) == 0
    assert largest_difference(images_of(server), plain) == 0


@pytest.mark.parametrize("settings", [{}, {"exact": True, "exemplar_prompt": "a pizza"}], ids=["", "exact"])
def test_reforges_controlnet_and_rival_both_act(server, settings):
    models = server.client.get("/controlnet/model_list").json()["model_list"]
    # the host names a model by its file and the file's hash
    unit = {**UNIT, "model": next(model for model in models if model.startswith(CONTROL))}
    plain, varied = images_of(server), images_of(server, settings)
    alone, together = (beside(server, {UNITS_OF: [{}]}, UNITS_OF, unit, settings=w) for w in (None, settings))
    assert (alone.status, together.status) == (200, 200), together.sentence
    assert "8 of 8 steps injected" in together.infotexts[0]
    assert largest_difference(alone.images[:1], plain) > 5
    for others in (plain, varied, alone.images[:1]):
        assert largest_difference(together.images[:1], others) > 5
    assert largest_difference(images_of(server, settings), varied) == 0
    assert largest_difference(images_of(server), plain) == 0


def test_reforges_multidiffusion_is_refused(server, defaults):
    answer = beside(server, defaults, "multidiffusion integrated", True, settings={})
    assert answer.status == 422
    assert "MultiDiffusion evaluates tiles" in answer.sentence


def test_reforges_chosen_kind_of_prediction_is_the_exemplars_too(server, defaults):
    """The chosen schedule needs another inversion, which is exact; the choice ends with the request."""
    before = images_of(server, {})
    for kind, zero in (("eps", True), ("v_prediction", False)):
        chosen = (True, "Discrete", kind, zero)
        plain = beside(server, defaults, SAMPLING, *chosen)
        answer = beside(server, defaults, SAMPLING, *chosen, settings={})
        assert (plain.status, answer.status) == (200, 200), answer.sentence
        assert "inverted in" in answer.infotexts[0]
        assert largest_difference(answer.images, plain.images) > 5
        assert largest_difference(answer.images, before) > 5
    # the host itself applies the choice to one more request
    images_of(server)
    assert largest_difference(images_of(server, {}), before) == 0


def test_reforge_inpainting_checkpoint_sees_its_mask_and_the_exemplar(server):
    chosen = {"override_settings": SD1_INPAINTING.settings()}
    guided = images_of(server, {}, **chosen)
    assert largest_difference(guided, images_of(server, **chosen)) > 5
    assert colour_distance(guided) < 0.6 * colour_distance(images_of(server, **chosen))


def test_reforge_editing_checkpoint_which_it_cannot_guide_itself_is_refused(server):
    answer = server.img2img(**request({}, override_settings=SD1_EDITING.settings()))
    assert answer.status == 422
    assert "this checkpoint is not supported; load a Stable Diffusion 1, 2 or XL" in answer.sentence


@pytest.mark.parametrize(("family", "layers"), GIVEN, ids=[family.name for family, _ in GIVEN])
def test_reforge_inverts_and_guides_each_family(server, family, layers):
    if given_folder() is None:
        pytest.skip("checkpoints of other families: not found; set RIVAL_FAMILIES to their folder")
    fields = {"width": 64, "height": 64, "override_settings": family.settings()}
    plain, answer = (server.img2img(**request(wanted, **fields)) for wanted in (None, {}))
    assert (plain.status, answer.status) == (200, 200), answer.sentence
    assert f"{layers} layers; 8 of 8 steps injected" in answer.infotexts[0]
    assert largest_difference(plain.images, answer.images) > 5
    assert server.leftovers() == []


def test_reforge_refuses_the_refiner_alone(server):
    if given_folder() is None:
        pytest.skip("checkpoints of other families: not found; set RIVAL_FAMILIES to their folder")
    answer = server.img2img(**request({}, width=64, height=64, override_settings=SDXL_REFINER.settings()))
    assert answer.status == 422
    assert "this checkpoint is not supported; load a Stable Diffusion 1, 2 or XL" in answer.sentence
