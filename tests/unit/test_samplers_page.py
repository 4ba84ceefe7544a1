"""The page about samplers: how reports are read, cells judged and tables drawn."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from rival_ext.report import Report, Steps
from tests.conftest import exemplar
from tests.host.answers import base64_of
from tests.host.data_folder import ROOT

# the folder of the benchmarks, which import each other by name
sys.path.append(str(ROOT / "benchmarks"))
pytest.importorskip("scipy", reason="benchmarks: scipy is not installed (the docs extra)")

from samplers_cells import Refused, parse_report
from samplers_page import (
    added,
    alignment_sentence,
    by_sampler,
    contact_sheet,
    cross_table,
    failures,
    faults,
    mark,
    page,
)

PIZZA = "pizza-emojione-yellow"
GOOD = {
    **{
        "kind": "Cell",
        "family": "SD 1.x",
        "sampler": "Euler",
        "schedule": "Karras",
        "features": "recorded",
        "notes": "",
    },
    **{"layers": 10, "all_layers": 10, "injected": 6, "total": 6, "plain_calls": 6, "changed": 90, "twice": 0},
    **{"order": 2, "plain_order": 0, "redrawn": 0, "leftovers": [], "after": 0, "plain_twice": 0},
}


def variation(sampler, steps=20, aligned=3.0, not_aligned=4.0):
    """Return the record of two images whose distances differ by different amounts."""
    image = base64_of(Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8)))

    def arm(distance):
        return {"palette": [distance, distance + 1], "mean": [0.1, 0.3], "std": [0.2, 0.2], "picture": image}

    arms = {"plain": arm(9.0), "off": arm(not_aligned), "noise": arm(aligned)}
    arms["noise"]["palette"][1] += 0.2
    return {"kind": "Variation", "sampler": sampler, "steps": steps, "exemplar": PIZZA, **arms}


@pytest.mark.parametrize("features", ["recorded", "live"])
def test_a_report_in_an_infotext_is_read_as_it_was_written(features):
    notes = "the sampler chooses its noise levels as it runs"
    report = Report("variation", 600, 600, layers=16, features=features, steps=Steps(20, 19, 7), notes=[notes])
    text = f"a pizza\nSteps: 20, RIVAL report: {report.summary()}, Version: 1.10.1"
    assert parse_report(text) == {"features": features, "notes": notes, "layers": 16, "injected": 19, "total": 20}
    assert parse_report(text.replace(f"; {notes}", ""))["notes"] == ""


def test_an_infotext_without_a_report_is_an_error():
    with pytest.raises(Refused):
        parse_report("a pizza\nSteps: 20")


def test_a_good_cell_has_no_faults_and_a_missing_one_no_mark():
    assert faults(GOOD) == []
    assert mark(GOOD) == "✓"
    assert mark({**GOOD, "features": "live"}) == "live"
    assert mark(None) == "·"
    assert failures([GOOD]) == ""


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"error": "no such sampler"}, "error"),
        ({"layers": 9}, "layers"),
        ({"injected": 5}, "steps"),
        ({"plain_calls": 7}, "steps"),
        ({"injected": 0, "total": 0, "plain_calls": 0}, "steps"),
        ({"changed": 0}, "same"),
        ({"twice": 1}, "twice"),
        ({"order": 3}, "order"),
        ({"order": 7, "plain_order": 2}, "order"),
        ({"leftovers": ["attn1: hook"]}, "hooks"),
        ({"after": 1}, "after"),
    ],
)
def test_a_failed_check_is_named_with_its_figures(changes, code):
    cell = {**GOOD, **changes}
    assert faults(cell) == [code]
    assert mark(cell) == f"**{code}**"
    assert failures([GOOD, cell]).startswith("- SD 1.x, Euler, Karras: ")


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"order": 6, "plain_order": 2}, "✓"),
        ({"order": 6, "redrawn": 2}, "✓"),
        ({"twice": 1, "after": 2, "plain_twice": 1}, "~"),
        ({"sampler": "DPM adaptive", "order": 50, "plain_order": 3}, "~"),
        ({"sampler": "DPM adaptive", "injected": 21, "total": 21, "plain_calls": 24, "features": "live"}, "live ~"),
    ],
)
def test_a_difference_that_the_host_shows_without_rival_is_no_fault(changes, shown):
    assert mark({**GOOD, **changes}) == shown


def test_a_table_has_a_row_for_each_sampler_that_is_known():
    table = cross_table(
        ["Euler", "LCM", "DDIM"], ["Automatic", "Beta"], {("Euler", "Beta"): "✓", ("DDIM", "Beta"): "x"}
    )
    assert table.splitlines()[2:] == ["| Euler | · | ✓ |", "| DDIM | · | x |"]


def test_alignment_is_called_worse_only_beyond_two_standard_errors():
    better, worse = by_sampler([variation("Euler"), variation("LCM", aligned=6.0)], ["Euler", "LCM"]).values()
    assert "worse" not in added(better)
    assert added(worse) == "+2.1 ± 0.1 **worse**"
    both = {"Euler, 20 steps": better, "LCM, 20 steps": worse}
    assert alignment_sentence(both) == "Alignment brings the palette closer with Euler; farther away with LCM."
    unclear = {"Euler, 20 steps": [variation("Euler", aligned=3.9)]}
    assert alignment_sentence(unclear) == "Alignment brings the palette neither clearly with Euler."


def test_the_reference_comes_first_and_errors_are_left_out():
    records = [variation("LCM"), variation("Euler", 50), variation("Euler"), {**variation("LCM"), "error": "no"}]
    grouped = by_sampler(records, ["Euler", "LCM"])
    assert {title: len(some) for title, some in grouped.items()} == {
        "Euler, 50 steps": 1,
        "Euler, 20 steps": 1,
        "LCM, 20 steps": 1,
    }


def test_the_sheet_has_three_rows_for_each_photo():
    variations = by_sampler([variation("Euler"), variation("LCM")], ["Euler", "LCM"])
    one = contact_sheet(variations, {PIZZA: exemplar(PIZZA)})
    assert one.size == (120 + 3 * 108, 40 + 3 * 108)


def test_the_page_has_every_part():
    host = {"webui": "1.10.1", "python": "3.10.13", "torch": "2.1.2", "samplers": ["Euler"], "schedules": ["Karras"]}
    given_back = {"kind": "Reconstruction", "sampler": "Euler", "schedule": "Karras", "psnr": 40.0}
    other = {**GOOD, "family": "SDXL", "error": "it broke."}
    records = [GOOD, other, given_back, {**given_back, "psnr": 42.0}, variation("Euler")]
    text = page(host, records, by_sampler(records[-1:], ["Euler"]))
    assert "### SD 1.x\n\n1 of 1 hold" in text
    assert "### SDXL\n\n0 of 1 hold" in text
    assert "- SDXL, Euler, Karras: the request ended with an error (it broke)." in text
    assert "| Euler | 41.0 |" in text
    assert "| Euler, 20 steps | 9.5 | 4.5 | 3.6 |" in text
    assert max(map(len, text.splitlines())) < 600
