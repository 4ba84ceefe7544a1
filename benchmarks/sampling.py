"""What RIVAL costs: whole samplings of one image side by side, as ratios within one run.

    python benchmarks/sampling.py --model sd15 --steps 20 --repeats 3 --json sd15.json

The arms take turns, so that a busy machine slows all of them alike: plain img2img, RIVAL's first run (inversion and
all), its next run (the chain is stored), that with half and a quarter of the exemplar's tokens, the exemplar evaluated
live, and the authors' scheme without its inversion.
`sd15` and `sdxl` have those UNets' full shapes with random weights: time does not depend on what they draw.
"""

from __future__ import annotations

import json
import platform
import sys
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
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = Path(__file__).resolve().parents[1]
# the project is run from its checkout and not installed, so Python finds only this file's own folder
sys.path.insert(0, str(ROOT))

from rival_ext.hosts.checkpoint import DEMO, DEMO_CHECKPOINT, SD15_CONFIG, load_pipeline, quieten_libraries  # noqa: E402
from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages  # noqa: E402
from rival_ext.method.alignment import align_statistics, channel_statistics  # noqa: E402
from rival_ext.method.chain import Chain  # noqa: E402
from rival_ext.method.exemplars import Exemplar  # noqa: E402
from rival_ext.method.guide import Guide  # noqa: E402
from rival_ext.method.layers import count_rows, self_attention_layers, self_attention_modules  # noqa: E402
from rival_ext.method.noise import scale_to_vp  # noqa: E402
from rival_ext.method.prepare import prepare  # noqa: E402
from rival_ext.method.start import start_latents  # noqa: E402
from rival_ext.settings import PAPER, Settings, parse_settings  # noqa: E402
from rival_ext.storage.store import NoStore  # noqa: E402

GUIDANCE = 5.0
SEED = 1
SIDES = {"tiny": 128, "sd15": 512, "sdxl": 1024}
RATIOS = {
    "stored_vs_plain": ("next", "plain"),
    "first_vs_plain": ("first", "plain"),
    "live_vs_plain": ("live", "plain"),
    "stored_vs_authors": ("next", "authors"),
    "half_of_tokens_vs_plain": ("half", "plain"),
    "quarter_of_tokens_vs_plain": ("quarter", "plain"),
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


class SdxlUnet(nn.Module):
    """SDXL's UNet behind the interface of SD 1.x: sizes and pooled prompt are made up, the text is widened."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**SDXL)
        self.config = self.unet.config

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(self, latent: Tensor, timestep: float, prompts: Tensor, return_dict: bool) -> Any:
        widened = nn.functional.pad(prompts, (0, self.config.cross_attention_dim - prompts.shape[-1]))
        added = {
            "text_embeds": prompts.new_zeros(len(latent), 1280),
            "time_ids": prompts.new_tensor([[1024, 1024, 0, 0, 1024, 1024]]).repeat(len(latent), 1),
        }
        return self.unet(latent, timestep, widened.to(latent), added_cond_kwargs=added, return_dict=return_dict)


@dataclass
class Arm:
    """One way of sampling: its whole times in seconds, its UNet rows, the most memory it took above the model's."""

    run: Callable[[], None]
    seconds: list[float]
    rows: int = 0
    peak_mb: float = 0.0


class Bench:
    """The arms for one model; each samples one image from the same photo and seed."""

    def __init__(self, model: str, steps: int, dtype: torch.dtype):
        pipeline = load_pipeline(DEMO_CHECKPOINT) if model == "tiny" else random_pipeline(model)
        pipeline.unet.to(dtype)
        pipeline.to(device())
        photo = Image.open(DEMO / "house.png").convert("RGB").resize((SIDES[model], SIDES[model]))
        request = Request("a house", "", GUIDANCE, "ddim", steps)
        self.host = DiffusersHost(pipeline, request, RequestImages.of(photo), lambda done, total: None)
        self.settings = parse_settings({})
        self.layers = self_attention_layers(self.host.unet)
        self.stored: Chain | None = None
        runs = (self.plain, self.first, self.next, self.half, self.quarter, self.live, self.authors)
        self.arms = {run.__name__: Arm(run, []) for run in runs}

    def plain(self) -> None:
        """img2img at full strength."""
        self._sample(self.host.start([SEED], None), None)

    def first(self) -> None:
        """Inversion, recording, generation."""
        guide = prepare(self.host, self.settings, NoStore()).guide
        self.stored = guide.exemplars[0].chain
        self._sample(self.host.start([SEED], guide), guide)

    def next(self) -> None:
        """Generation with the stored chain."""
        self._with_chain(self._chain(), self.settings)

    def half(self) -> None:
        """As `next`, with half of the exemplar's tokens."""
        self._with_chain(self._chain(), parse_settings({"exemplar_tokens": 0.5}))

    def quarter(self) -> None:
        """As `next`, with a quarter of the exemplar's tokens."""
        self._with_chain(self._chain(), parse_settings({"exemplar_tokens": 0.25}))

    def live(self) -> None:
        """Generation with the exemplar evaluated in every step; its chain is there already."""
        chain = self._chain()
        self._with_chain(Chain(chain.noise_levels, chain.latents), self.settings)

    @torch.no_grad()
    def authors(self) -> None:
        """Exemplar and generation in one batch of four; without the inversion."""
        host, chain = self.host, self._chain()
        levels = host.noise_levels().tolist()[:0:-1]
        negative, prompt, exemplar_prompt = host.embeddings
        prompts = torch.cat([negative, negative, exemplar_prompt, prompt])
        x = start_latents([Exemplar(chain)], host.noise([SEED]), [SEED], "permuted", 1.0) * scale_to_vp(levels[0])
        scheduler = host.sampler.scheduler.from_config(host.pipeline.scheduler.config, **host.sampler.options)
        scheduler.set_timesteps(host.request.steps)
        for level, timestep in zip(levels, scheduler.timesteps, strict=True):
            exemplar = chain.latent(level) * scale_to_vp(level)
            with beside_each_other(self_attention_modules(host.unet), replaced=timestep > PAPER["t_align"]):
                rows = host.evaluate(torch.cat([exemplar, x, exemplar, x]), level, prompts)
            _, uncond, exemplar_noise, cond = rows.chunk(4)
            noise = uncond + GUIDANCE * (cond - uncond)
            if timestep > self.settings.t_early:
                noise = align_statistics(noise, channel_statistics(exemplar_noise))
            x = scheduler.step(noise, timestep, x).prev_sample

    def turn(self, name: str) -> None:
        """One timed run of an arm."""
        arm = self.arms[name]
        with count_rows(self.host.unet) as rows, peak_memory() as peak:
            begun = time.perf_counter()
            arm.run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            arm.seconds.append(time.perf_counter() - begun)
        arm.rows = sum(rows)
        arm.peak_mb = max(arm.peak_mb, peak[0] / 2**20)

    def _chain(self) -> Chain:
        if self.stored is None:
            self.first()
        assert self.stored is not None
        return self.stored

    def _with_chain(self, chain: Chain, settings: Settings) -> None:
        host = self.host
        load = NoStore().load_features
        guide = Guide([Exemplar(chain)], settings, host.schedule, self.layers, host.predict_noise, load=load)
        self._sample(host.start([SEED], guide), guide)

    def _sample(self, start: Tensor, guide: Guide | None) -> None:
        self.host.sample(start, [SEED], guide, lambda done, total: None)


def random_pipeline(model: str) -> StableDiffusionPipeline:
    """A full-size UNet and text encoder with random weights; the small model's VAE, which is not timed."""
    small = load_pipeline(DEMO_CHECKPOINT)
    torch.manual_seed(0)
    config = UNet2DConditionModel.load_config(SD15_CONFIG / "unet")
    unet = SdxlUnet() if model == "sdxl" else UNet2DConditionModel.from_config(config)
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(SD15_CONFIG / "text_encoder"))
    parts = {**small.components, "unet": unet.eval(), "text_encoder": text_encoder.eval()}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


