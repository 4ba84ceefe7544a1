"""RIVAL loaded before and after other extensions on a real WebUI: the same images, nothing broken."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.asking import largest_difference
from tests.host.compat_servers import (
    DETECTOR,
    CompatServer,
    adetailer,
    controlnet,
    dynamic_thresholding,
    freeu,
    tiled_diffusion,
)
from tests.host.conftest import SKIPPED
from tests.host.servers import real_folder
from tests.host.test_compat import ask, chain, unit

FOLDERS = ("0-rival", "zz-rival")
"""Names of RIVAL's folder. The host loads scripts in the order of the folders' names."""

LARGE = {"width": 256, "height": 256}

MULTIDIFFUSION, MIXTURE = "MultiDiffusion", "Mixture of Diffusers"


def tiles(method, side=16):
    """Make Tiled Diffusion's arguments. `side` is the side of a tile, in latent positions."""
    return {"Tiled Diffusion": [True, method, False, False, 256, 256, side, side, 4, 4, "None", 1.0]}


INVERTED = {"Tiled Diffusion": [*tiles(MULTIDIFFUSION)["Tiled Diffusion"], True, 4]}
"""Tiled Diffusion's own noise inversion."""

DEMOFUSION = {"DemoFusion": [True, "DemoFusion", True, 16, 4, 4, 2]}

TILED_VAE = {"Tiled VAE": [True, 64, 32, False, False, False, False]}
"""Arguments of Tiled VAE: tiles of 64 pixels for the encoder, and of 32 positions for the decoder."""

THRESHOLDING = {"Dynamic Thresholding (CFG Scale Fix)": [True, 3.0, 95.0]}

FREEU = {"FreeU": [{"enable": True, "stage_infos": [{"backbone_factor": 1.5, "skip_factor": 0.5}] * 3}]}


def detail(**fields):
    """Make adetailer's arguments: one run over the largest object that its detector finds."""
    found = {"ad_model": DETECTOR, "ad_confidence": 0.0001, "ad_mask_k": 1, "ad_denoising_strength": 0.5}
    return {"ADetailer": [True, False, {**found, **fields}]}


RUNS = {"plain": (None, {}), "varied": ({}, {}), "large": ({}, LARGE), "large plain": (None, LARGE)}
"""The settings and fields of each run, by name."""

RUNS_BESIDE = {
    controlnet: {"varied beside ControlNet": ({}, {"units": [unit()]})},
    dynamic_thresholding: {"varied beside Dynamic Thresholding": ({}, {"scripts": THRESHOLDING})},
    freeu: {"varied beside FreeU": ({}, {"scripts": FREEU})},
    tiled_diffusion: {
        "Tiled VAE": (None, {"scripts": TILED_VAE, **LARGE}),
        "varied beside Tiled VAE": ({}, {"scripts": TILED_VAE, **LARGE}),
        "tiles": (None, {"scripts": tiles(MULTIDIFFUSION), **LARGE}),
        "tiles mixed": (None, {"scripts": tiles(MIXTURE), **LARGE}),
        "varied in tiles": ({}, {"scripts": tiles(MULTIDIFFUSION), **LARGE}),
        "plain after tiles": (None, {}),
        "varied in tiles of DDIM": ({}, {"scripts": tiles(MULTIDIFFUSION), "sampler_name": "DDIM", **LARGE}),
        "varied in tiles mixed": ({}, {"scripts": tiles(MIXTURE), **LARGE}),
        "large after tiles mixed": ({}, LARGE),
        "varied in tiles inverted": ({}, {"scripts": INVERTED, **LARGE}),
        "varied in one tile": ({}, {"scripts": tiles(MULTIDIFFUSION, side=32), **LARGE}),
        "varied by DemoFusion": ({}, {"scripts": DEMOFUSION}),
        "plain after DemoFusion": (None, {}),
        "large once more": ({}, LARGE),
    },
    adetailer: {
        "detailed": (None, {"scripts": detail()}),
        "varied and detailed": ({}, {"scripts": detail()}),
        "varied and detailed by itself": ({}, {"scripts": detail(), "override_settings": {"ad_script_names": "rival"}}),
        "varied, and all scripts in the details": (
            {"t_early": 400},
            {"scripts": detail(), "override_settings": {"ad_only_selected_scripts": False}},
        ),
        "varied and not detailed for want of a model": ({}, {"scripts": detail(ad_model="not there.pt")}),
        "varied after details": ({}, {}),
        "plain after details": (None, {}),
    },
}
"""The runs, by the extension that they need, in this order."""


CHECK = {"image": base64_of(exemplar("pizza-emojione-yellow")), "sampler_name": "Euler", "steps": 4, **LARGE}


class OrderedServer(CompatServer):
    """A server with RIVAL in a folder of this name."""

    folder_of_rival = FOLDERS[0]

    @classmethod
    def _fill(cls, data, with_extension):
        CompatServer._fill(data, with_extension)
        (data / "extensions" / "sd-webui-rival").rename(data / "extensions" / cls.folder_of_rival)


