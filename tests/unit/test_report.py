"""The report joins what the inversion, the host and the guide say of a run."""

from __future__ import annotations

import json

import pytest

from rival_ext.report import GuidePart, Inversion, InversionPart, Report, Rows, Seconds, Steps, join_report
from rival_ext.settings import parse_settings

INVERSION = Inversion(20, 1, 0.0123, levels=20, bend=0.004)
INVERTED = InversionPart(2, "recorded", "miss", INVERSION, rows=20, seconds=1.5, notes=["first"])


def report_of(inversion=INVERTED, guide=None, **others):
    guide = guide or GuidePart(10, Steps(20, 19, 7))
    return join_report(parse_settings({"t_early": 400}), inversion, guide, rows=40, seconds=2.5, **others)


def test_the_report_holds_the_figures_of_each_part():
    assert report_of(psnr=41.5).as_dict() == {
        **{"mode": "variation", "t_align": 800, "t_early": 400, "chain": "inverted"},
        **{"exemplars": 2, "layers": 10},
        **{"features": "recorded", "store": "miss", "steps": {"total": 20, "injected": 19, "aligned": 7}},
        "inversion": {
            **{"evaluations": 20, "iterations": 1, "residual": 0.0123},
            **{"levels": 20, "bend": 0.004, "psnr": 41.5},
        },
        **{"rows": {"inversion": 20, "generation": 40}, "seconds": {"inversion": 1.5, "generation": 2.5}},
        "notes": ["first"],
    }
    assert json.loads(json.dumps(report_of().as_dict())) == report_of().as_dict()


def test_features_are_live_if_an_exemplar_was_evaluated_beside_a_step():
    assert report_of(guide=GuidePart(evaluated_live=True)).features == "live"


def test_the_notes_are_those_of_the_inversion_then_the_hosts_then_the_guides_each_once():
    guide = GuidePart()
    for _ in range(2):
        guide.note("last")
    assert report_of(guide=guide, notes=["middle"]).notes == ("first", "middle", "last")


@pytest.mark.parametrize("store", ["miss", "hit"])
def test_the_summary_has_no_character_for_which_the_host_would_quote_it(store):
    inversion = InversionPart(2, "recorded", store, INVERSION, rows=20, seconds=1.5, notes=["first"])
    assert not set(report_of(inversion).summary()) & set(",:\n")


@pytest.mark.parametrize(
    ("chain", "store", "sentence", "part"),
    [
        (
            "inverted",
            "miss",
            "Inverted in 20 evaluations, 1.5 s; the last update was 0.012 of the latent.",
            "inverted in",
        ),
        ("noised", "miss", "Noised in 20 evaluations, 1.5 s.", "noised in 20 evaluations; "),
        ("inverted", "hit", "The stored inversion was used: nothing was inverted.", "stored inversion; "),
    ],
)
def test_the_report_says_how_the_chain_was_made_and_how_far_it_may_be_off(chain, store, sentence, part):
    inversion = InversionPart(1, "recorded", store, INVERSION, rows=20, seconds=1.5)
    report = join_report(parse_settings({"chain": chain}), inversion, GuidePart(), rows=40, seconds=2.5)
    off = " Between its noise levels the chain is off by about 0.4% of the latent."
    assert report.lines()[0] == f"RIVAL, mode variation, one exemplar. {sentence}{off}"
    assert part in report.summary()
    assert "; off by 0.4% between its levels; " in report.summary()


def test_the_report_of_a_plain_run_says_what_a_plain_run_did():
    plain = Report(
        *("plain", 600, 600), steps=Steps(20), rows=Rows(0, 80), seconds=Seconds(0, 1.5), notes=["the sun shines"]
    )
    assert plain.summary() == "plain images without RIVAL; 20 steps; 80 UNet rows; the sun shines"
    assert plain.lines() == ["Plain images, without RIVAL. 20 steps, 80 UNet rows, 1.5 s.", "The sun shines."]
