"""What RIVAL costs on a GPU, measured by one command within eight minutes.

    python benchmarks/gpu.py --json gpu.json --docs docs

Each cell is a model, a number of steps and a number of images at once. Its arms take turns, after one round that is
not measured. The most important cells come first. What `--seconds` has no time for is named in the results; `--cell`
measures it in another run. The arms are those of `sampling.py`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import click
import diffusers
import torch
from diffusers import StableDiffusionPipeline
from exemplars import markdown_table
from random_models import SIDES, best_dtype, compile_blocks, device, pipeline_of
from sampling import Bench, features_bytes, spread

from rival_ext.hosts.checkpoint import quieten_libraries
from rival_ext.settings import parse_settings
from rival_ext.storage.page_locked import reserve_memory

ARMS = ("plain", "first", "noised", "every_level", "next", "live", "authors", "authors_first")
TITLES = {
    "plain": "plain",
    "first": "first run",
    "noised": "first run, the chain noised",
    "every_level": "first run, inverted at every level",
    "next": "next run, the inversion stored",
    "live": "exemplar live",
    "authors": "the authors' batch, without their inversion",
    "authors_first": "the same with their inversion",
}
NODE_SETTINGS = ("chain", "inversion_nodes", "feature_nodes")
DEFAULTS = parse_settings({})
MODELS = {"tiny": "the demo model", "sd15": "SD 1.5, 512x512", "sdxl": "SDXL, 1024x1024"}


@dataclass(frozen=True)
class Cell:
    """What is measured together, in turns.

    Attributes:
        model: A key of `MODELS`.
        steps: Sampling steps.
        images: How many images are sampled at once.
        compiled: Whether the UNet's residual blocks and feed-forward layers are compiled by torch.
    """

    model: str
    steps: int
    images: int
    compiled: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}-{self.steps}-{self.images}" + "-compiled" * self.compiled

    @property
    def title(self) -> str:
        parts = [MODELS[self.model], f"{self.steps} steps", f"{self.images} at once"]
        return ", ".join([*parts, *["compiled"] * self.compiled])

    @property
    def arms(self) -> Sequence[str]:
        return ("plain", "next") if self.compiled else ARMS


CELLS = (
    *(Cell("sd15", 20, 1), Cell("sdxl", 20, 1), Cell("sd15", 50, 1), Cell("sd15", 20, 4)),
    *(Cell("sd15", 20, 1, compiled=True), Cell("sdxl", 20, 4), Cell("sdxl", 50, 1), Cell("sd15", 50, 4)),
    Cell("sdxl", 50, 4),
)
"""The most important first."""

COMPILING = 60.0
"""Seconds that torch may take to compile a UNet's blocks."""

SMALLEST = (Cell("tiny", 3, 1), Cell("tiny", 3, 2), Cell("tiny", 3, 1, compiled=True))