def observe(name, data):
    """Make all runs.

    Returns:
        By name the answers and the hooks afterwards, the axes, and the failures in the log.
    """
    OrderedServer.folder_of_rival = name
    server = OrderedServer(real_folder(), data, flags=["--ad-no-huggingface"] if adetailer() else [])
    try:
        seen = {"axes": sorted(server.axes()), "failures": server.failures(), "log": server.said()}
        runs = RUNS | {run: asked for there, more in RUNS_BESIDE.items() if there() for run, asked in more.items()}
        for run, (settings, fields) in runs.items():
            server.forget()
            fields = dict(fields)
            seen[run] = answer = ask(server, settings, *fields.pop("units", []), **fields)
            if answer.status == 422:
                # no script of another extension takes part in it, so none cleans up
                seen[f"{run}: checked"] = server.client.post("/rival/v1/invert", json=CHECK).status_code
            # RIVAL's hooks are torch's own; ControlNet leaves methods replaced by the original ones
            seen[f"{run}: left"] = [hook for hook in server.leftovers() if "hooks" in hook]
        return seen
    finally:
        server.stop()


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """The observations with RIVAL loaded first, and with RIVAL loaded last."""
    if real_folder() is None:
        pytest.skip(SKIPPED)
    if not any(there() for there in RUNS_BESIDE):
        pytest.skip("other extensions: none found; set RIVAL_CONTROLNET and the like to their folders")
    return [observe(name, tmp_path_factory.mktemp("order")) for name in FOLDERS]


@pytest.fixture(params=[0, 1], ids=FOLDERS)
def seen(orders, request):
    return orders[request.param]


@pytest.fixture
def tiled(seen):
    if tiled_diffusion() is None:
        pytest.skip("Tiled Diffusion: not found; set RIVAL_TILED_DIFFUSION to its folder")
    return seen


@pytest.fixture
def detailed(seen):
    if adetailer() is None:
        pytest.skip("adetailer: not found; set RIVAL_ADETAILER to its folder, RIVAL_ADETAILER_PACKAGES to its packages")
    return seen


def mean_difference(one, other):
    """Return the mean difference of two answers' first images, in 255ths."""
    return np.abs(one.images[0].astype(int) - other.images[0]).mean()


def report(answer):
    return re.search(r'RIVAL report: ("[^"]*"|[^,\n]*)', answer.infotexts[0])[1]


def test_the_order_changes_no_image(orders):
    first, last = orders
    for name in [name for name, answer in first.items() if hasattr(answer, "images")]:
        assert (first[name].status, first[name].sentence) == (last[name].status, last[name].sentence), name
        for one, other in zip(first[name].images, last[name].images, strict=True):
            assert np.array_equal(one, other), name
    assert first["axes"] == last["axes"]


def test_all_of_them_are_loaded(seen):
    assert seen["failures"] == []
    assert any(axis == "[RIVAL] Similarity" for axis in seen["axes"])
    assert "RIVAL: off" not in seen["log"]


def test_nothing_of_rivals_is_left_on_the_unet(seen):
    left = [hook for name, hooks in seen.items() if name.endswith(": left") for hook in hooks]
    assert left == []


def test_tiled_vae_works(tiled):
    both, varied, alone = tiled["varied beside Tiled VAE"], tiled["large"], tiled["Tiled VAE"]
    assert both.status == 200
    assert "inverted in" in report(both)
    # it differs a little from the image without tiles, and much from the plain image
    assert 0 < mean_difference(both, varied) < mean_difference(both, alone) / 2


@pytest.mark.parametrize(
    "name", ["varied in tiles", "varied in tiles of DDIM", "varied in tiles mixed", "varied in tiles inverted"]
)
def test_tiles_are_refused_in_a_sentence(tiled, name):
    assert tiled[name].status == 422
    assert tiled[name].sentence.startswith("RIVAL: Tiled Diffusion evaluates tiles")


def test_demofusion_is_refused_in_a_sentence(tiled):
    assert tiled["varied by DemoFusion"].status == 422
    assert tiled["varied by DemoFusion"].sentence.startswith("RIVAL: DemoFusion replaces the WebUI's own sampling")


def test_after_a_refusal_nothing_of_the_tiles_is_left(tiled):
    for after, before in (
        ("plain after tiles", "plain"),
        ("plain after DemoFusion", "plain"),
        ("large after tiles mixed", "large"),
        ("large once more", "large"),
        ("varied in one tile", "large"),
    ):
        assert tiled[after].status == 200, tiled[after].sentence
        assert largest_difference(tiled[after].images, tiled[before].images) == 0, after
    checked = {name: status for name, status in tiled.items() if name.endswith(": checked")}
    assert len(checked) == 5
    assert set(checked.values()) == {200}


def test_tiles_act_without_rival(tiled):
    for name in ("tiles", "tiles mixed"):
        assert largest_difference(tiled[name].images, tiled["large plain"].images) > 20


def test_details_are_painted_into_a_variation(detailed):
    both, varied = detailed["varied and detailed"], detailed["varied"]
    assert both.status == 200
    assert "ADetailer model" in both.infotexts[0]
    assert chain(both.infotexts[0]) == chain(varied.infotexts[0])
    changed = np.abs(both.images[0].astype(int) - varied.images[0]).max(-1) > 8
    # it covers only a part of the image
    assert 0.02 < changed.mean() < 0.7
    # the detector sets torch's number of threads, which changes the last bit of any sum
    for name in ("varied", "plain"):
        assert largest_difference(detailed[f"{name} after details"].images, detailed[name].images) <= 1


@pytest.mark.parametrize("name", ["varied and detailed by itself", "varied, and all scripts in the details"])
def test_rival_may_act_in_the_details_too(detailed, name):
    answer = detailed[name]
    assert answer.status == 200, answer.sentence
    assert "RIVAL report" in answer.infotexts[0]
    assert largest_difference(answer.images, detailed["varied and detailed"].images) > 8


def test_a_detector_that_is_not_there_costs_the_details_only(detailed):
    answer = detailed["varied and not detailed for want of a model"]
    assert answer.status == 200
    assert largest_difference(answer.images, detailed["varied after details"].images) == 0
