"""The words and tables of docs/starts.md; `starts.py` has the figures."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from string import Template
from typing import Any

from exemplars import markdown_table
from wholeness import is_whole

Record = dict[str, Any]

HEADER = (
    "palette",
    "probability",
    "first place",
    "whole",
    "roughness",
    "seeds differ",
    "SSIM",
    "RMS",
    "time",
)
UNPROMPTED_HEADER = ("palette", "content kept", "whole", "roughness", "seeds differ", "SSIM", "RMS", "time")


def starts_page(records: Sequence[Record], steps: int) -> str:
    """docs/starts.md of all records; a section that was not measured says so."""
    sections: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        sections.setdefault(record["section"], {}).setdefault(record["arm"], []).append(record)
    tables = {
        name: table(sections[name], name) if name in sections else "(not measured)"
        for name in ("starts", "alignment", "prompts", "guidance", "steps", "samplers", "noprompt")
    }
    exemplars = len({record["exemplar"] for record in records})
    seeds = len({record["seed"] for record in records})
    return PAGE.substitute(tables, sampling_steps=steps, count=exemplars, seeds=seeds, images=exemplars * seeds)


def table(arms: dict[str, list[Record]], section: str) -> str:
    """A row for each arm."""
    if section == "noprompt":
        rows = [[title, *unprompted_cells(found, arms["plain, 1"])] for title, found in arms.items()]
        return markdown_table(["", *UNPROMPTED_HEADER], rows)
    rows = [[title, *cells(found, arms[plain_of(title, arms)])] for title, found in arms.items()]
    return markdown_table(["", *HEADER], rows)


def plain_of(title: str, arms: dict[str, list[Record]]) -> str:
    """The arm of plain generation under the same circumstances."""
    own = f"{title.split(',')[0]}, plain"
    return own if own in arms else "plain"


def cells(found: Sequence[Record], plain: Sequence[Record]) -> list[str]:
    """The means of an arm with a prompt."""
    return [
        ratio(found, plain, "palette"),
        f"{average(found, 'probability'):.2f}",
        f"{average(found, 'top1'):.2f}",
        *common_cells(found, plain),
    ]


def unprompted_cells(found: Sequence[Record], plain: Sequence[Record]) -> list[str]:
    """The means of an arm without a prompt."""
    return [ratio(found, plain, "palette"), f"{average(found, 'kept'):.2f}", *common_cells(found, plain)]


def common_cells(found: Sequence[Record], plain: Sequence[Record]) -> list[str]:
    """The measures that need no prompt."""
    return [
        f"{mean(is_whole(record['surprise'], record['asked']) for record in found):.2f}",
        f"{average(found, 'roughness'):.1f}",
        f"{average(found, 'diversity'):.0f}",
        f"{average(found, 'ssim'):.2f}",
        f"{average(found, 'rms'):.0f}",
        ratio(found, plain, "seconds"),
    ]


def average(found: Sequence[Record], measure: str) -> float:
    """The mean of a measure."""
    return mean(record[measure] for record in found)


def ratio(found: Sequence[Record], plain: Sequence[Record], measure: str) -> str:
    """The mean of a measure as a ratio to plain generation's."""
    return f"{average(found, measure) / average(plain, measure):.2f}"


PAGE = Template("""\
# Starts, shares and strengths

![A photo and its variations, by start and share; a row for each exemplar, the first seed](starts-starts.png)
""")