@dataclass
class Clock:
    """The time that all cells have together."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)


@cache
def pipeline_for(model: str, compiled: bool) -> StableDiffusionPipeline:
    """A model, loaded once for all its cells."""
    pipeline = pipeline_of(model, best_dtype(model))
    if compiled:
        # on the CPU the compiler would take minutes, and says nothing about a GPU
        compile_blocks(pipeline.unet, "inductor" if device() == "cuda" else "eager")
    return pipeline


def measure_cell(cell: Cell, rounds: int, clock: Clock) -> dict[str, Any]:
    """Measure a cell.

    Args:
        cell: The cell.
        rounds: How many rounds are wanted.
        clock: After the first round, none is begun for which there is no time.

    Returns:
        The figures, and the arms that failed with the reason.
    """
    bench = Bench(pipeline_for(cell.model, cell.compiled), SIDES[cell.model], cell.steps, cell.images)
    bench.arms = {name: bench.arms[name] for name in cell.arms}
    bench.fill_stores()
    failed = warm_up(bench)
    longest = 0.0
    while rounds_of(bench) < rounds and (not longest or longest < clock.left):
        begun = time.monotonic()
        for name in bench.arms:
            bench.turn(name)
        longest = max(longest, time.monotonic() - begun)
    return {**figures(cell, bench), "failed": failed, "round_seconds": round(longest, 2)}


def rounds_of(bench: Bench) -> int:
    """How many times each arm was measured."""
    return min((len(arm.seconds) for arm in bench.arms.values()), default=0)


def warm_up(bench: Bench) -> dict[str, str]:
    """Run each arm once, unmeasured. An arm that fails is left out; its reason is returned."""
    failed = {}
    for name in list(bench.arms):
        try:
            bench.turn(name)
        except Exception as error:  # a compiler raises nearly any exception
            failed[name] = str(error).strip().split("\n", 1)[0] or type(error).__name__
            del bench.arms[name]
        else:
            bench.arms[name].seconds.clear()
    return failed


def figures(cell: Cell, bench: Bench) -> dict[str, Any]:
    """The object of a cell that is written as JSON."""
    arms = bench.arms
    size = features_bytes(bench.chain())
    begun = time.perf_counter()
    reserved = reserve_memory(max(size, 1), torch.device(device()))
    locking = time.perf_counter() - begun
    plain = arms["plain"].seconds if "plain" in arms else []
    return {
        "cell": cell.name,
        "title": cell.title,
        "rounds": rounds_of(bench),
        "seconds": {name: [round(value, 4) for value in arm.seconds] for name, arm in arms.items()},
        "ratios": {
            name: spread([one / other for one, other in zip(arm.seconds, plain, strict=True)])
            for name, arm in arms.items()
            if plain and name != "plain"
        },
        "evaluations": {name: arm.evaluations for name, arm in arms.items()},
        "rows": {name: arm.rows for name, arm in arms.items()},
        "peak_mb": {name: round(arm.peak_mb, 1) for name, arm in arms.items()},
        "features_mb": round(size / 2**20, 2),
        "reserved_mb": round(reserved.bytes / 2**20, 2),
        "reserving_seconds": round(locking, 4),
    }


def reason_to_leave_out(cell: Cell, measured: Sequence[tuple[Cell, dict[str, Any]]], clock: Clock) -> str | None:
    """Why there is no time for a cell, judged by the earlier cells of its model; None if there is."""
    if clock.left <= 0:
        return "no time was left"
    rounds = [
        result["round_seconds"] * cell.steps / other.steps * cell.images / other.images
        for other, result in measured
        if other.model == cell.model and not other.compiled
    ]
    # a round before the measured ones, the inversions for the stores, and one measured round
    expected = 3 * min(rounds, default=0.0) + COMPILING * cell.compiled
    return f"it takes about {expected:.0f} s and {clock.left:.0f} s were left" if expected > clock.left else None


def result_page(result: dict[str, Any]) -> str:
    """The tables of a result in Markdown."""
    ratios = [
        [
            cell["title"],
            str(cell["rounds"]),
            f"{median(cell['seconds']['plain']):.2f}" if cell["seconds"].get("plain") else "",
            *(ratio_text(cell["ratios"].get(name)) for name in ARMS[1:]),
        ]
        for cell in result["cells"]
    ]
    counts = [[cell["title"], *(count_text(cell, name) for name in ARMS)] for cell in result["cells"]]
    memory = [
        [cell["title"], str(cell["features_mb"]), str(cell["reserved_mb"]), f"{cell['reserving_seconds']:.2f}"]
        for cell in result["cells"]
    ]
    memory_header = ["", "features, MB", "reserved in the CPU's memory, MB", "to reserve it, s"]
    peak = "the GPU's memory above the model" if result["device"] != "CPU" else "the process's memory"
    parts = [
        f"`python benchmarks/gpu.py` wrote these figures on {result['device']}, in {result['dtype']}, with torch "
        f"{result['torch']} and diffusers {result['diffusers']}. The ratios are to plain img2img at full strength: the "
        "median of whole samplings in turn, with the least and the most.",
        markdown_table(["", "rounds", "plain, s", *(TITLES[name] for name in ARMS[1:])], ratios),
        f"UNet evaluations, UNet rows in all of them, and the peak of {peak} in MB:",
        markdown_table(["", *(TITLES[name] for name in ARMS)], counts),
        markdown_table(memory_header, memory),
        *(f"Not measured: {name}, because {reason}." for name, reason in result["left_out"].items()),
        *(
            f"Failed: {cell['title']}, {TITLES[name]}: {reason}"
            for cell in result["cells"]
            for name, reason in cell["failed"].items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def count_text(cell: dict[str, Any], name: str) -> str:
    """What an arm evaluated and took, or nothing."""
    if name not in cell["rows"]:
        return ""
    return f"{cell['evaluations'][name]}, {cell['rows'][name]}, {cell['peak_mb'][name]:.0f}"


def ratio_text(ratio: dict[str, float] | None) -> str:
    """A ratio with its range, or nothing."""
    return f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})" if ratio else ""


def described_machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "dtype": str(best_dtype("sd15" if torch.cuda.is_available() else "tiny")).removeprefix("torch."),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "settings": {name: getattr(DEFAULTS, name) for name in NODE_SETTINGS},
    }


@click.command()
@click.option("--json", "output", type=click.Path(path_type=Path), required=True, help="Where the figures go.")
@click.option("--docs", type=click.Path(path_type=Path), help="A folder for benchmark-gpu.md, the tables of them.")
@click.option("--seconds", type=click.FloatRange(min=1), default=460, show_default=True, help="The time for all cells.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="How often each arm is measured.")
@click.option(
    "--cell", "names", multiple=True, type=click.Choice([cell.name for cell in CELLS]), help="Only this cell."
)
@click.option("--smallest", is_flag=True, help="The demo model, 3 steps and one round: to try the script itself.")
def main(output: Path, docs: Path | None, seconds: float, rounds: int, names: Sequence[str], smallest: bool) -> None:
    """Measure the cells in turn and write the figures after each of them."""
    clock = Clock(seconds)
    quieten_libraries()
    result: dict[str, Any] = {**described_machine(), "cells": [], "left_out": {}}
    measured: list[tuple[Cell, dict[str, Any]]] = []
    for cell in SMALLEST if smallest else CELLS:
        if names and cell.name not in names:
            continue
        reason = reason_to_leave_out(cell, measured, clock)
        if reason:
            result["left_out"][cell.name] = reason
        else:
            measured.append((cell, measure_cell(cell, 1 if smallest else rounds, clock)))
            result["cells"].append(measured[-1][1])
        output.write_text(json.dumps(result, indent=2) + "\n")
        click.echo(f"{cell.name}: {reason or result['cells'][-1]['ratios']}")
    page = result_page(result)
    if docs:
        (docs / "benchmark-gpu.md").write_text(page)
    click.echo(page)


if __name__ == "__main__":
    main()
