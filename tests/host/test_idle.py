"""Switched off, the extension is only a panel: it imports none of the method, and it hooks nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.host.data_folder import ROOT
from tests.host.idle import SWITCHED_OFF, observe
from tests.host.servers import WEBUIS

UI = ("check_button", "exemplar_tools", "gallery", "gradio_compat", "host_controls", "panel", "presets", "run_preview")
PAGE = ("api", "axes", "backends", "http", "infotext", "options", "requirements", "script", "ui")
WEBUI = (*PAGE, *(f"ui.{name}" for name in UI))
PANEL = {
    *("rival_ext", "rival_ext.errors", "rival_ext.fields", "rival_ext.infotext", "rival_ext.settings"),
    "rival_ext.written",
    *("rival_ext.images", "rival_ext.images.containers", "rival_ext.images.decoding", "rival_ext.images.foreign"),
    *("rival_ext.hosts", "rival_ext.hosts.webui", *(f"rival_ext.hosts.webui.{name}" for name in WEBUI)),
}
"""The modules that the panel, the settings page and the API's routes need. None of them imports torch, and none is of
`method/` or `storage/`."""


@pytest.fixture(scope="module", params=["stand-in", *WEBUIS])
def seen(request, tmp_path_factory):
    """The observations on a server whose first requests leave the extension switched off."""
    if request.param == "stand-in":
        command = [sys.executable, "-m", "tests.host.idle"]
        return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    webui = WEBUIS[request.param]
    if webui.folder() is None:
        pytest.skip(webui.skipped())
    server = webui(webui.folder(), tmp_path_factory.mktemp("webui"))
    try:
        return observe(server)
    finally:
        server.stop()


@pytest.mark.parametrize("name", SWITCHED_OFF)
def test_switched_off_only_the_panel_is_imported_and_nothing_is_hooked(seen, name):
    assert "rival_ext.hosts.webui.ui.panel" in seen[name]["imported"]
    assert set(seen[name]["imported"]) <= PANEL
    assert seen[name]["hooked"] == []


def test_switched_on_the_core_is_imported_and_the_unet_is_hooked(seen):
    core = {"rival_ext.method.guide", "rival_ext.method.attention", "rival_ext.storage.store"}
    assert core | {"rival_ext.hosts.webui.sampling"} <= set(seen["switched on"]["imported"])
    # of the layers; or of the UNet, if a patcher injects the exemplar
    assert any("_forward_pre_hooks" in hooked for hooked in seen["switched on"]["hooked"])
