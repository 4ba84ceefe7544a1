"""The figures of benchmarks/quality.py: what they mean, their means over the photos, and the page about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from exemplars import markdown_table


@dataclass(frozen=True)
class Measure:
    """A column of the page: its title, what it says, and what it needs beside the photos."""

    title: str
    meaning: str
    needs: str = ""


MEASURES = {
    "clip_i": Measure("CLIP-I", "cosine of the CLIP vectors of image and photo; 1 is the same", "`--clip`"),
    "clip_t": Measure("CLIP-T", "cosine of the CLIP vectors of image and prompt", "`--clip` and a prompt"),
    "dino": Measure("DINO", "cosine of the CLS tokens of image and photo; 1 is the same", "`--dino`"),
    "lpips_photo": Measure("LPIPS to the photo", "near 0 the image copies the photo", "`--lpips`"),
    "lpips_seeds": Measure(
        "LPIPS between seeds", "mean over all pairs of seeds; larger is more diverse", "`--lpips` and two seeds"
    ),
    "palette": Measure("palette", "how far the colours are from the photo's, in Lab units (effect.md); 0 is the same"),
    "rows": Measure("UNet rows", "latents that the UNet evaluates for one image, without the inversion"),
    "seconds": Measure("seconds", "time for one image with decoding, without the inversion"),
    "inversion_rows": Measure("inversion, rows", "latents that the UNet evaluates once a photo"),
    "inversion_seconds": Measure("inversion, seconds", "time once a photo"),
}


def mean_figures(photos: Mapping[str, Any], arms: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """By arm and measure: the mean over the photos and, of two photos or more, its standard error."""
    found = {}
    for arm in arms:
        rows = [photo["arms"][arm]["means"] for photo in photos.values()]
        columns = {key: [row[key] for row in rows if key in row] for key in MEASURES}
        found[arm] = {key: _mean_with_error(values) for key, values in columns.items() if values}
    return found


def page(result: Mapping[str, Any]) -> str:
    """quality.md."""
    means = result["means"]
    shown = {key: one for key, one in MEASURES.items() if any(key in figures for figures in means.values())}
    missing = [one for key, one in MEASURES.items() if key not in shown]
    table = markdown_table(
        ["", *(one.title for one in shown.values())],
        [[arm, *(_cell(figures.get(key)) for key in shown)] for arm, figures in means.items()],
    )
    numbered = enumerate(result["photos"].items(), start=1)
    lines = [
        "# RIVAL on your photos",
        "",
        "![The photos, and the first image of each arm](quality.png)",
        "",
        f"Photos: {len(result['photos'])}. Seeds: {len(result['seeds'])}. Steps: {result['steps']}. Sampler: "
        f"{result['sampler']}. Guidance: {result['cfg']:g}. Denoising strength: {result['denoise']:g}. Checkpoint: "
        f"{result['checkpoint']}, in {result['dtype']} on {result['device']}.",
        "",
        "Each figure is the mean over the photos, followed by its standard error:",
        "",
        table,
        "",
        *(f"- **{one.title}**: {one.meaning}." for one in shown.values()),
        *(f"- **{one.title}** was not measured: it needs {one.needs}." for one in missing),
        "",
        "The arms:",
        "",
        *(f"- **{arm}**: {_described(fields)}" for arm, fields in result["arms"].items()),
        "",
        "The photos and their prompts:",
        "",
        *(f"{number}. {name}: {photo['prompt'] or 'none'}" for number, (name, photo) in numbered),
    ]
    return "\n".join(lines) + "\n"


def _mean_with_error(values: Sequence[float]) -> dict[str, float]:
    error = {"error": stdev(values) / len(values) ** 0.5} if len(values) > 1 else {}
    return {"mean": mean(values), **error}


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{found['mean']:.4g}" + (f" ± {found['error']:.2g}" if found.get("error") else "")


def _described(fields: Mapping[str, Any] | None) -> str:
    if fields is None:
        return "without RIVAL."
    values = ", ".join(f"`{name}` {value}" for name, value in fields.items())
    return f"RIVAL with {values or 'its defaults'}."
