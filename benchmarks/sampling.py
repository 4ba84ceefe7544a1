"""What RIVAL costs: whole samplings of one image side by side, as ratios within one run.

    python benchmarks/sampling.py --model sd15 --steps 20 --repeats 3 --json sd15.json

The arms take turns, so that a busy machine slows all of them alike: plain img2img, RIVAL's first run (inversion and
all), that without an inversion and with one at every level, its next run (the chain is stored), that with half and a
quarter of the exemplar's tokens, the exemplar evaluated live, and the authors' scheme without and with its inversion.

`sd15` and `sdxl` have those UNets' full shapes with random weights: time does not depend on what they draw.
"""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import psutil
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from random_models import SIDES, best_dtype, pipeline_of
from torch import Tensor, nn
from tqdm import tqdm

from rival_ext.hosts.checkpoint import DEMO, quieten_libraries
from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.method.alignment import align_statistics, channel_statistics
from rival_ext.method.chain import Chain
from rival_ext.method.exemplars import Exemplar
from rival_ext.method.guide import Guide
from rival_ext.method.inversion import invert, lower_latent
from rival_ext.method.layers import count_rows, self_attention_modules
from rival_ext.method.noise import scale_to_vp
from rival_ext.method.prepare import prepare
from rival_ext.method.start import start_latents
from rival_ext.settings import PAPER, Settings, parse_settings
from rival_ext.storage.store import ChainStore

GUIDANCE = 5.0
SEED = 1
LIVE = parse_settings({"features": "live"})
NOISED = parse_settings({"chain": "noised"})
EVERY_LEVEL = parse_settings({"inversion_nodes": "all", "feature_nodes": "all"})
RATIOS = {
    "stored_vs_plain": ("next", "plain"),
    "first_vs_plain": ("first", "plain"),
    "noised_vs_plain": ("noised", "plain"),
    "every_level_vs_plain": ("every_level", "plain"),
    "live_vs_plain": ("live", "plain"),
    "stored_vs_authors": ("next", "authors"),
    "first_vs_authors_first": ("first", "authors_first"),
    "half_of_tokens_vs_plain": ("half", "plain"),
    "quarter_of_tokens_vs_plain": ("quarter", "plain"),
}


@dataclass
class Arm:
    """One way of sampling: its whole times in seconds, what the UNet evaluated, the most memory that it took."""

    run: Callable[[], None]
    seconds: list[float]
    evaluations: int = 0
    rows: int = 0
    peak_mb: float = 0.0


