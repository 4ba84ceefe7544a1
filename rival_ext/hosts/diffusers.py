"""The command line's host: an SD 1.x checkpoint through the `diffusers` library (`rival_ext.method.host.Host`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import psutil
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.images.transforms import mask_array
from rival_ext.method.attention import Layers
from rival_ext.method.guide import Guide
from rival_ext.method.host import EncodedExemplar, InpaintInput
from rival_ext.method.layers import self_attention_layers
from rival_ext.method.noise import NoiseSchedule, levels_tensor, scale_to_vp
from rival_ext.method.regions import region_of_mask
from rival_ext.method.rows import COND, UNCOND
from rival_ext.settings import ExemplarInput, steps_made

Advance = Callable[[int, int], None]
"""(steps done, steps in all) -> None."""


@dataclass(frozen=True)
class Sampler:
    """A sampler of the command line.

    Attributes:
        scheduler: The scheduler class of diffusers.
        options: What the scheduler is made with.
        is_exploding: Whether it holds variance-exploding latents.
    """

    scheduler: Any
    options: dict[str, Any]
    is_exploding: bool


SAMPLERS = {
    "ddim": Sampler(DDIMScheduler, {}, is_exploding=False),
    "euler": Sampler(EulerDiscreteScheduler, {"timestep_spacing": "linspace"}, is_exploding=True),
    "euler-a": Sampler(EulerAncestralDiscreteScheduler, {"timestep_spacing": "linspace"}, is_exploding=True),
    "dpm++2m": Sampler(DPMSolverMultistepScheduler, {"timestep_spacing": "linspace"}, is_exploding=False),
    "dpm++2m-karras": Sampler(
        DPMSolverMultistepScheduler, {"timestep_spacing": "linspace", "use_karras_sigmas": True}, is_exploding=False
    ),
}


@dataclass(frozen=True)
class Request:
    """What to sample.

    Attributes:
        prompt: The prompt of the images.
        exemplar_prompt: The prompt of the exemplar's inversion.
        guidance: The guidance scale. At 1 the prompt alone is evaluated.
        sampler: A key of `SAMPLERS`.
        steps: Sampling steps.
        exact: Whether the exemplar is evaluated with the empty prompt too, for the rows with the negative prompt.
        denoise: Above 0 up to 1, the share of the steps that is made. Below 1 the images start from the canvas.
    """

    prompt: str
    exemplar_prompt: str
    guidance: float
    sampler: str
    steps: int
    exact: bool = False
    denoise: float = 1.0


@dataclass(frozen=True)
class RequestImages:
    """The images of a request.

    Attributes:
        exemplars: One or more, each with an image whose sides are multiples of 8, and a mask of the same size or
            none.
        size: Width and height of the images to make.
        canvas: The image to start from or to inpaint, of that size, if any.
        mask: White where the canvas is filled, if it is inpainted.
    """

    exemplars: Sequence[ExemplarInput]
    size: tuple[int, int]
    canvas: Image.Image | None = None
    mask: Image.Image | None = None

    @classmethod
    def of(cls, image: Image.Image) -> RequestImages:
        """Make a request with one exemplar and images of its size."""
        return cls([ExemplarInput(image)], image.size, image)


class Embeddings(NamedTuple):
    """The encoded negative prompt, prompt and exemplar's prompt, `[1, tokens, C]` each."""

    negative: Tensor
    prompt: Tensor
    exemplar: Tensor


