"""The audit of dependencies (.ci/audit.py) finds vulnerable versions, and fails if no service answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.host.data_folder import ROOT

PROJECT = '[project]\ncli = [\n    "Torch_Audio==2.1.0; python_version < \'3.11\'",\n    "pillow==8.1.0",\n]\n'
PILLOW = ("pillow", "8.1.0")
TORCH = ("torch-audio", "2.1.0")


@pytest.fixture(scope="module")
def audit():
    """The module `audit`, which is in no folder that Python searches."""
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def installed(*pins):
    return lambda: [SimpleNamespace(metadata={"Name": name}, version=version) for name, version in pins]


def test_pins_for_every_python_and_installed_packages_are_looked_up(audit, monkeypatch):
    here = installed(("Jinja2", "3.0"), ("torch", "2.1.0+cpu"), ("pip", "23.0"), ("sd-webui-rival", "0.1.0"))
    monkeypatch.setattr(audit, "distributions", here)
    assert audit.pins(PROJECT) == {PILLOW, TORCH, ("jinja2", "3.0"), ("torch", "2.1.0")}


def test_every_pin_of_the_project_is_read(audit, monkeypatch):
    monkeypatch.setattr(audit, "distributions", installed())
    text = (ROOT / "pyproject.toml").read_text()
    assert len(audit.pins(text)) == text.count("==") - text.count("python_version ==")


def service(answer):
    """Return a service with this answer, and the list of what it is asked."""
    asked = []

    def ask(pins):
        asked.append(pins)
        return "a service", answer

    return ask, asked


def test_a_vulnerable_pin_is_named_and_fails(audit, capsys):
    ask, asked = service({audit.CANARY: ["CVE-1"], PILLOW: ["CVE-2", "CVE-3"]})
    assert audit.audit({PILLOW, TORCH}, [ask]) == 1
    assert asked == [{PILLOW, TORCH, audit.CANARY}]
    assert capsys.readouterr().out.splitlines() == [
        "audit: pillow 8.1.0: CVE-2, CVE-3",
        "audit: 1 versions, 1 vulnerable, by a service.",
        "audit: not known there: torch-audio.",
    ]


@pytest.mark.parametrize("silent", [{}, {PILLOW: []}, {("pillow", "6.0.0"): []}])
def test_a_service_that_misses_a_known_vulnerability_does_not_count(audit, silent, capsys):
    (mute, _), (heard, _) = service(silent), service({audit.CANARY: ["CVE-1"], PILLOW: []})
    assert audit.audit({PILLOW}, [mute, heard]) == 0
    assert "no answer from a service" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nobody answered"):
        audit.audit({PILLOW}, [mute])


def test_the_output_of_pip_audit_is_read(audit, monkeypatch):
    lists = []

    def run(command, **_):
        lists.append(Path(command[command.index("--requirement") + 1]).read_text().split())
        found = {"name": "pillow", "version": lists[-1][0].partition("==")[2], "vulns": [{"id": "PYSEC-1"}]}
        skipped = {"name": "torch-audio", "skip_reason": "Dependency not found on PyPI"}
        return SimpleNamespace(stdout=json.dumps({"dependencies": [found, skipped], "fixes": []}))

    monkeypatch.setattr(audit.subprocess, "run", run)
    source, known = audit.of_pypi({PILLOW, TORCH, audit.CANARY})
    assert source.startswith("PyPI's advisories of 20")
    assert known == {PILLOW: ["PYSEC-1"], audit.CANARY: ["PYSEC-1"]}
    assert lists == [["pillow==6.0.0", "torch-audio==2.1.0"], ["pillow==8.1.0"]]


def test_a_pip_audit_that_fails_gives_no_answer(audit, monkeypatch):
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="ERROR"))
    assert audit.of_pypi({PILLOW})[1] == {}


def test_the_old_database_is_read_by_its_ranges(audit, monkeypatch, tmp_path):
    entries = [{"cve": "CVE-1", "id": "1", "specs": ["<6.2", ">8,<8.2"]}, {"cve": None, "id": "2", "specs": ["<8.1.1"]}]
    (tmp_path / "insecure.json").write_text(json.dumps({"$meta": {"timestamp": 1625119202}, "pillow": entries}))
    monkeypatch.setattr(
        audit, "distribution", lambda _: SimpleNamespace(locate_file=lambda _: tmp_path / "insecure.json")
    )
    source, known = audit.of_safety_db({PILLOW, TORCH, ("pillow", "12.3.0")})
    assert source == "safety-db of 2021-07-01, which knows nothing newer"
    assert known == {PILLOW: ["CVE-1", "2"], TORCH: [], ("pillow", "12.3.0"): []}
