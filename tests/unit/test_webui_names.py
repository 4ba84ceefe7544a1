"""Which WebUI this process runs in, and what RIVAL requires of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rival_ext.hosts.webui import backends
from rival_ext.hosts.webui.requirements import REQUIREMENTS_BY_WEBUI, requirements_of

PACKAGES = {
    "AUTOMATIC1111": set(),
    "reForge": {"modules_forge"},
    "Forge": {"modules_forge", "backend"},
    "Forge Neo": {"modules_forge", "backend", "modules_forge.presets"},
}
"""For each WebUI the packages that can be imported there, of those by which `webui_name` decides."""


@pytest.mark.parametrize("name", PACKAGES)
def test_a_webui_is_known_by_what_can_be_imported(monkeypatch, name):
    spec = SimpleNamespace()
    monkeypatch.setattr(backends, "find_spec", lambda module: spec if module in PACKAGES[name] else None)
    assert backends.webui_name() == name


def test_each_webui_has_requirements_and_a_model_class():
    assert set(REQUIREMENTS_BY_WEBUI) == set(PACKAGES) == set(backends.MODEL_CLASSES)


@pytest.mark.parametrize("name", PACKAGES)
def test_each_webui_must_offer_its_own_form_of_apply_refiner(name):
    asked = {
        "AUTOMATIC1111": "apply_refiner(cfg_denoiser, sigma)",
        "reForge": "apply_refiner(cfg_denoiser, x)",
        "Forge": "apply_refiner(cfg_denoiser, x)",
        "Forge Neo": "apply_refiner(cfg_denoiser, x, sigma)",
    }
    rows = requirements_of(name)["modules.sd_samplers_common"]
    assert [row for row in rows if row.startswith("apply_refiner")] == [asked[name]]


def test_forge_neo_need_not_offer_what_it_has_removed():
    rows = [f"{module}.{row}" for module, entries in requirements_of("Forge Neo").items() for row in entries]
    assert not [row for row in rows if any(gone in row for gone in ("deepbooru", "interrogator", "hypernetwork"))]
