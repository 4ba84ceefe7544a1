"""Shared by all tests: the small trained model on the command line's host, its exemplars and the authors' outputs.

What takes seconds to import is imported where it is used: pytest reads this file once more before its workers start.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from PIL import Image

    from rival_ext.hosts.diffusers import DiffusersHost

DATA = Path(__file__).parent / "data"
CAPTIONS = {entry["file"]: entry for entry in json.loads((DATA / "exemplars" / "captions.json").read_text())}


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def exemplar(name: str) -> Image.Image:
    """A held-out image by its file name without `.png`."""
    from PIL import Image

    return Image.open(DATA / "exemplars" / f"{name}.png").convert("RGB")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """One thread in each worker, because the workers run side by side; and libraries that print no advice."""
    import torch

    from rival_ext.hosts.checkpoint import quieten_libraries

    quieten_libraries()
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pipeline():
    """The small trained model; read-only."""
    from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline

    return load_pipeline(DEMO_CHECKPOINT)


@pytest.fixture
def make_host(pipeline):
    """(exemplar's name, fields of the request) -> a host for it."""
    from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages

    def make(name: str = "panda-emojione-white", **fields: Any) -> DiffusersHost:
        request = Request(
            **{"prompt": "", "exemplar_prompt": "", "guidance": 5.0, "sampler": "ddim", "steps": 20, **fields}
        )
        return DiffusersHost(pipeline, request, RequestImages.of(exemplar(name)), lambda done, total: None)

    return make


def quick(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Parameters of a test. The quick suite runs it with the chosen ones, the others are slow."""
    rows = [(value, value if isinstance(value, tuple) else (value,)) for value in values]
    return [value if value in chosen else pytest.param(*row, marks=pytest.mark.slow) for value, row in rows]


def golden(name: str) -> dict[str, Any]:
    """The authors' outputs for one run; arrays as tensors, `meta` decoded."""
    import numpy as np
    import torch

    with np.load(DATA / "golden" / f"{name}.npz") as arrays:
        return {
            key: json.loads(str(value)) if key == "meta" else torch.from_numpy(value) for key, value in arrays.items()
        }


NEVER_ONLY_FOUND = ("stand-in", "forge")
"""In the names of cases on hosts that are there without looking, or run only where they are asked for."""


def pytest_collection_modifyitems(items):
    asked_for = pytest.mark.skip("real WebUI: takes minutes; set RIVAL_WEBUI to its folder to run this as well")
    for item in items:
        found = not any(host in item.name for host in NEVER_ONLY_FOUND)
        if found and item.get_closest_marker("long") and not os.environ.get("RIVAL_WEBUI"):
            item.add_marker(asked_for)


# how many inputs the property tests have tried


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    if call.when == "call":
        bad_input = sys.modules.get("tests.bad_input")
        item.user_properties.append(("cases", bad_input.TRIED.pop("cases", 0) if bad_input else 0))
    return (yield)


def pytest_terminal_summary(terminalreporter):
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    tried = sum(dict(report.user_properties).get("cases", 0) for report in reports if report.when == "call")
    if tried:
        terminalreporter.write_line(f"{tried} cases of bad input were tried.")