@contextmanager
def beside_each_other(modules: dict[str, nn.Module], replaced: bool) -> Iterator[None]:
    """In rows of exemplar, generation, exemplar, generation each pair attends to its exemplar's tokens."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        exemplar = args[0][[0, 0, 2, 2]]
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
    """Watch the memory, fifty times a second: the process's largest resident size in bytes, or the GPU's peak."""
    if torch.cuda.is_available():
        peak = [0]
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak[0] = torch.cuda.max_memory_allocated()
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
    for _ in tqdm(range(repeats), unit="round"):
        for name in tqdm(bench.arms, leave=False):
            bench.turn(name)


def summary(bench: Bench, model: str, steps: int, dtype: torch.dtype) -> dict[str, Any]:
    """The object that is written as JSON."""
    arms = bench.arms
    chain = bench.stored
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
        "features_mb": round(chain.bytes / 2**20, 1) if chain else 0,
        "seconds": {name: [round(value, 3) for value in arm.seconds] for name, arm in arms.items()},
    }


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
    bench = Bench(model, steps, dtype)
    measure(bench, repeats)
    result = summary(bench, model, steps, dtype)
    output.write_text(json.dumps(result, indent=2) + "\n")
    if docs:
        write_page(result, docs)
    if profile:
        profile.write_text(profiled(bench))
    click.echo(json.dumps({"ratios": result["ratios"], "peak_mb": result["peak_mb"]}, indent=2))


def device() -> str:
    """The GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_dtype(model: str) -> torch.dtype:
    """The type in which the UNet runs: half precision on a GPU, else bf16 if the processor multiplies it itself."""
    if torch.cuda.is_available():
        return torch.float16
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if model != "tiny" and has_bf16 else torch.float32


if __name__ == "__main__":
    main()
