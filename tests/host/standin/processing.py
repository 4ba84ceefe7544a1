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
from PIL import Image, ImageFilter, ImageOps

from tests.host.standin import modules, samplers
from tests.host.standin.state import opts, state

ORIGINAL, LATENT_NOISE, LATENT_NOTHING = 1, 2, 3
"""Values of `inpainting_fill`. The value 0 fills from the surroundings."""


class BatchNoise:
    """Noise from one generator for each image, so that an image does not depend on its batch."""

    def __init__(self, shape, seeds, device):
        self.shape = shape
        self.device = device
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def next(self):
        noise = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(noise).to(self.device)


@dataclass
class Processing:
    """The attributes of `p` that the extension reads in both tabs, with the API's defaults."""

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
    styles: list = field(default_factory=list)
    restore_faces: bool = False
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    overlay_images: list = field(default_factory=list)
    refiner_checkpoint: Any = None
    extra_network_data: dict = field(default_factory=dict)
    override_settings: dict = field(default_factory=dict)
    extra_generation_params: dict = field(default_factory=dict)
    comments: dict = field(default_factory=dict)
    denoising_strength: float = 0.75
    scripts: Any = None
    script_args: list = field(default_factory=list)
    seeds: list = None
    rng: Any = None
    is_hr_pass: bool = False
    user: str | None = None

    def comment(self, text):
        self.comments[text] = 1

    def get_token_merging_ratio(self):
        return 0.0

    def init(self):
        """Do nothing."""

    def close(self):
        """Do nothing."""

    def before_every_sampling(self):
        self.scripts.call("process_before_every_sampling", self)


@dataclass
class Txt2Img(Processing):
    """txt2img. It makes its sampler in `sample`, and starts from noise."""

    hr_extra_network_data: dict = None
    hr_sampler_name: str | None = None
    hr_second_pass_steps: int = 0
    enable_hr: bool = False

    def sample(self, conditioning, unconditional_conditioning):
        self.sampler = samplers.create_sampler(self.sampler_name, self.sd_model)
        x = self.rng.next()
        self.before_every_sampling()
        return self.sampler.sample(
            self, x, conditioning, unconditional_conditioning, image_conditioning=_nothing_to_see(x)
        )


