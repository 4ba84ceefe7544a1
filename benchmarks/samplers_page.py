"""docs/samplers.md and its pictures from what `samplers.py` has measured; measures nothing itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from string import Template
from textwrap import fill
from typing import Any

from effect import labelled_grid
from exemplars import Exemplar, markdown_table
from PIL import Image
from samplers_cells import (
    ARMS,
    CELL_STEPS,
    NOISE,
    OFF,
    PLAIN,
    RECONSTRUCTED,
    REFERENCE,
    ROUNDING,
    STEPS,
    VARIED,
    Record,
)

ARM_NAMES = {PLAIN: "plain", OFF: "no alignment", NOISE: "RIVAL"}
MEASURES = {"palette": ".1f", "mean": ".2f", "std": ".2f"}
"""The distances from the exemplar, with the format of their means."""
ADAPTIVE = ("DPM adaptive",)
"""Those whose number of steps depends on what they draw."""

HOLDS, LIVE, BY_ITSELF, NONE = "✓", "live", "~", "·"
FAULTS = {
    "error": "the request ended with an error",
    "layers": "not every self-attention layer is injected",
    "steps": "not every step is injected",
    "same": "the image is the plain image",
    "twice": "the same request gives another image",
    "order": "an image of a batch is not the image of its seed",
    "hooks": "hooks are left behind",
    "after": "a plain image afterwards differs",
}
"""By its code in the tables: what does not hold."""


def faults(cell: Record) -> list[str]:
    """The codes of what does not hold in a cell."""
    if "error" in cell:
        return ["error"]
    by_itself = cell["plain_twice"] > 0
    steps = cell["total"] if cell["sampler"] in ADAPTIVE else cell["plain_calls"]
    broken = {
        "layers": cell["layers"] != cell["all_layers"],
        "steps": not 0 < cell["injected"] == cell["total"] == steps,
        "same": cell["changed"] == 0,
        "twice": cell["twice"] > 0 and not by_itself,
        "order": cell["order"] > ROUNDING + 2 * max(cell["plain_order"], cell["redrawn"]) and not shares_steps(cell),
        "hooks": bool(cell["leftovers"]),
        "after": cell["after"] > 0 and not by_itself,
    }
    return [code for code, holds in broken.items() if holds]


def shares_steps(cell: Record) -> bool:
    """Whether the sampler chooses its steps by the whole batch, so that a picture alone is another one."""
    return cell["sampler"] in ADAPTIVE


def mark(cell: Record | None) -> str:
    """A cell as the table shows it."""
    if cell is None:
        return NONE
    broken = faults(cell)
    if broken:
        return f"**{' '.join(broken)}**"
    marks = [LIVE] if cell["features"] == "live" else []
    if cell["plain_twice"] > 0 or shares_steps(cell):
        marks.append(BY_ITSELF)
    return " ".join(marks) or HOLDS


def cross_table(samplers: Sequence[str], schedules: Sequence[str], cells: Mapping[tuple[str, str], str]) -> str:
    """A row for each sampler, a column for each schedule; rows of which nothing is known are left out."""
    known = [sampler for sampler in samplers if any((sampler, schedule) in cells for schedule in schedules)]
    rows = [[sampler, *(cells.get((sampler, schedule), NONE) for schedule in schedules)] for sampler in known]
    return markdown_table(["", *schedules], rows)


def family_section(family: str, cells: Sequence[Record], samplers: Sequence[str], schedules: Sequence[str]) -> str:
    """A family's table under its name."""
    marks = {(cell["sampler"], cell["schedule"]): mark(cell) for cell in cells}
    holding = sum(not faults(cell) for cell in cells)
    layers = max((cell.get("all_layers", 0) for cell in cells), default=0)
    sentence = f"{holding} of {len(cells)} hold; {layers} self-attention layers."
    return f"### {family}\n\n{sentence}\n\n{cross_table(samplers, schedules, marks)}"


