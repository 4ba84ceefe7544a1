"""The command line's embedded host: an SD 1.x checkpoint through the `diffusers` library."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import psutil
import torch
import transformers
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTokenizer

from rival_ext.attention import Layers, self_attention_layers
from rival_ext.errors import RivalError
from rival_ext.guide import GUIDED, UNGUIDED, Guide
from rival_ext.noise import NoiseSchedule, levels_tensor, scale_to_vp
from rival_ext.pictures import mask_array, size_of_area
from rival_ext.prepare import Painting, Picture

DEMO = Path(__file__).resolve().parents[2] / "demo"
DEMO_CHECKPOINT = DEMO / "tiny-emoji.safetensors"
SD15_CONFIG = DEMO / "sd15-config"
TOKENIZER = DEMO / "tiny-emoji-config" / "tokenizer"
"""CLIP's own vocabulary, the same for every SD 1.x checkpoint."""

FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
FIRST_CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

Advance = Callable[[int, int], None]
"""Told (steps done, steps in all)."""


@dataclass(frozen=True)
class Sampler:
    """A sampler of the command line: a scheduler of diffusers and the form in which it holds the latents."""

    scheduler: Any
    options: dict[str, Any]
    exploding: bool


SAMPLERS = {
    "ddim": Sampler(DDIMScheduler, {}, exploding=False),
    "euler": Sampler(EulerDiscreteScheduler, {"timestep_spacing": "linspace"}, exploding=True),
    "euler-a": Sampler(EulerAncestralDiscreteScheduler, {"timestep_spacing": "linspace"}, exploding=True),
    "dpm++2m": Sampler(DPMSolverMultistepScheduler, {"timestep_spacing": "linspace"}, exploding=False),
    "dpm++2m-karras": Sampler(
        DPMSolverMultistepScheduler, {"timestep_spacing": "linspace", "use_karras_sigmas": True}, exploding=False
    ),
}


@dataclass(frozen=True)
class Request:
    """What to sample: prompts, guidance scale (1 evaluates the prompt alone), sampler, steps.

    exact: the exemplar is evaluated with the empty prompt too, for the unguided half.
    """

    prompt: str
    exemplar_prompt: str
    guidance: float
    sampler: str
    steps: int
    exact: bool = False


@dataclass(frozen=True)
class Shown:
    """An exemplar as it is shown to the model: sides of multiples of 8; `mask` is white where it is seen."""

    image: Image.Image
    mask: Image.Image | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Scene:
    """What there is to see: the exemplars, the size of what is made, and for inpainting a canvas and its hole.

    canvas: of that size. hole: white where it is filled.
    """

    exemplars: Sequence[Shown]
    size: tuple[int, int]
    canvas: Image.Image | None = None
    hole: Image.Image | None = None

    @classmethod
    def of(cls, image: Image.Image) -> Scene:
        """One exemplar, and images of its size."""
        return cls([Shown(image)], image.size)