@dataclass
class Img2Img(Processing):
    """img2img. It encodes its image and its mask in `init`."""

    init_images: list = field(default_factory=list)
    resize_mode: int = 0
    initial_noise_multiplier: float = 1.0
    image_mask: Any = None
    mask_blur: int = 4
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0
    paste_to: Any = None
    mask: Any = None
    nmask: Any = None
    mask_for_overlay: Any = None

    def init(self):
        self.sampler = samplers.create_sampler(self.sampler_name, self.sd_model)
        image = self.original = self.init_images[0].convert("RGB")
        if self.image_mask is not None:
            image = self._mask(image)
        image = image.resize((self.width, self.height))
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        pixels = pixels.repeat(self.batch_size, 1, 1, 1).to(self.sd_model.device)
        self.init_latent = self.sd_model.get_first_stage_encoding(self.sd_model.encode_first_stage(pixels))
        if self.mask is not None and self.inpainting_fill in (LATENT_NOISE, LATENT_NOTHING):
            seeds = range(self.seed, self.seed + self.batch_size)
            noise = BatchNoise(self.init_latent.shape[1:], seeds, self.sd_model.device).next()
            content = noise * self.nmask if self.inpainting_fill == LATENT_NOISE else 0
            self.init_latent = self.init_latent * self.mask + content

    def _mask(self, image):
        """Make the masks of the image and of the latent.

        Returns:
            The image at the output's size, with its masked part filled.
        """
        mask = self.image_mask.convert("L")
        if self.inpainting_mask_invert:
            mask = ImageOps.invert(mask)
        mask = mask.filter(ImageFilter.GaussianBlur(self.mask_blur))
        size = (self.width, self.height)
        if self.inpaint_full_res and not mask.getbbox():
            # the host goes on as without a mask
            return image
        if self.inpaint_full_res:
            self.mask_for_overlay = mask
            # the host widens the box to the output's aspect
            box = _padded(mask.getbbox(), self.inpaint_full_res_padding, mask.size)
            self.paste_to = (*box[:2], box[2] - box[0], box[3] - box[1])
            mask, image = mask.crop(box).resize(size), image.crop(box).resize(size)
        else:
            mask, image = mask.resize(size), image.resize(size)
            self.original = image
            self.mask_for_overlay = mask.point(lambda value: min(2 * value, 255))
        small = mask.resize((self.width // 8, self.height // 8))
        nmask = torch.from_numpy(np.around(np.asarray(small, dtype=np.float32) / 255)).repeat(4, 1, 1)
        self.nmask = nmask.to(self.sd_model.device)
        self.mask = 1 - self.nmask
        return image if self.inpainting_fill == ORIGINAL else modules.fill(image, mask)

    def sample(self, conditioning, unconditional_conditioning):
        noise = self.rng.next() * self.initial_noise_multiplier
        self.before_every_sampling()
        conditioning = (conditioning, unconditional_conditioning)
        x = self.sampler.sample_img2img(
            self, self.init_latent, noise, *conditioning, image_conditioning=_nothing_to_see(noise)
        )
        return x if self.mask is None else x * self.nmask + self.init_latent * self.mask

    def overlay(self, image):
        """Paste the original's pixels over the kept region."""
        if self.mask is None or self.overlay_images is None:
            return image
        if self.paste_to is not None:
            left, top, width, height = self.paste_to
            pasted = self.original.copy()
            pasted.paste(image.resize((width, height)), (left, top))
            image = pasted
        # the latent drops what lies beyond its last whole position
        kept, mask = (whole.crop((0, 0, *image.size)) for whole in (self.original, self.mask_for_overlay))
        return Image.composite(image, kept, mask)


class DecodedSamples(list):
    already_decoded = True


class ScriptRunner:
    """The scripts of a processing, each with its part of the arguments. Like the host, it only prints exceptions."""

    def __init__(self):
        self.scripts, self.alwayson_scripts, self.selectable_scripts = [], [], []

    def call(self, callback, p, *given):
        for script in self.alwayson_scripts:
            try:
                getattr(script, callback)(p, *given, *p.script_args[script.args_from : script.args_to])
            except Exception:
                traceback.print_exc()


def process_images(p):
    """Make images and one infotext for each, with the options that the request overrides."""
    before = {name: opts.data[name] for name in p.override_settings}
    opts.data.update(p.override_settings)
    try:
        return _process_images(p)
    finally:
        opts.data.update(before)


@torch.no_grad()
def _process_images(p):
    images, infotexts = [], []
    p.scripts.call("process", p)
    p.init()
    if state.job_count == -1:
        state.job_count = p.n_iter
    for batch in range(p.n_iter):
        if state.interrupted:
            break
        state.skipped = False
        p.seeds = [p.seed + batch * p.batch_size + index for index in range(p.batch_size)]
        p.rng = BatchNoise((4, p.height // 8, p.width // 8), p.seeds, p.sd_model.device)
        p.scripts.call("process_batch", p)
        # like the host's conditioning of a prompt with AND: a list of parts for each image, one part here
        cond = SimpleNamespace(
            batch=[[part] for part in p.sd_model.get_learned_conditioning([p.prompt] * p.batch_size)]
        )
        uncond = p.sd_model.get_learned_conditioning([p.negative_prompt] * p.batch_size)
        latents = p.sample(conditioning=cond, unconditional_conditioning=uncond)
        state.nextjob()
        is_decoded = getattr(latents, "already_decoded", False)
        decoded = torch.stack(latents) if is_decoded else p.sd_model.decode_first_stage(latents)
        pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).cpu()
        batch_images = [Image.fromarray(image.permute(1, 2, 0).byte().numpy()) for image in pixels]
        images += [p.overlay(image) for image in batch_images] if hasattr(p, "overlay") else batch_images
        infotexts += [_infotext(p, seed) for seed in p.seeds]
    processed = SimpleNamespace(images=images, infotexts=infotexts)
    p.scripts.call("postprocess", p, processed)
    return processed


def _padded(box, padding, size):
    left, top, right, bottom = box
    return max(left - padding, 0), max(top - padding, 0), min(right + padding, size[0]), min(bottom + padding, size[1])


def _nothing_to_see(latents):
    return latents.new_zeros(len(latents), 5, 1, 1)


def decode_base64_to_image(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def _infotext(p, seed):
    fields = {"Steps": p.steps, "Sampler": p.sampler_name, "Seed": seed, **p.extra_generation_params}
    return f"{p.prompt}\n" + ", ".join(f"{name}: {value}" for name, value in fields.items())
