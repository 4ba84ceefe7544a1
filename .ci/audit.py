"""Looks for known vulnerabilities in what the project pins and what is installed beside it; ends with 1 if there are.

It asks PyPI's advisories through pip-audit. Where these do not answer, it looks into safety-db, which needs no network
but is old, and says so. A pin that is known to be vulnerable goes with the others: an audit that does not find that one
has not looked, whatever it says, and is none.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import distribution, distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r'^ *"([\w.-]+)==([\w.!]+)', re.MULTILINE)
CANARY = ("pillow", "6.0.0")
"""Has had known vulnerabilities since 2019."""

NOT_OURS = {"sd-webui-rival", "pip"}
"""The project itself, and what comes with Python."""

SECONDS = 120
"""For all of pip-audit."""

Pin = tuple[str, str]
"""A package's normalised name, and a version."""

Found = Mapping[Pin, list[str]]
"""The advisories by pin; what the service does not know is left out."""


def pins(project: str) -> set[Pin]:
    """Those of the project's file, for whatever Python, and what is installed here, with all that it has brought."""
    installed = {(one.metadata["Name"], Version(one.version).public) for one in distributions()}
    named = {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in {*PIN.findall(project), *installed}}
    return {(name, version) for name, version in named if name not in NOT_OURS}


def of_pypi(asked: set[Pin]) -> tuple[str, Found]:
    """What PyPI's advisories know, and when they were asked."""
    with tempfile.TemporaryDirectory() as folder:
        answers = [_pip_audit(Path(folder) / "pins.txt", batch) for batch in _one_version_each(asked)]
    known = {
        (one["name"], one["version"]): [vulnerability["id"] for vulnerability in one["vulns"]]
        for answer in answers
        for one in answer["dependencies"]
        # one that was not found there was not looked into either
        if "vulns" in one
    }
    return f"PyPI's advisories of {datetime.now(timezone.utc):%Y-%m-%d}", known


def _one_version_each(asked: set[Pin]) -> list[set[Pin]]:
    """The pins in as many parts as it takes for a package to be in each but once, as a list of requirements has it."""
    batches: list[set[Pin]] = []
    for pin in sorted(asked):
        free = next((batch for batch in batches if pin[0] not in dict(batch)), None)
        if free is None:
            batches.append(free := set())
        free.add(pin)
    return batches


def _pip_audit(file: Path, batch: set[Pin]) -> dict:
    file.write_text("".join(f"{name}=={version}\n" for name, version in sorted(batch)))
    options = [
        "--requirement",
        str(file),
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    command = [sys.executable, "-m", "pip_audit", *options, "--timeout", "10"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        # its exit code is 1 for a vulnerability and for no answer alike
        return json.loads(run.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return {"dependencies": []}


def of_safety_db(asked: set[Pin]) -> tuple[str, Found]:
    """What safety-db knows, and of when it is."""
    # its own module cannot be imported: it looks for its data in the current folder
    data = json.loads(Path(distribution("safety-db").locate_file("safety_db/insecure_full.json")).read_text())
    when = datetime.fromtimestamp(data["$meta"]["timestamp"], timezone.utc)
    known = {
        (name, version): [
            one["cve"] or one["id"]
            for one in data.get(name, ())
            if any(SpecifierSet(several).contains(version, prereleases=True) for several in one["specs"])
        ]
        for name, version in asked
    }
    return f"safety-db of {when:%Y-%m-%d}, which knows nothing newer", known


def audit(asked: set[Pin], services: list[Callable[[set[Pin]], tuple[str, Found]]]) -> int:
    """Prints what the first service that answers knows; how many pins are vulnerable.

    Raises SystemExit if none answers.
    """
    for service in services:
        source, known = service({*asked, CANARY})
        if known.get(CANARY):
            break
        print(f"audit: no answer from {source}.")
    else:
        raise SystemExit("audit: nobody answered; nothing was audited.")
    unknown = sorted(name for name, version in asked if (name, version) not in known)
    vulnerable = {pin: known[pin] for pin in sorted(asked) if known.get(pin)}
    for (name, version), advisories in vulnerable.items():
        print(f"audit: {name} {version}: {', '.join(advisories)}")
    print(f"audit: {len(asked) - len(unknown)} versions, {len(vulnerable)} vulnerable, by {source}.")
    if unknown:
        print(f"audit: not known there: {', '.join(unknown)}.")
    return len(vulnerable)


if __name__ == "__main__":
    sys.exit(min(audit(pins((ROOT / "pyproject.toml").read_text()), [of_pypi, of_safety_db]), 1))