class DiffusersHost:
    """A loaded checkpoint, one request and one scene (`rival_ext.prepare.Host`)."""

    def __init__(self, pipeline: StableDiffusionPipeline, request: Request, scene: Scene, progress: Advance):
        self.pipeline = pipeline
        self.request = request
        self.scene = scene
        self.progress = progress
        self.unet = pipeline.unet
        self.layers: Layers = self_attention_layers(self.unet)
        self.sampler = SAMPLERS[request.sampler]
        self.scheduler = self._new_scheduler()
        self.schedule = NoiseSchedule.of_alphas(self.scheduler.alphas_cumprod)
        self._levels = _levels(self.scheduler)
        self._latents: dict[int, Tensor] = {}
        # the scheduler's own timestep of a level, so that exemplar and generation are evaluated at the very same one
        self._timesteps = dict(zip(reversed(self._levels), self.scheduler.timesteps.tolist(), strict=False))
        self._negative, self._prompt, self._exemplar_prompt = self._encode_prompts()
        self._has_two_rows = request.exact and not torch.equal(self._negative, self._exemplar_prompt)

    def noise_levels(self) -> Tensor:
        return levels_tensor(self._levels)

    def is_predictable(self) -> bool:
        return True

    def adds_noise(self) -> bool:
        return self.sampler.scheduler is EulerAncestralDiscreteScheduler

    def pictures(self) -> list[Picture]:
        return [
            Picture(
                self._latent_of(shown.image),
                shown.weight,
                self._region(shown.mask, shown.image.size),
                is_part=shown.mask is not None,
            )
            for shown in self.scene.exemplars
        ]

    def painting(self) -> Painting | None:
        scene = self.scene
        hole = self._region(scene.hole, scene.size)
        if scene.canvas is None or hole is None:
            return None
        is_exemplar = any(shown.image is scene.canvas for shown in scene.exemplars)
        return Painting(self._latent_of(scene.canvas), hole, (hole > 0).float() if is_exemplar else None)

    def exemplar_latent(self) -> Tensor:
        """The first exemplar's."""
        return self._latent_of(self.scene.exemplars[0].image)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents of what is made."""
        width, height = (side // self.pipeline.vae_scale_factor for side in self.scene.size)
        return height, width

    @torch.no_grad()
    def predict_noise(self, latent: Tensor, noise_level: float) -> Tensor:
        latent = latent * scale_to_vp(noise_level)
        if not self._has_two_rows:
            return self._evaluate(latent, noise_level, self._exemplar_prompt)
        both = torch.cat([self._negative, self._exemplar_prompt])
        return self._evaluate(latent.expand(2, -1, -1, -1), noise_level, both)[GUIDED:]

    def preview(self, latent: Tensor) -> None:
        """The command line shows no picture on the way."""

    def fingerprint(self) -> Iterable[Tensor | object]:
        return (self.pipeline.config.get("_name_or_path"), self.unet.dtype, self._exemplar_prompt, self._has_two_rows)

    def memory_budget(self) -> float:
        return psutil.virtual_memory().available / 4

    def noise(self, seed: int) -> Tensor:
        """Plain generation's start from a seed, `[1, C, H, W]`, variance-exploding."""
        generator = torch.Generator("cpu").manual_seed(seed)
        shape = (1, self.unet.config.in_channels, *self.latent_size)
        return torch.randn(shape, generator=generator).to(self.unet.device) * self._levels[-1]

    @torch.no_grad()
    def sample(self, start: Tensor, seeds: Sequence[int], guide: Guide | None, advance: Advance) -> Tensor:
        """Final latents `[N, C, H, W]` of the sampler from `start`, variance-exploding; `guide` None is plain."""
        scheduler = self._new_scheduler()
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        randomness = {"generator": generators} if "generator" in _step_parameters(scheduler) else {}
        prompts = torch.cat([self._negative.expand(len(start), -1, -1), self._prompt.expand(len(start), -1, -1)])

        x = start if self.sampler.exploding else start * scale_to_vp(self._levels[-1])
        for step, timestep in enumerate(scheduler.timesteps):
            advance(step, len(scheduler.timesteps))
            level = self._levels[-1 - step]
            if guide:
                x = self._corrected(x, level, guide)
            latent = scheduler.scale_model_input(x, timestep)
            noise = self._guided_noise(latent, level, prompts, guide)
            x = scheduler.step(noise, timestep, x, **randomness).prev_sample
        advance(len(scheduler.timesteps), len(scheduler.timesteps))
        return x

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Images of final latents, `width x height` of the request."""
        vae = self.pipeline.vae
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        return VaeImageProcessor().postprocess(pixels)

    def _corrected(self, x: Tensor, level: float, guide: Guide) -> Tensor:
        scale = 1.0 if self.sampler.exploding else scale_to_vp(level)
        latent = x / scale
        corrected = guide.corrected_latent(latent, level)
        return x if corrected is latent else corrected * scale

    @torch.no_grad()
    def _latent_of(self, image: Image.Image) -> Tensor:
        """Mean of the VAE's posterior; the same tensor for the same image object."""
        if id(image) not in self._latents:
            vae = self.pipeline.vae
            pixels = VaeImageProcessor().preprocess(image).to(vae.device, vae.dtype)
            self._latents[id(image)] = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
        return self._latents[id(image)]

    def _region(self, mask: Image.Image | None, size: tuple[int, int]) -> Tensor | None:
        if mask is None:
            return None
        width, height = (side // self.pipeline.vae_scale_factor for side in size)
        return torch.from_numpy(mask_array(mask, width, height))[None, None].to(self.unet.device)

    def _guided_noise(self, latent: Tensor, level: float, prompts: Tensor, guide: Guide | None) -> Tensor:
        def denoise() -> Tensor:
            scale = self.request.guidance
            if scale == 1:
                return self._evaluate(latent, level, prompts[len(latent) :])
            unguided, guided = self._evaluate(torch.cat([latent, latent]), level, prompts).chunk(2)
            return unguided + scale * (guided - unguided)

        halves = [UNGUIDED] * len(latent) * (self.request.guidance != 1) + [GUIDED] * len(latent)
        return guide.guided_noise(level, denoise, halves) if guide else denoise()

    def _evaluate(self, latent: Tensor, noise_level: float, prompts: Tensor) -> Tensor:
        timestep = self._timesteps[noise_level]
        dtype = self.unet.dtype
        return self.unet(latent.to(dtype), timestep, prompts.to(dtype), return_dict=False)[0].to(latent.dtype)

    def _new_scheduler(self) -> Any:
        scheduler = self.sampler.scheduler.from_config(self.pipeline.scheduler.config, **self.sampler.options)
        scheduler.set_timesteps(self.request.steps)
        return scheduler

    @torch.no_grad()
    def _encode_prompts(self) -> tuple[Tensor, Tensor, Tensor]:
        texts = {"--prompt": self.request.prompt, "--exemplar-prompt": self.request.exemplar_prompt}
        for option, text in texts.items():
            self._refuse_long(option, text)
        encoded = self.pipeline.encode_prompt(
            ["", self.request.prompt, self.request.exemplar_prompt], self.unet.device, 1, False
        )[0]
        negative, prompt, exemplar_prompt = encoded.split(1)
        return negative, prompt, exemplar_prompt

    def _refuse_long(self, option: str, text: str) -> None:
        tokenizer = self.pipeline.tokenizer
        tokens, limit = len(tokenizer(text, truncation=False).input_ids) - 2, tokenizer.model_max_length - 2
        if tokens > limit:
            raise RivalError(f"{option} has {tokens} tokens and the text encoder reads {limit}; shorten it.")


def quieten_libraries() -> None:
    """No advice and no progress bars of `diffusers` and `transformers` among the command line's own words."""
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def load_pipeline(checkpoint: Path) -> StableDiffusionPipeline:
    """The pipeline of an SD 1.x `.safetensors`; a folder `NAME-config` beside it describes one of another shape.

    Raises RivalError if the file is missing, damaged or of another family.
    """
    beside = checkpoint.with_name(checkpoint.stem + "-config")
    config = beside if beside.is_dir() else SD15_CONFIG
    _refuse_other_families(checkpoint, config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = StableDiffusionPipeline.from_single_file(
        str(checkpoint),
        config=str(config),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        local_files_only=True,
        torch_dtype=torch.float32 if device == "cpu" else torch.float16,
    )
    return pipeline.to(device)


def native_size(pipeline: StableDiffusionPipeline, image: Image.Image) -> tuple[int, int]:
    """Width and height for an image: its aspect, the area that the checkpoint was trained on."""
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return size_of_area(image, side, size_unit(pipeline))


def size_unit(pipeline: StableDiffusionPipeline) -> int:
    """What width and height should be multiples of, so that every level of the UNet halves them evenly."""
    return pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)


def _levels(scheduler: Any) -> list[float]:
    """The noise levels of a scheduler, ascending, read from the scheduler itself."""
    if isinstance(scheduler, DDIMScheduler):
        alphas = torch.stack([*scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod]).double()
        return ((1 - alphas) / alphas).sqrt().flip(0).tolist()
    return scheduler.sigmas.flip(0).tolist()


def _step_parameters(scheduler: Any) -> Sequence[str]:
    return scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]