class DiffusersHost:
    """A loaded checkpoint, one request and its images.

    Prompts and images are encoded when they are first needed.

    Args:
        pipeline: The loaded checkpoint.
        request: What to sample.
        images: The images of the request.
        progress: Told the inversions' progress.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, request: Request, images: RequestImages, progress: Advance):
        self.pipeline = pipeline
        self.request = request
        self.images = images
        self.progress = progress
        self.unet = pipeline.unet
        self.layers: Layers = self_attention_layers(self.unet)
        self.sampler = SAMPLERS[request.sampler]
        scheduler = self._new_scheduler()
        self.schedule = NoiseSchedule.of_alphas(scheduler.alphas_cumprod)
        self.steps = steps_made(request.steps, request.denoise)
        self._levels = _levels(scheduler)[: self.steps + 1]
        self._latents: dict[int, Tensor] = {}
        # the scheduler's own timestep of a level, so that exemplar and generation are evaluated at the very same one;
        # on the device, because the UNet would bring a number there at each call and wait for it
        timesteps = scheduler.timesteps[-self.steps :].to(self.unet.device)
        self._timesteps: dict[float, Tensor] = dict(zip(reversed(self._levels), timesteps, strict=False))

    def noise_levels(self) -> Tensor:
        return levels_tensor(self._levels)

    def levels_are_known(self) -> bool:
        return True

    def adds_noise(self) -> bool:
        return self.sampler.scheduler is EulerAncestralDiscreteScheduler

    def encoded_exemplars(self) -> list[EncodedExemplar]:
        encoded = []
        for image, mask, weight, suffix in self.images.exemplars:
            assert image is not None
            covered = self._region(mask, image.size)
            region = None if covered is None else region_of_mask(covered, "exemplar_mask" + suffix)
            encoded.append(EncodedExemplar(self._latent_of(image), weight, region, attention_only=region is not None))
        return encoded

    def inpaint_input(self) -> InpaintInput | None:
        images = self.images
        mask = self._region(images.mask, images.size)
        if images.canvas is None or mask is None:
            return None
        is_exemplar = any(exemplar.image is images.canvas for exemplar in images.exemplars)
        return InpaintInput(self._latent_of(images.canvas), mask, (mask > 0).float() if is_exemplar else None)

    def exemplar_latent(self) -> Tensor:
        """Return the first exemplar's clean latent, `[1, C, H, W]`."""
        return self.encoded_exemplars()[0].latent

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents of the images to make."""
        width, height = (side // self.pipeline.vae_scale_factor for side in self.images.size)
        return height, width

    @cached_property
    def embeddings(self) -> Embeddings:
        """The encoded prompts. Raises RivalError if the text encoder cannot read a prompt as a whole."""
        texts = {"--prompt": self.request.prompt, "--exemplar-prompt": self.request.exemplar_prompt}
        for option, text in texts.items():
            self._refuse_long(option, text)
        with torch.no_grad():
            encoded = self.pipeline.encode_prompt(["", *texts.values()], self.unet.device, 1, False)[0]
        return Embeddings(*encoded.split(1))

    @cached_property
    def has_two_rows(self) -> bool:
        """Whether the exemplar is evaluated with the empty prompt too."""
        return self.request.exact and not torch.equal(self.embeddings.negative, self.embeddings.exemplar)

    @torch.no_grad()
    def predict_noise(self, latent: Tensor, noise_level: float) -> Tensor:
        latent = latent * scale_to_vp(noise_level)
        prompts = self.embeddings.exemplar
        if self.has_two_rows:
            prompts, latent = torch.cat([self.embeddings.negative, prompts]), latent.expand(2, -1, -1, -1)
        # the last row is the one with the exemplar's prompt
        return self._finite(self.evaluate(latent, noise_level, prompts)[-1:], "UNet", "for the exemplar")

    @torch.no_grad()
    def predict_noises(self, latents: Tensor, noise_levels: Sequence[float]) -> Tensor:
        scales = torch.tensor([scale_to_vp(level) for level in noise_levels]).to(latents)[:, None, None, None]
        timesteps = torch.stack([self._timesteps[level] for level in noise_levels])
        prompts = self.embeddings.exemplar.expand(len(latents), -1, -1).to(self.unet.dtype)
        eps = self.unet((latents * scales).to(self.unet.dtype), timesteps, prompts, return_dict=False)[0]
        return self._finite(eps.to(latents.dtype), "UNet", "for the exemplar")

    def is_guided(self) -> bool:
        return self.request.guidance != 1

    def notes(self) -> Sequence[str]:
        return ()

    def preview(self, latent: Tensor) -> None:
        """Do nothing: the command line shows no image on the way."""

    def fingerprint(self) -> Iterable[Tensor | object]:
        name = self.pipeline.config.get("_name_or_path")
        return (name, self.unet.dtype, self.embeddings.exemplar, self.has_two_rows)

    def sampler_fingerprint(self) -> Iterable[object]:
        return (self.request.sampler,)

    def memory_budget(self) -> float:
        return psutil.virtual_memory().available / 4

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Make the images' fresh noise with deviation 1.

        Args:
            seeds: The seed of each image.

        Returns:
            `[N, C, H, W]`.
        """
        shape = (1, self.unet.config.in_channels, *self.latent_size)
        generators = (torch.Generator("cpu").manual_seed(seed) for seed in seeds)
        return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(self.unet.device)

    def kept_image(self) -> Tensor | None:
        """Return the clean latent that is kept below full denoising strength, `[1, C, H, W]`, or None at full."""
        if self.request.denoise == 1:
            return None
        assert self.images.canvas is not None
        return self._latent_of(self.images.canvas)

    def start(self, seeds: Sequence[int], guide: Guide | None) -> Tensor:
        """Make the start latents of a batch.

        Args:
            seeds: The seed of each image.
            guide: Makes the noise part. None takes fresh noise, as plain generation does.

        Returns:
            `[N, C, H, W]`, variance-exploding.
        """
        noise, image = self.noise(seeds), self.kept_image()
        if guide:
            return guide.start(noise, seeds, image=image)
        return noise * self._levels[-1] + (0 if image is None else image)

    @torch.no_grad()
    def sample(self, start: Tensor, seeds: Sequence[int], guide: Guide | None, advance: Advance) -> Tensor:
        """Run the sampler.

        Args:
            start: `[N, C, H, W]`, variance-exploding.
            seeds: N seeds, for the noise that some samplers add.
            guide: Stands beside the denoiser. None samples without RIVAL.
            advance: Told the progress.

        Returns:
            The final latents, `[N, C, H, W]`.
        """
        scheduler = self._new_scheduler()
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(len(scheduler.timesteps) - self.steps)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        randomness = {"generator": generators} if "generator" in _step_parameters(scheduler) else {}
        negative, prompt, _ = self.embeddings
        prompts = torch.cat([negative.expand(len(start), -1, -1), prompt.expand(len(start), -1, -1)])

        x = start if self.sampler.is_exploding else start * scale_to_vp(self._levels[-1])
        with guide.injection.installed() if guide else nullcontext():
            for step, timestep in enumerate(scheduler.timesteps[-self.steps :]):
                advance(step, self.steps)
                level = self._levels[-1 - step]
                if guide:
                    x = self._corrected(x, level, guide)
                latent = scheduler.scale_model_input(x, timestep)
                noise = self._guided_noise(latent, level, prompts, guide)
                x = scheduler.step(noise, timestep, x, **randomness).prev_sample
        advance(self.steps, self.steps)
        return self._finite(x, "UNet", "in sampling")

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Decode final latents.

        Args:
            latents: `[N, C, H, W]`.

        Returns:
            N images of the request's size.
        """
        vae = self.pipeline.vae
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        return VaeImageProcessor().postprocess(self._finite(pixels, "VAE", "in decoding an image"))

    def evaluate(self, latent: Tensor, noise_level: float, prompts: Tensor) -> Tensor:
        """Evaluate the UNet.

        Args:
            latent: `[rows, C, H, W]`, variance-preserving.
            noise_level: One of the sampler's levels above the lowest.
            prompts: `[rows, tokens, C]`.

        Returns:
            `eps`, `[rows, C, H, W]`.
        """
        timestep = self._timesteps[noise_level]
        dtype = self.unet.dtype
        return self.unet(latent.to(dtype), timestep, prompts.to(dtype), return_dict=False)[0].to(latent.dtype)

    def _corrected(self, x: Tensor, level: float, guide: Guide) -> Tensor:
        scale = 1.0 if self.sampler.is_exploding else scale_to_vp(level)
        latent = x / scale
        corrected = guide.corrected_latent(latent, level)
        return x if corrected is latent else corrected * scale

    @torch.no_grad()
    def _latent_of(self, image: Image.Image) -> Tensor:
        """Mean of the VAE's posterior. The same image object gives the same tensor."""
        if id(image) not in self._latents:
            vae = self.pipeline.vae
            pixels = VaeImageProcessor().preprocess(image).to(vae.device, vae.dtype)
            latent = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
            self._latents[id(image)] = self._finite(latent, "VAE", "in encoding an image")
        return self._latents[id(image)]

    def _finite(self, values: Tensor, part: str, when: str) -> Tensor:
        """Return values that a part of the checkpoint gave, or raise RivalError if they hold NaN or infinity."""
        if values.isfinite().all():
            return values
        in_float32 = self.unet.dtype == torch.float32
        remedy = "" if in_float32 else ", or set CUDA_VISIBLE_DEVICES=-1 to compute in float32 on the CPU"
        raise RivalError(
            f"the {part} of --checkpoint gave values that are not numbers (NaN or infinity) {when}; give a checkpoint "
            f"with another {part}{remedy}."
        )

    def _region(self, mask: Image.Image | None, size: tuple[int, int]) -> Tensor | None:
        if mask is None:
            return None
        width, height = (side // self.pipeline.vae_scale_factor for side in size)
        return torch.from_numpy(mask_array(mask, width, height))[None, None].to(self.unet.device)

    def _guided_noise(self, latent: Tensor, level: float, prompts: Tensor, guide: Guide | None) -> Tensor:
        def denoise() -> Tensor:
            scale = self.request.guidance
            if scale == 1:
                return self.evaluate(latent, level, prompts[len(latent) :])
            uncond, cond = self.evaluate(torch.cat([latent, latent]), level, prompts).chunk(2)
            return uncond + scale * (cond - uncond)

        cond_or_uncond = [UNCOND] * len(latent) * (self.request.guidance != 1) + [COND] * len(latent)
        return guide.guided_noise(level, denoise, cond_or_uncond) if guide else denoise()

    def _new_scheduler(self) -> Any:
        scheduler = self.sampler.scheduler.from_config(self.pipeline.scheduler.config, **self.sampler.options)
        scheduler.set_timesteps(self.request.steps)
        return scheduler

    def _refuse_long(self, option: str, text: str) -> None:
        tokenizer = self.pipeline.tokenizer
        tokens, limit = len(tokenizer(text, truncation=False).input_ids) - 2, tokenizer.model_max_length - 2
        if tokens > limit:
            raise RivalError(f"{option} has {tokens} tokens and the text encoder reads {limit}; shorten it.")


def _levels(scheduler: Any) -> list[float]:
    """The noise levels of a scheduler, ascending, as the scheduler itself holds them."""
    if isinstance(scheduler, DDIMScheduler):
        alphas = torch.stack([*scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod]).double()
        return ((1 - alphas) / alphas).sqrt().flip(0).tolist()
    return scheduler.sigmas.flip(0).tolist()


def _step_parameters(scheduler: Any) -> Sequence[str]:
    return scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]