class Bench:
    """The arms for one model. Each samples images of the same photo and seeds.

    Args:
        pipeline: The model, on the device and in the type in which it is measured.
        side: The side of the images in pixels.
        steps: Sampling steps.
        images: How many images are sampled at once.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, side: int, steps: int, images: int = 1):
        photo = Image.open(DEMO / "house.png").convert("RGB").resize((side, side))
        request = Request("a house", "", GUIDANCE, "ddim", steps)
        self.host = DiffusersHost(pipeline, request, RequestImages.of(photo), lambda done, total: None)
        self.seeds = [SEED + image for image in range(images)]
        self.settings = parse_settings({})
        self.store, self.store_of_live = ChainStore(), ChainStore()
        self.runs = (
            *(self.plain, self.first, self.noised, self.every_level, self.next, self.half, self.quarter),
            *(self.live, self.authors, self.authors_first),
        )
        self.arms: dict[str, Arm] = {run.__name__: Arm(run, []) for run in self.runs}

    def plain(self) -> None:
        """img2img at full strength."""
        self._sample(self.host.start(self.seeds, None), None)

    def first(self) -> None:
        """Inversion, recording, generation."""
        self.store = ChainStore()
        self._guided(self.settings, self.store)

    def noised(self) -> None:
        """As `first`, with a chain that needs no inversion."""
        self._guided(NOISED, ChainStore())

    def every_level(self) -> None:
        """As `first`, inverted and recorded at every level."""
        self._guided(EVERY_LEVEL, ChainStore())

    def next(self) -> None:
        """Generation with the stored chain."""
        self._guided(self.settings, self.store)

    def half(self) -> None:
        """As `next`, with half of the exemplar's tokens."""
        self._guided(parse_settings({"exemplar_tokens": 0.5}), self.store)

    def quarter(self) -> None:
        """As `next`, with a quarter of the exemplar's tokens."""
        self._guided(parse_settings({"exemplar_tokens": 0.25}), self.store)

    def live(self) -> None:
        """Generation with the exemplar evaluated in every step; its chain is there already."""
        self._guided(LIVE, self.store_of_live)

    def authors(self) -> None:
        """Exemplar and generation in one batch; without the inversion."""
        self._authors_scheme(self.chain())

    def authors_first(self) -> None:
        """As `authors`, with an inversion of one evaluation a step."""
        host = self.host
        self._authors_scheme(
            invert(host.exemplar_latent(), host.noise_levels(), host.predict_noise, {}, first_guess=lower_latent)
        )

    def chain(self) -> Chain:
        """The chain with which `next` samples."""
        return prepare(self.host, self.settings, self.store).guide.exemplars[0].chain

    def fill_stores(self) -> None:
        """Invert for the arms whose chain is there already."""
        self.chain()
        prepare(self.host, LIVE, self.store_of_live)

    def turn(self, name: str) -> None:
        """One timed run of an arm."""
        arm = self.arms[name]
        with count_rows(self.host.unet) as rows, peak_memory() as peak:
            begun = time.perf_counter()
            arm.run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            arm.seconds.append(time.perf_counter() - begun)
        arm.evaluations, arm.rows = len(rows), sum(rows)
        arm.peak_mb = max(arm.peak_mb, peak[0] / 2**20)

    def _guided(self, settings: Settings, store: ChainStore) -> None:
        guide = prepare(self.host, settings, store).guide
        self._sample(self.host.start(self.seeds, guide), guide)

    def _sample(self, start: Tensor, guide: Guide | None) -> None:
        self.host.sample(start, self.seeds, guide, lambda done, total: None)

    @torch.no_grad()
    def _authors_scheme(self, chain: Chain) -> None:
        host, seeds = self.host, self.seeds
        levels = host.noise_levels().tolist()[:0:-1]
        negative, prompt, exemplar_prompt = host.embeddings
        images = len(seeds)
        prompts = torch.cat([*[negative] * (images + 1), exemplar_prompt, *[prompt] * images])
        x = start_latents([Exemplar(chain)], host.noise(seeds), seeds, "permuted", 1.0) * scale_to_vp(levels[0])
        scheduler = host.sampler.scheduler.from_config(host.pipeline.scheduler.config, **host.sampler.options)
        scheduler.set_timesteps(host.request.steps)
        for level, timestep in zip(levels, scheduler.timesteps, strict=True):
            exemplar = chain.latent(level) * scale_to_vp(level)
            with beside_each_other(self_attention_modules(host.unet), replaced=timestep > PAPER["t_align"]):
                rows = host.evaluate(torch.cat([exemplar, x, exemplar, x]), level, prompts)
            _, uncond, exemplar_noise, cond = rows.split([1, images, 1, images])
            noise = uncond + GUIDANCE * (cond - uncond)
            if timestep > self.settings.t_early:
                noise = align_statistics(noise, channel_statistics(exemplar_noise))
            x = scheduler.step(noise, timestep, x).prev_sample


@contextmanager
def beside_each_other(modules: dict[str, nn.Module], replaced: bool) -> Iterator[None]:
    """In rows of exemplar, generations, exemplar, generations each half attends to its exemplar's tokens."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # slices and not an index, which would wait for the device
        exemplar = torch.cat([rows[:1].expand_as(rows) for rows in args[0].chunk(2)])
        context = exemplar if replaced else torch.cat([args[0], exemplar], dim=1)
        return args, {**kwargs, "encoder_hidden_states": context}

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Watch the memory: what was taken of the GPU's on top, in bytes, or the process's largest resident size, fifty
    times a second."""
    if torch.cuda.is_available():
        peak = [0]
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak[0] = torch.cuda.max_memory_allocated() - before
        return
    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def measure(bench: Bench, repeats: int) -> None:
    """All arms in turn, `repeats` times, after one unmeasured evaluation of each batch size."""
    host = bench.host
    level = host.noise_levels().tolist()[-1]
    for rows in (1, 2, 4):
        latent, prompts = (one.expand(rows, *one.shape[1:]) for one in (host.exemplar_latent(), host.embeddings.prompt))
        with torch.no_grad():
            host.evaluate(latent, level, prompts)
    bench.fill_stores()
    for _ in tqdm(range(repeats), unit="round"):
        for name in tqdm(bench.arms, leave=False):
            bench.turn(name)