def failures(cells: Iterable[Record]) -> str:
    """A line for each cell in which something does not hold, with the figures behind it."""
    lines = []
    for cell in cells:
        broken = faults(cell)
        if broken:
            name = f"{cell['family']}, {cell['sampler']}, {cell['schedule']}"
            lines.append(f"- {name}: {'; '.join(FAULTS[code] for code in broken)} ({evidence(cell, broken)}).")
    return "\n".join(lines)


def evidence(cell: Record, broken: Sequence[str]) -> str:
    """The figures that belong to a cell's faults."""
    shown = {
        "error": "{error}",
        "layers": "{layers} of {all_layers}",
        "steps": "{injected} of {total} reported, {plain_calls} calls without RIVAL",
        "same": "difference {changed}",
        "twice": "by up to {twice} of 255",
        "order": "by up to {order} of 255, plain {plain_order}, encoded anew {redrawn}",
        "hooks": "{leftovers}",
        "after": "by up to {after} of 255",
    }
    return "; ".join(shown[code].format(**cell).strip().rstrip(".") for code in broken)


def reconstruction_table(records: Sequence[Record], samplers: Sequence[str], schedules: Sequence[str]) -> str:
    """Mean PSNR over the exemplars, in dB."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record["sampler"], record["schedule"]), []).append(record)
    cells = {
        place: "error" if any("error" in record for record in some) else f"{mean(one['psnr'] for one in some):.1f}"
        for place, some in found.items()
    }
    return cross_table(samplers, schedules, cells)


Variations = dict[str, list[Record]]
"""By the sampler's title: a record for each exemplar."""


def by_sampler(records: Iterable[Record], samplers: Sequence[str]) -> Variations:
    """The records without an error under their samplers' titles, the reference of most steps first."""
    found: Variations = {}
    records = [record for record in records if "error" not in record]
    for record in sorted(records, key=lambda record: (-record["steps"], samplers.index(record["sampler"]))):
        found.setdefault(f"{record['sampler']}, {record['steps']} steps", []).append(record)
    return found


def values(records: Iterable[Record], arm: str, measure: str) -> list[float]:
    """A measure of all pictures of an arm."""
    return [value for record in records for value in record[arm][measure]]


def variation_rows(variations: Variations) -> list[list[str]]:
    """A row for each sampler: every measure's mean for each arm, then how much alignment adds to the palette's."""
    rows = []
    for title, records in variations.items():
        means = [
            format(mean(values(records, arm, measure)), form) for measure, form in MEASURES.items() for arm in ARMS
        ]
        rows.append([title, *means, added(records)])
    return rows


def added(records: Sequence[Record]) -> str:
    """The palette's distance with alignment less that without, its standard error, and a word if it is clearly more."""
    differences = alignment_differences(records)
    error = standard_error(differences)
    change = mean(differences)
    return f"{change:+.1f} ± {error:.1f}" + (" **worse**" if change > 2 * error else "")


def alignment_differences(records: Iterable[Record]) -> list[float]:
    """Picture by picture: how much farther the palette is with alignment than without."""
    records = list(records)
    pairs = zip(values(records, NOISE, "palette"), values(records, OFF, "palette"), strict=True)
    return [aligned - not_aligned for aligned, not_aligned in pairs]


def standard_error(differences: Sequence[float]) -> float:
    """Of their mean."""
    return stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0


def alignment_sentence(variations: Variations) -> str:
    """With which samplers alignment brings the palette closer or takes it away, by more than two standard errors."""
    found: dict[str, list[str]] = {"closer": [], "farther away": [], "neither clearly": []}
    for title, records in variations.items():
        differences = alignment_differences(records)
        change, error = mean(differences), 2 * standard_error(differences)
        verdict = "closer" if change < -error else "farther away" if change > error else "neither clearly"
        found[verdict].append(title.partition(",")[0])
    parts = (f"{verdict} with {', '.join(dict.fromkeys(some))}" for verdict, some in found.items() if some)
    return f"Alignment brings the palette {'; '.join(parts)}."


