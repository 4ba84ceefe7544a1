"""Run by the WebUI at its start: installs nothing, says in one line what is missing."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

PACKAGES = {"torch": "2.1", "numpy": "1.26", "Pillow": "9.5", "pydantic": "1.10", "psutil": "5.9", "fastapi": "0.94"}
"""What the extension imports and the WebUI ships, from the oldest version that it was tried with."""

HOST_MODULES = ("modules.infotext_utils", "modules.sd_samplers_timesteps", "modules.ui_components")
"""Modules that came with WebUI 1.10 at the latest."""


def missing() -> list[str]:
    """What the extension relies on and does not find, in words."""
    found = []
    for package, least in PACKAGES.items():
        try:
            if Version(version(package)) < Version(least):
                found.append(f"{package} {least} or later (here: {version(package)})")
        except PackageNotFoundError:
            found.append(f"{package} {least} or later")
    if not all(_exists(name) for name in HOST_MODULES):
        found.append("AUTOMATIC1111 WebUI 1.10")
    return found


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


if __name__ == "__main__" and missing():
    print("RIVAL will not work: it needs " + ", ".join(missing()) + ".")
