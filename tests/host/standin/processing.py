"""img2img and txt2img from a request's payload: batches, seeds, script callbacks whose exceptions are swallowed."""

from __future__ import annotations

import base64
import io
import traceback
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.host.standin import samplers
from tests.host.standin.state import state


class BatchNoise:
    """One generator an image, so that an image does not depend on its batch."""

    def __init__(self, shape, seeds):
        self.shape = shape
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def next(self):
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])


@dataclass
class Processing:
    """What both tabs share of `p`: the attributes that the extension reads, with the API's defaults."""

    sd_model: Any
    prompt: str = ""
    negative_prompt: str = ""
    seed: int = 1
    subseed_strength: float = 0
    seed_resize_from_w: int = 0
    seed_resize_from_h: int = 0
    sampler_name: str = "Euler"
    scheduler: str = "Automatic"
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 20
    cfg_scale: float = 7.0
    width: int = 512
    height: int = 512
    tiling: bool = False
    refiner_checkpoint: Any = None
    extra_network_data: dict = field(default_factory=dict)
    override_settings: dict = field(default_factory=dict)
    extra_generation_params: dict = field(default_factory=dict)

    def get_token_merging_ratio(self):
        return 0.0

    def init(self):
        """Nothing to prepare."""

    def before_every_sampling(self):
        _call(self.scripts, "process_before_every_sampling", self, self.script_args)


@dataclass
class Txt2Img(Processing):
    """It makes its sampler in `sample`, from noise."""

    def sample(self, conditioning, unconditional_conditioning):
        self.sampler = samplers.create_sampler(self.sampler_name, self.sd_model)
        x = self.rng.next()
        self.before_every_sampling()
        return self.sampler.sample(
            self, x, conditioning, unconditional_conditioning, image_conditioning=_nothing_to_see(x)
        )


@dataclass
class Img2Img(Processing):
    """It encodes its image, and a mask with it, in `init`."""

    init_images: list = field(default_factory=list)
    denoising_strength: float = 0.75
    resize_mode: int = 0
    initial_noise_multiplier: float = 1.0
    image_mask: Any = None
    inpainting_fill: int = 0
    paste_to: Any = None
    mask: Any = None
    nmask: Any = None

    def init(self):
        self.sampler = samplers.create_sampler(self.sampler_name, self.sd_model)
        image = self.init_images[0].convert("RGB").resize((self.width, self.height))
        if self.image_mask is not None:
            self.mask_for_overlay = self.image_mask.convert("L").resize(image.size)
            small = self.mask_for_overlay.resize((self.width // 8, self.height // 8))
            self.nmask = torch.from_numpy(np.around(np.asarray(small, dtype=np.float32) / 255)).repeat(4, 1, 1)
            self.mask = 1 - self.nmask
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        pixels = pixels.repeat(self.batch_size, 1, 1, 1)
        self.init_latent = self.sd_model.get_first_stage_encoding(self.sd_model.encode_first_stage(pixels))
        self.image = image

    def sample(self, conditioning, unconditional_conditioning):
        noise = self.rng.next() * self.initial_noise_multiplier
        self.before_every_sampling()
        conditioning = (conditioning, unconditional_conditioning)
        x = self.sampler.sample_img2img(
            self, self.init_latent, noise, *conditioning, image_conditioning=_nothing_to_see(noise)
        )
        return x if self.mask is None else x * self.nmask + self.init_latent * self.mask

    def overlay(self, picture):
        """The kept region's own pixels."""
        return picture if self.mask is None else Image.composite(picture, self.image, self.mask_for_overlay)


@torch.no_grad()
def process_images(p, scripts, script_args):
    """Images and one infotext each."""
    pictures, infotexts = [], []
    p.scripts, p.script_args = scripts, script_args
    p.init()
    for batch in range(p.n_iter):
        if state.interrupted:
            break
        state.skipped = False
        p.seeds = [p.seed + batch * p.batch_size + index for index in range(p.batch_size)]
        p.rng = BatchNoise((4, p.height // 8, p.width // 8), p.seeds)
        _call(scripts, "process_batch", p, script_args)
        # like the host's conditioning of a prompt with AND: for each image a list of its parts, one here
        cond = SimpleNamespace(
            batch=[[part] for part in p.sd_model.get_learned_conditioning([p.prompt] * p.batch_size)]
        )
        uncond = p.sd_model.get_learned_conditioning([p.negative_prompt] * p.batch_size)
        latents = p.sample(conditioning=cond, unconditional_conditioning=uncond)
        pixels = (p.sd_model.decode_first_stage(latents).clamp(-1, 1) + 1) * 127.5
        batch_pictures = [Image.fromarray(image.permute(1, 2, 0).byte().numpy()) for image in pixels]
        pictures += [p.overlay(picture) for picture in batch_pictures] if hasattr(p, "overlay") else batch_pictures
        infotexts += [_infotext(p, seed) for seed in p.seeds]
    return pictures, infotexts


def _call(scripts, callback, p, script_args):
    """A callback of every script; like the host, it reports an exception and goes on."""
    for script in scripts:
        try:
            getattr(script, callback)(p, *script_args)
        except Exception:
            traceback.print_exc()


def _nothing_to_see(latents):
    return latents.new_zeros(len(latents), 5, 1, 1)


def decode_base64_to_image(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def _infotext(p, seed):
    fields = {"Steps": p.steps, "Sampler": p.sampler_name, "Seed": seed, **p.extra_generation_params}
    return f"{p.prompt}\n" + ", ".join(f"{name}: {value}" for name, value in fields.items())
