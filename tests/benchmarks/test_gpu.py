"""benchmarks/gpu.py at its smallest size on the CPU, how it spends its time, and the shape of SDXL."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from rival_ext.method.attention import record
from rival_ext.method.layers import self_attention_layers
from tests.benchmarks.scripts import BENCHMARKS, run, written

# the folder of the benchmarks, which import each other by name
sys.path.append(str(BENCHMARKS))

from gpu import COMPILING, Cell, Clock, reason_to_leave_out
from random_models import SdxlUnet


@pytest.mark.slow
def test_every_arm_of_every_cell_is_measured(tmp_path):
    run("gpu.py", "--smallest", "--json", tmp_path / "figures.json", "--docs", tmp_path)
    assert written(tmp_path) == ["benchmark-gpu.md", "figures.json"]
    one, two, compiled = json.loads((tmp_path / "figures.json").read_text())["cells"]
    assert [cell["cell"] for cell in (one, two, compiled)] == ["tiny-3-1", "tiny-3-2", "tiny-3-1-compiled"]
    # three steps: plain 2 rows an image and step, the inversion 1; the authors 2 more a step
    first = ("first", "noised", "every_level", "live")
    assert one["rows"] == {"plain": 6, **dict.fromkeys(first, 9), "next": 6, "authors": 12, "authors_first": 15}
    assert two["rows"] == {"plain": 12, **dict.fromkeys(first, 15), "next": 12, "authors": 18, "authors_first": 21}
    # without an inversion the exemplar is evaluated at all nodes at once
    assert two["evaluations"] == {
        **{"plain": 3, **dict.fromkeys(first, 6), "next": 3, "authors": 3, "authors_first": 6},
        "noised": 4,
    }
    assert compiled["rows"] == {"plain": 6, "next": 6}
    assert all(
        cell["failed"] == {} and cell["rounds"] == 1 and cell["features_mb"] > 0 for cell in (one, two, compiled)
    )
    page = (tmp_path / "benchmark-gpu.md").read_text()
    assert page.count("the demo model, 3 steps") == 9
    assert "Failed" not in page
    assert "Not measured" not in page


@pytest.mark.slow
def test_what_there_is_no_time_for_is_named(tmp_path):
    run("gpu.py", "--smallest", "--seconds", 1, "--json", tmp_path / "figures.json", "--docs", tmp_path)
    result = json.loads((tmp_path / "figures.json").read_text())
    assert [cell["cell"] for cell in result["cells"]] == ["tiny-3-1"]
    assert list(result["left_out"]) == ["tiny-3-2", "tiny-3-1-compiled"]
    assert "Not measured: tiny-3-2, because no time was left." in (tmp_path / "benchmark-gpu.md").read_text()


def test_a_cell_is_left_out_if_the_earlier_cells_of_its_model_say_so():
    measured = [(Cell("sd15", 20, 1), {"round_seconds": 6}), (Cell("sd15", 50, 1), {"round_seconds": 20})]

    def reason(cell, seconds):
        return reason_to_leave_out(cell, measured, Clock(seconds))

    assert reason(Cell("sd15", 20, 4), 71) == "it takes about 72 s and 71 s were left"
    assert reason(Cell("sd15", 20, 4), 80) is None
    assert reason(Cell("sdxl", 50, 4), 1) is None
    assert reason(Cell("sdxl", 50, 4), 0) == "no time was left"
    assert reason(Cell("sd15", 20, 1, compiled=True), COMPILING + 17) is not None
    assert reason(Cell("sd15", 20, 1, compiled=True), COMPILING + 19) is None


def test_sdxl_has_its_published_shape():
    """Evaluated on torch's device for shapes alone: nothing is computed."""
    with torch.device("meta"):
        unet = SdxlUnet()
        with record(self_attention_layers(unet)) as features:
            noise = unet(torch.empty(2, 4, 128, 128), 500.0, torch.empty(2, 77, 768), return_dict=False)[0]
    assert sum(weights.numel() for weights in unet.parameters()) == 2_567_463_684
    assert noise.shape == (2, 4, 128, 128)
    assert len(features) == 70
    assert {(h.shape[1], h.shape[2]) for h in features.values()} == {(4096, 640), (1024, 1280)}