def summary(bench: Bench, model: str, steps: int, dtype: torch.dtype) -> dict[str, Any]:
    """The object that is written as JSON."""
    arms = bench.arms
    return {
        "model": model,
        "steps": steps,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ratios": {
            name: spread([one / other for one, other in zip(arms[over].seconds, arms[under].seconds, strict=True)])
            for name, (over, under) in RATIOS.items()
        },
        "rows": {name: arm.rows for name, arm in arms.items()},
        "peak_mb": {name: round(arm.peak_mb) for name, arm in arms.items()},
        "features_mb": round(features_bytes(bench.chain()) / 2**20, 1),
        "seconds": {name: [round(value, 3) for value in arm.seconds] for name, arm in arms.items()},
    }


def features_bytes(chain: Chain) -> int:
    """What the features of a chain take."""
    return sum(h.nbytes for features in chain.features.values() for h in features.values())


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {name: round(f(values), 3) for name, f in (("median", median), ("min", min), ("max", max))}


def profiled(bench: Bench) -> str:
    """A table of the operations in which plain and next run differ most, in seconds of their own time."""
    spent = {name: own_seconds(bench.arms[name].run) for name in ("plain", "next")}
    names = sorted(
        spent["plain"].keys() | spent["next"].keys(),
        key=lambda name: -abs(spent["next"].get(name, 0) - spent["plain"].get(name, 0)),
    )
    rows = [(name, spent["plain"].get(name, 0.0), spent["next"].get(name, 0.0)) for name in names[:12]]
    rows.append(("all", sum(spent["plain"].values()), sum(spent["next"].values())))
    lines = ["| operation | plain, s | next run, s | difference, s |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {plain:.2f} | {following:.2f} | {following - plain:+.2f} |" for name, plain, following in rows
    ]
    return "\n".join(lines) + "\n"


def own_seconds(run: Callable[[], None]) -> dict[str, float]:
    """Measure the CPU's seconds by operation, without those of the operations that it calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    return {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}


def write_page(result: dict[str, Any], folder: Path) -> None:
    """`benchmark-MODEL.md` and `.png` of a result."""
    # imported late: only this needs it
    from matplotlib import pyplot

    name = f"benchmark-{result['model']}"
    ratios = result["ratios"]
    lines = [
        f"`python benchmarks/sampling.py --model {result['model']} --steps {result['steps']} "
        f"--repeats {len(result['seconds']['plain'])}` wrote these figures. It ran in {result['dtype']}",
        f"on {result['device']}, with {result['threads']} threads and torch {result['torch']}. "
        f"The recorded features take {result['features_mb']} MB.",
        "",
        "| ratio of whole samplings | median | least | most |",
        "|---|---|---|---|",
        *(f"| {key.replace('_', ' ')} | {r['median']} | {r['min']} | {r['max']} |" for key, r in ratios.items()),
        "",
        "| arm | UNet rows | peak memory, MB |",
        "|---|---|---|",
        *(f"| {arm} | {rows} | {result['peak_mb'][arm]} |" for arm, rows in result["rows"].items()),
    ]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")

    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    medians = [r["median"] for r in ratios.values()]
    whiskers = [[r["median"] - r["min"] for r in ratios.values()], [r["max"] - r["median"] for r in ratios.values()]]
    axes.barh([key.replace("_", " ") for key in ratios], medians, xerr=whiskers, color="#4a7ab5")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("ratio of whole samplings")
    figure.savefig(folder / f"{name}.png", dpi=110)


@click.command()
@click.option("--model", type=click.Choice(list(SIDES)), default="tiny", show_default=True)
@click.option("--steps", type=click.IntRange(2), default=20, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), required=True, help="Where the figures go.")
@click.option("--docs", type=click.Path(path_type=Path), help="A folder for a table and a plot of them.")
@click.option(
    "--profile", type=click.Path(path_type=Path), help="A file for where plain and next run spend their time."
)
def main(model: str, steps: int, repeats: int, output: Path, docs: Path | None, profile: Path | None) -> None:
    """Times the arms in turns and writes the ratios."""
    quieten_libraries()
    dtype = best_dtype(model)
    bench = Bench(pipeline_of(model, dtype), SIDES[model], steps)
    measure(bench, repeats)
    result = summary(bench, model, steps, dtype)
    output.write_text(json.dumps(result, indent=2) + "\n")
    if docs:
        write_page(result, docs)
    if profile:
        profile.write_text(profiled(bench))
    click.echo(json.dumps({"ratios": result["ratios"], "peak_mb": result["peak_mb"]}, indent=2))


if __name__ == "__main__":
    main()