def contact_sheet(variations: Variations, photos: Mapping[str, Image.Image], edge: int = 96) -> Image.Image:
    """docs/samplers-sheet.png: three rows for each photo, a column for each sampler, all of the first seed."""
    rows: dict[str, list[Image.Image]] = {}
    for name, photo in photos.items():
        for arm, arm_name in ARM_NAMES.items():
            rows[f"{name.partition('-emojione')[0]},\n{arm_name}"] = [
                photo.resize((edge, edge)),
                *(
                    next(picture_of(one[arm]["picture"]) for one in records if one["exemplar"] == name).resize(
                        (edge, edge), Image.Resampling.LANCZOS
                    )
                    for records in variations.values()
                ),
            ]
    titles = [title.removesuffix(" steps").replace(", 20", "").replace("DPM++", "DPM++\n") for title in variations]
    return labelled_grid(["photo", *titles], rows)


def picture_of(text: str) -> Image.Image:
    """A picture that was kept as text."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def figure(variations: Variations) -> Any:
    """docs/samplers.png: the distances of plain pictures, without alignment and with it, sampler by sampler."""
    # imported late: only this needs it
    from matplotlib import pyplot

    titles = {"palette": "palette distance", "mean": "channel means", "std": "channel deviations"}
    drawn, axes = pyplot.subplots(1, len(MEASURES), figsize=(11, 0.3 * len(variations) + 1.4), layout="constrained")
    for axis, measure in zip(axes, MEASURES, strict=True):
        for arm, marker, colour in ((PLAIN, "o", "#999999"), (OFF, "s", "#d1813a"), (NOISE, "D", "#2f6db0")):
            means = [mean(values(records, arm, measure)) for records in variations.values()]
            axis.plot(means, list(variations), marker, color=colour, label=ARM_NAMES[arm])
        axis.set_title(titles[measure])
        axis.set_xlim(left=0)
        axis.grid(axis="both", color="#e5e5e5")
        axis.set_axisbelow(True)
        axis.invert_yaxis()
        if axis is not axes[0]:
            axis.set_yticklabels([])
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ARMS))
    return drawn


def write(out: Path, host: Record, records: Sequence[Record], exemplars: Mapping[str, Exemplar]) -> None:
    """docs/samplers.md, samplers.png and samplers-sheet.png."""
    out.mkdir(parents=True, exist_ok=True)
    found = (record for record in records if record["kind"] == "Variation")
    variations = by_sampler(found, host["samplers"])
    (out / "samplers.md").write_text(page(host, records, variations))
    if variations:
        figure(variations).savefig(out / "samplers.png", dpi=110)
        photos = {name: exemplars[name].image for name in VARIED[1:]}
        contact_sheet(variations, photos).quantize(256).save(out / "samplers-sheet.png", optimize=True)


def page(host: Record, records: Sequence[Record], variations: Variations) -> str:
    """docs/samplers.md."""
    samplers, schedules = host["samplers"], host["schedules"]
    cells = [record for record in records if record["kind"] == "Cell"]
    families: dict[str, list[Record]] = {}
    for cell in cells:
        families.setdefault(cell["family"], []).append(cell)
    broken = failures(cells)
    reasons = dict.fromkeys(cell["notes"] for cell in cells if cell.get("features") == "live")
    shown = {code for cell in cells for code in faults(cell)}
    header = ["", *(f"{measure}: {ARM_NAMES[arm]}" for measure in MEASURES for arm in ARMS), "alignment adds"]
    return PAGE.substitute(
        host,
        holding=sum(not faults(cell) for cell in cells),
        cells=len(cells),
        live=fill("; ".join(reasons) or "nowhere", 118, initial_indent="  ", subsequent_indent="  "),
        legend="".join(f"- **{code}**: {FAULTS[code]}.\n" for code in FAULTS if code in shown),
        families="\n\n".join(family_section(name, some, samplers, schedules) for name, some in families.items()),
        failures=f"\n### What does not hold\n\n{broken}\n" if broken else "",
        reconstruction=reconstruction_table(
            [record for record in records if record["kind"] == "Reconstruction"], samplers, schedules
        ),
        cell_steps=CELL_STEPS,
        steps=STEPS,
        reference_steps=REFERENCE[1],
        reconstructed="one exemplar" if len(RECONSTRUCTED) == 1 else f"mean over {len(RECONSTRUCTED)} exemplars",
        images=len(values(next(iter(variations.values()), []), PLAIN, "palette")),
        variations=markdown_table(header, variation_rows(variations)),
        alignment=fill(alignment_sentence(variations), 120) if variations else "",
    )


PAGE = Template("""\
# Every sampler with every schedule

