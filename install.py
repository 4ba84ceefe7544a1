"""The WebUI runs this file at its start. It installs nothing and says in one line what is missing."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

PACKAGES = {"torch": "2.1", "numpy": "1.26", "Pillow": "9.5", "pydantic": "1.10", "psutil": "5.9", "fastapi": "0.94"}
"""The packages that the extension imports and the WebUI ships, each with the oldest version that was tried."""

HOST_MODULES = ("modules.infotext_utils", "modules.sd_samplers_timesteps", "modules.ui_components")
"""Modules of the WebUI that exist in 1.10 and later."""


def missing() -> list[str]:
    """List what the extension needs and does not find: packages with their oldest version, then the WebUI itself."""
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
