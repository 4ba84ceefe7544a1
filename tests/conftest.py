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
    """Progress that is not shown."""


def exemplar(name: str) -> Image.Image:
    """Return a held-out image by its file name without `.png`."""
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
    """The small trained model. No test may change it."""
    from rival_ext.hosts.checkpoint import DEMO_CHECKPOINT, load_pipeline

    return load_pipeline(DEMO_CHECKPOINT)


@pytest.fixture
def make_host(pipeline):
    """(the exemplar's name, fields of the request) -> a host."""
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
    """Return the authors' outputs of one run: arrays as tensors, and `meta` decoded."""
    import numpy as np
    import torch

    with np.load(DATA / "golden" / f"{name}.npz") as arrays:
        return {
            key: json.loads(str(value)) if key == "meta" else torch.from_numpy(value) for key, value in arrays.items()
        }


INDEPENDENT_OF_RIVAL_WEBUI = ("stand-in", "forge")
"""Names of hosts whose cases do not depend on RIVAL_WEBUI: the stand-in needs no WebUI, and each Forge has a variable
that asks for it."""


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip("real WebUI: takes minutes; set RIVAL_WEBUI to its folder to run this as well")
    for item in items:
        depends = not any(host in item.name for host in INDEPENDENT_OF_RIVAL_WEBUI)
        if depends and item.get_closest_marker("long") and not os.environ.get("RIVAL_WEBUI"):
            item.add_marker(skip)


# the number of inputs that the property tests have tried


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
