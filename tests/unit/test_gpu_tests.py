"""The tests that need a GPU can be collected on a machine without one, and are skipped there by name."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

from tests.gpu.machine import needs_gpu

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))


def test_all_files_are_collected():
    command = [sys.executable, "-m", "pytest", "-n0", "-q", "--collect-only", "tests/gpu"]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert collected.returncode == 0, collected.stdout[-2000:]
    assert all(f"tests/gpu/{file.name}::" in collected.stdout for file in FILES)


def test_every_test_is_skipped_by_name_without_a_gpu():
    assert len(FILES) == 4
    for file in FILES:
        assert import_module(f"tests.gpu.{file.stem}").pytestmark is needs_gpu
    assert needs_gpu.kwargs["reason"].startswith("GPU: ")
