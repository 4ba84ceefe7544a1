"""On a real Forge: the extensions built into it, and checkpoints of every family."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import images_of, largest_difference, request
from tests.host.control_models import ADAPTER, CONTROL, place_models
from tests.host.data_folder import add_options, checkpoint_in
from tests.host.families import (
    SD1,
    SD1_EDITING,
    SD1_INPAINTING,
    SD2_EPS,
    SD2_V,
    SDXL_BASE,
    SDXL_INPAINTING,
    SDXL_REFINER,
    SDXL_V_ZERO,
    SETTINGS,
    given_folder,
    place,
)
from tests.host.servers import ForgeServer
from tests.host.test_families import centre_mask

pytestmark = pytest.mark.long

LOADED = (SD1, SD1_INPAINTING, SD2_V, SD2_EPS, SDXL_BASE, SDXL_INPAINTING, SDXL_V_ZERO)
REFUSED = (SDXL_REFINER, SD1_EDITING)
HOUSE = base64_of(exemplar("house-emojione-blue"))


class FamiliesOnForge(ForgeServer):
    """A Forge with a checkpoint of each family. It starts with SD 1.x."""

    @staticmethod
    def _fill(data, with_extension):
        ForgeServer._fill(data, with_extension)
        add_options(data, SETTINGS)
        place_models(data / "models", checkpoint_in(data))
        for family in (*LOADED, *REFUSED) if given_folder() else (SD1_INPAINTING, SD1_EDITING):
            if family is not SD1:
                place(family, checkpoint_in(data).parent)


def started(kind, folder):
    if kind.folder() is None:
        pytest.skip(kind.skipped())
    server = kind(kind.folder(), folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    yield from started(FamiliesOnForge, tmp_path_factory.mktemp("forge"))


# extensions built into it

SAG, PAG = "SelfAttentionGuidance Integrated (SD 1.x, SD 2.x, SDXL)", "PerturbedAttentionGuidance Integrated"
UNIT = {"enabled": True, "image": HOUSE}
EXTENSIONS = {
    "SAG": {SAG: {"args": [True, 1.0, 2.0, 1.0]}},
    "PAG": {PAG: {"args": [True, 3.0, 0.0, 0.0, 1.0]}},
    "FreeU": {"FreeU Integrated (SD 1.x, SD 2.x, SDXL)": {"args": [True, 1.3, 1.4, 0.9, 0.2, 0.0, 1.0]}},
    "Kohya HRFix": {"Kohya HRFix Integrated": {"args": [True, 3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic"]}},
    "StyleAlign": {"StyleAlign Integrated": {"args": [True, 1.0]}},
    "StyleAlign, half": {"StyleAlign Integrated": {"args": [True, 0.5]}},
    "reference": {"ControlNet": {"args": [{**UNIT, "module": "reference_only"}]}},
    "reference, both": {"ControlNet": {"args": [{**UNIT, "module": "reference_adain+attn"}]}},
    "ControlNet": {"ControlNet": {"args": [{**UNIT, "module": "None", "model": CONTROL}]}},
    "IP-Adapter": {"ControlNet": {"args": [{**UNIT, "module": "CLIP-ViT-H (IPAdapter)", "model": ADAPTER}]}},
    "SAG and PAG": {SAG: {"args": [True, 1.0, 2.0, 1.0]}, PAG: {"args": [True, 3.0, 0.0, 0.0, 1.0]}},
}
TILES = {"MultiDiffusion Integrated": {"args": [True, "MultiDiffusion", 64, 64, 16, 4]}}
SMALL = {"steps": 6, "batch_size": 2}


def beside(server, others, settings=None, **fields):
    """Send a request with the arguments of other scripts."""
    server.plan()
    payload = request(settings, **SMALL, **fields)
    payload["alwayson_scripts"] = {**payload.get("alwayson_scripts", {}), **others}
    return server.img2img(**payload)


def left(server):
    """What a request left. It may hold another extension's patches, which Forge takes off before the next request."""
    return sorted(line.partition(" at 0x")[0] for line in server.leftovers())