Everything here was measured on a real WebUI $webui (Python $python, torch $torch, on the processor, in fp32)
through its API: every sampler that the WebUI lists, with every schedule that it lists, on a small checkpoint of each
family of models. The four samplers that have timesteps of their own use no schedule and are in the first column.

## What was checked for each

Each check makes a variation of one exemplar: two images of 64 by 64 pixels, $cell_steps steps, guidance 5, denoising
strength 1. $holding of $cells combinations hold. The mark ✓ means that all of this is true:

- The request succeeds.
- The exemplar is injected in every self-attention layer and in every step that the plain sampling has. With an
  adaptive sampler, it is injected in every step that the sampler takes.
- The image differs from the plain image.
- The same request twice gives the same bits, once with a new inversion and once with the stored one.
- Each image of the batch is the image that its seed gives alone. It may differ by 2 of 255, and by twice the
  difference that plain images have, or that this image has if the WebUI encodes its input again with another random
  draw.
- Nothing is left behind: there is no hook, and a plain image afterwards has the same bits as before.

Other marks:

- **live**: all of this is true, the exemplar's features are evaluated live, and the report says why:
$live.
- **~**: all of this is true, except what the WebUI without RIVAL does not give either: the same image twice, or, with
  an adaptive sampler, the same image alone as in a batch. An adaptive sampler chooses its steps by the error of the
  whole batch.
- **·**: not checked. A schedule is a list of noise levels, the same for any sampler and any checkpoint. So the
  families after the first were checked with every sampler and its automatic schedule, and with every schedule for
  Euler and DPM++ 2M. The adaptive sampler takes only the two ends of a schedule, and makes about a hundred steps of
  its own between them.
$legend
$families
$failures
## How exactly the exemplar comes back

Here the samplers that add no noise (eta 0, if they have an eta) sample from the inverted start, without injection and
alignment, with guidance 1, no prompt, $steps steps, and one iteration for each step of the inversion. The table gives
the PSNR in dB ($reconstructed) of the result against the exemplar that was encoded and decoded by the VAE alone. It is
high if the sampler makes the same steps as the inversion: from each level to the next along one slope.

$reconstruction

## Variations

These variations were made by the trained small model, with the exemplar's concept as the prompt, guidance 5, the
WebUI's automatic schedule and $steps steps, and by DDIM with $reference_steps steps for comparison. Each figure is the
mean of $images images, from exemplars that the model was not trained on.

![Distances from the exemplar by sampler](samplers.png)

- **palette**: the distance of the palettes in Lab units, as in [effect.md](effect.md).
- **mean, std**: the difference between the image's latent and the exemplar's latent in the means and in the standard
  deviations of the channels.
- **alignment adds**: the change of the palette's distance by alignment, image by image, with the standard error.

$variations

$alignment

![Exemplars by sampler: plain, without alignment, with RIVAL](samplers-sheet.png)

`python benchmarks/samplers.py` wrote these figures and images. The exemplars in them are EmojiOne 2.x by Emoji One, CC
BY 4.0, placed on plain backgrounds.
""")