def _refuse_other_families(checkpoint: Path, config: Path) -> None:
    if not checkpoint.is_file():
        raise RivalError(f"the checkpoint {checkpoint} does not exist.")
    try:
        with safe_open(checkpoint, framework="pt") as tensors:
            names = set(tensors.keys())
            shapes = {
                name: tensors.get_slice(name).get_shape()
                for name in (FIRST_CONVOLUTION, FIRST_CROSS_ATTENTION)
                if name in names
            }
    except (SafetensorError, OSError):
        raise RivalError(f"{checkpoint} is not a readable .safetensors file.") from None
    if len(shapes) < 2:
        raise RivalError(f"{checkpoint} is not a Stable Diffusion 1.x checkpoint; give one to --checkpoint.")
    found = (*shapes[FIRST_CONVOLUTION][:2], shapes[FIRST_CROSS_ATTENTION][1])
    unet = json.loads((config / "unet" / "config.json").read_text())
    expected = (unet["block_out_channels"][0], unet["in_channels"], unet["cross_attention_dim"])
    if found != expected:
        raise RivalError(
            f"{checkpoint} is not a Stable Diffusion 1.x text-to-image checkpoint: its UNet has "
            f"(width, channels, text width) {found}, not {expected}; give another one to --checkpoint."
        )
