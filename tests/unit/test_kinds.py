"""Which WebUI it is, and what it has or has not: told apart by what can be imported."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rival_ext.hosts.webui.requirements import REQUIREMENTS_BY_WEBUI, requirements_of
from rival_ext.hosts.webui.sampling import kind as webui_kind

PACKAGES = {
    "AUTOMATIC1111": set(),
    "reForge": {"modules_forge"},
    "Forge": {"modules_forge", "backend"},
    "Forge Neo": {"modules_forge", "backend", "modules_forge.presets"},
}
"""What each has of what they are told apart by."""


@pytest.mark.parametrize("name", PACKAGES)
def test_a_webui_is_known_by_what_can_be_imported(monkeypatch, name):
    spec = SimpleNamespace()
    monkeypatch.setattr(webui_kind, "find_spec", lambda module: spec if module in PACKAGES[name] else None)
    assert webui_kind.kind() == name


def test_each_kind_has_a_table():
    assert set(REQUIREMENTS_BY_WEBUI) == set(PACKAGES)


@pytest.mark.parametrize("name", PACKAGES)
def test_each_kind_is_asked_for_its_own_switch_to_the_refiner(name):
    asked = {
        "AUTOMATIC1111": "apply_refiner(cfg_denoiser, sigma)",
        "reForge": "apply_refiner(cfg_denoiser, x)",
        "Forge": "apply_refiner(cfg_denoiser, x)",
        "Forge Neo": "apply_refiner(cfg_denoiser, x, sigma)",
    }
    rows = requirements_of(name)["modules.sd_samplers_common"]
    assert [row for row in rows if row.startswith("apply_refiner")] == [asked[name]]


def test_forge_neo_is_not_asked_for_what_it_has_removed():
    rows = [f"{module}.{row}" for module, entries in requirements_of("Forge Neo").items() for row in entries]
    assert not [row for row in rows if any(gone in row for gone in ("deepbooru", "interrogator", "hypernetwork"))]