def of(answer):
    """Return the two images of an answer. A unit's image comes after them."""
    assert answer.status == 200, answer.sentence
    return answer.images[:2]


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("settings", [{}, {"exact": True, "exemplar_prompt": "a pizza"}], ids=["", "exact"])
def test_forge_both_act_and_nothing_is_left(server, name, settings):
    plain, varied = (of(beside(server, {}, wanted)) for wanted in (None, settings))
    alone = of(beside(server, EXTENSIONS[name]))
    theirs = left(server)
    together = beside(server, EXTENSIONS[name], settings)
    assert left(server) == theirs
    assert largest_difference(alone, plain) > 5
    assert min(largest_difference(of(together), others) for others in (plain, varied, alone)) > 5
    # SAG takes over the attention of the middle layer
    layers = 9 if SAG in EXTENSIONS[name] else 10
    text = together.infotexts[0]
    assert f"{layers} layers; 6 of 6 steps injected" in text
    assert "stored inversion" in text
    assert ("another extension replaces 1 of the layers" in text) == (layers == 9)
    assert largest_difference(of(beside(server, {}, settings)), varied) == 0
    assert largest_difference(of(beside(server, {})), plain) == 0
    assert left(server) == []


def test_forge_tiles_are_refused_before_sampling(server):
    answer = beside(server, TILES, {})
    assert answer.status == 422
    assert "MultiDiffusion evaluates tiles" in answer.sentence
    assert server.calls() == 0
    of(beside(server, {}))
    assert left(server) == []


# checkpoints


def on(server, family, settings=None, **fields):
    if family.source != SD1.source and given_folder() is None:
        pytest.skip("checkpoints of other families: not found; set RIVAL_FAMILIES to their folder")
    server.plan()
    return server.img2img(**request(settings, override_settings=family.settings(), **{"steps": 6, **fields}))


@pytest.mark.parametrize("family", LOADED, ids=lambda family: family.name)
@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "Euler a"])
def test_forge_every_layer_sees_the_exemplar_in_every_step(server, family, sampler):
    plain, varied, again = (on(server, family, wanted, sampler_name=sampler) for wanted in (None, {}, {}))
    assert (plain.status, varied.status) == (200, 200), varied.sentence
    assert f"Model: {family.file}" in varied.infotexts[0]
    assert largest_difference(varied.images, plain.images) > 5
    assert "stored inversion" in again.infotexts[0]
    assert largest_difference(varied.images, again.images) == 0
    layers = server._state()["layers"]
    injected = 4 if sampler == "DDIM" else 6
    assert f"{layers} layers; {injected} of {injected} steps injected" in varied.infotexts[0]
    assert server.leftovers() == []


@pytest.mark.parametrize("family", LOADED, ids=lambda family: family.name)
def test_forge_a_mask_is_filled(server, family):
    mask = base64_of(centre_mask().resize((128, 128)))
    plain, filled = (on(server, family, wanted, mask=mask) for wanted in (None, {"mode": "inpaint"}))
    assert filled.status == 200, filled.sentence
    assert "6 of 6 steps injected" in filled.infotexts[0]
    assert largest_difference(plain.images, filled.images) > 5
    kept = [np.asarray(image)[:12] for image in (plain.images[0], filled.images[0])]
    # the host's overlay has a soft edge
    assert largest_difference(kept[:1], kept[1:]) == 0


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.name)
def test_forge_other_checkpoints_are_refused_before_sampling(server, family):
    answer = on(server, family, {})
    assert answer.status == 422, answer.sentence
    assert "this checkpoint is not supported; load a Stable Diffusion 1, 2 or XL" in answer.sentence
    assert server.calls() == 0
    assert largest_difference(images_of(server, {}), images_of(server, {})) == 0
