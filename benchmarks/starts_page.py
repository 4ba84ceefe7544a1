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
    return PAGE.substitute(tables, sampling_steps=steps, count=exemplars, seeds=seeds_words(records))


def seeds_words(records: Sequence[Record]) -> str:
    """How many seeds there are, and which sections have fewer."""
    seeds: dict[str, set[int]] = {}
    for record in records:
        seeds.setdefault(record["section"], set()).add(record["seed"])
    most = max(map(len, seeds.values()))
    fewer = [f"{section} {len(found)}" for section, found in seeds.items() if len(found) < most]
    return f"{most} seeds" + (f" ({', '.join(fewer)})" if fewer else "")


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

![Photos and their variations by start and share: a row for each exemplar, the first seed](starts-starts.png)

Three choices decide how whole the objects are and how near the colours: what the image starts from (`start`), how
often the rows with the negative prompt see the exemplar (`uncond_share`), and without a prompt the denoising strength.
They were chosen on twelve exemplars. This page shows $count others, with which nothing was chosen, and $seeds each. The picture has all of them, with the first seed. The model is the small demo model. If nothing else is said:
$sampling_steps DDIM steps, guidance 5.

The prompt names the exemplar's subject. Where the model has never seen such a thing, it names a similar one: a dog
face for the fox, a ghost for the mushroom, a butterfly for the bell, a crown for the trophy, a soccer ball for the
basketball, a red apple for the tomato.

- **palette**: the [palette distance](effect.md) as a ratio to plain generation with the same prompt. Smaller is closer.
- **probability, first place**: what the [classifier](../benchmarks/concepts.md) gives to the prompt's subject, and how
  often it puts it first.
- **whole**: the share of images whose object is whole by the [measure of wholeness](../benchmarks/wholeness.md).
- **roughness**: RMS of the fine detail, of 255. Speckles and torn outlines raise it, and blur lowers it.
- **seeds differ**: RMS difference between two seeds. **SSIM, RMS**: likeness to the exemplar, pixel by pixel; a high
  SSIM means a copy.
- **time**: processor time of the sampling as a ratio to plain generation. The inversion is not in it.

"Paper" is the authors' form: permuted start and share 1. "Default" is the matched start with share 0.75.

## Start and share

$starts

STARTS_WORDS

## Alignment and thresholds

One change at a time from the default:

$alignment

ALIGNMENT_WORDS

## Other prompts

The full caption has style and background ("a bus, pink background"). With the empty prompt guidance amplifies nothing
but the exemplar.

$prompts

PROMPTS_WORDS

## Guidance, steps, samplers

$guidance

$steps

$samplers

GENERAL_WORDS

## Without a prompt

![Photos and their variations without a prompt, by denoising strength](starts-noprompt.png)

Below full strength the image itself is kept and its noise alone is made anew. **content kept** says how often the
classifier sees the same thing in the image as in the photo. The palette is a ratio to plain generation at full
strength. "Described" inverts the photo with its caption (`exemplar_prompt`), as an interrogator could write it.

$noprompt

NOPROMPT_WORDS

## Tried and left out

LEFT_OUT_WORDS

`python benchmarks/starts.py` wrote this page. The exemplars are by EmojiOne 2.x (CC BY 4.0), Twemoji (CC BY 4.0) and
Noto Emoji (Apache 2.0), on plain backgrounds.
""")
