"""AUTOMATIC1111's WebUI 1.10: its samplers, prompts and progress, as the core wants them.

Everything is hooked for the length of one `p.sample` and on instances only: the sampler's start and denoiser, the
UNet's layers. The host's own sampling runs in between, so previews, prompts, schedules and masks stay its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from modules import devices, extra_networks, images, prompt_parser, sd_samplers_common, shared
from PIL import Image
from torch import Tensor

from rival_ext.attention import count_rows
from rival_ext.errors import Interrupted, RivalError
from rival_ext.guide import GUIDED, UNGUIDED, Guide
from rival_ext.hosts.webui_fingerprint import fingerprint
from rival_ext.hosts.webui_neighbours import (
    controlnet_leaves_on_error,
    instance_attribute,
    references_apart,
    reorders_rows,
    sampler_name,
    undisturbed,
    with_neighbours_defaults,
)
from rival_ext.hosts.webui_samplers import SAMPLERS, SamplerForm, sampler_form
from rival_ext.noise import levels_tensor
from rival_ext.prepare import prepare
from rival_ext.report import Report
from rival_ext.settings import FIELDS, Settings, parse_settings
from rival_ext.store import ChainStore
from rival_ext.ui.infotext import REPORT, settings_to_infotext

LATENT_UPSCALE = 3
"""`resize_mode` of "Just resize (latent upscale)"."""

STORE = ChainStore()
"""The chains of this server."""


def arm(p: Any, args: Sequence[Any]) -> None:
    """Has the next `p.sample` guided, if the panel's arguments enable it; called before each batch.

    What is wrong with the arguments is raised by `p.sample`: the host swallows exceptions of a script's callbacks.
    """
    disarm(p)
    try:
        settings = with_neighbours_defaults(p, read_arguments(args), args)
    except RivalError as error:
        p.sample = GuidedSample(p, error)
        return
    if settings.enabled:
        p.extra_generation_params.update(settings_to_infotext(settings))
        p.sample = GuidedSample(p, settings)


def disarm(p: Any) -> None:
    """Gives `p.sample` back as it was found."""
    armed = vars(p).get("sample")
    if not isinstance(armed, GuidedSample):
        return
    if armed.replaced is None:
        del p.sample
    else:
        p.sample = armed.replaced


def read_arguments(args: Sequence[Any]) -> Settings:
    """The settings of a request: one object with the fields' names, or the panel's values in its own order."""
    if args and isinstance(args[0], Mapping):
        return parse_settings(args[0])
    return parse_settings(dict(zip((field.name for field in FIELDS), args, strict=False)))


class GuidedSample:
    """Stands in for `p.sample` once; `wanted` is what to do, or the error to raise instead."""

    def __init__(self, p: Any, wanted: Settings | RivalError):
        self.p = p
        self.wanted = wanted
        self.replaced = vars(p).get("sample")
        self.original = p.sample

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        disarm(self.p)
        with controlnet_leaves_on_error(self.p):
            if isinstance(self.wanted, RivalError):
                raise self.wanted
            return _sample_guided(self.p, self.wanted, lambda: self.original(*args, **kwargs))


def _sample_guided(p: Any, settings: Settings, sample: Callable[[], Tensor]) -> Tensor:
    _refuse(p, settings)
    report = Report(settings.mode, settings.t_align, settings.t_early)
    host = WebuiHost(p, settings)
    try:
        guide = prepare(host, settings, STORE, report)
    except Interrupted as stopped:
        p.extra_generation_params[REPORT] = f"stopped in the inversion at step {stopped}"
        # the host's own sampler sees the same wish before its first step and ends as it always does
        return sample()
    finally:
        shared.state.textinfo = None
    begun = time.perf_counter()
    start = guide.chain.start(p.seeds, settings.start == "permuted")
    with (
        _starting_from(p.sampler, host.form, host.exemplar_latent(), start),
        _guided_by(p.sampler, host.form, guide),
        references_apart(p),
        count_rows(host.unet) as rows,
    ):
        samples = sample()
    report.rows.generation = sum(rows)
    report.seconds.generation = time.perf_counter() - begun
    p.extra_generation_params[REPORT] = report.summary()
    print(f"RIVAL: {report.summary()}")
    return samples


class WebuiHost:
    """The loaded checkpoint, one batch of `p` and one exemplar (`rival_ext.prepare.Host`)."""

    def __init__(self, p: Any, settings: Settings):
        self.p = p
        self.unet = p.sd_model.model.diffusion_model
        self.form: SamplerForm = sampler_form(p.sampler)
        self.schedule = self.form.schedule
        self._levels = self._read_levels()
        self._prompt_schedules = self._encode_prompts(settings)
        self._latent = self._encode(settings.exemplar or p.init_images[0])

    def noise_levels(self) -> Tensor:
        return levels_tensor(self._levels)

    def exemplar_latent(self) -> Tensor:
        return self._latent

    def predict_noise(self, latent: Tensor, noise_level: float) -> Tensor:
        steps_before = sum(level > noise_level * (1 + 1e-4) for level in self._levels)
        rows = len(self._prompt_schedules)
        conditioning = {
            "c_crossattn": [prompt_parser.reconstruct_cond_batch(self._prompt_schedules, steps_before)],
            "c_concat": [self.p.image_conditioning[:1].expand(rows, -1, -1, -1)],
        }
        latent = (latent * self.form.scale(noise_level)).expand(rows, -1, -1, -1)
        with undisturbed(self.unet):
            # the last row's prompt is the exemplar's own
            return self.form.predict_noise(latent, noise_level, conditioning)[-1:]

    def progress(self, done: int, total: int) -> None:
        state = shared.state
        if state.interrupted or state.skipped:
            raise Interrupted(f"{done} of {total}")
        state.sampling_steps, state.sampling_step = total, done
        state.textinfo = f"Inverting {done}/{total}"

    def fingerprint(self) -> Iterable[Tensor | object]:
        return fingerprint(self.p, self._prompt_schedules)

    def memory_budget(self) -> float:
        return shared.opts.rival_memory_mb * 2**20

    def _encode_prompts(self, settings: Settings) -> list[Any]:
        """The schedule of each prompt that the exemplar is evaluated with, in the order of the guide's halves."""
        p = self.p
        prompts = [settings.exemplar_prompt]
        if settings.exact and settings.exemplar_prompt:
            prompts.insert(UNGUIDED, "")
        texts = prompt_parser.SdConditioning(prompts, width=p.width, height=p.height)
        schedules = prompt_parser.get_learned_conditioning(p.sd_model, texts, p.steps)
        if len({entry.cond.shape for schedule in schedules for entry in schedule}) > 1:
            raise RivalError("exact guidance works with an exemplar_prompt of up to 75 tokens; shorten it.")
        return schedules

    def _read_levels(self) -> list[float]:
        levels = self.form.noise_levels(self.p)
        if len(levels) < 2:
            raise RivalError(
                f"denoising strength {self.p.denoising_strength} leaves no step at {self.p.steps} sampling steps; "
                "raise one of them (RIVAL is meant for denoising strength 1)."
            )
        return levels

    def _encode(self, exemplar: Image.Image) -> Tensor:
        """The exemplar as the host would encode it, but with the mean of the VAE's posterior: nothing is drawn."""
        p, opts = self.p, shared.opts
        image = images.flatten(exemplar, opts.img2img_background_color)
        if p.resize_mode != LATENT_UPSCALE:
            image = images.resize_image(p.resize_mode, image, p.width, p.height)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]
        pixels = pixels.to(shared.device, dtype=devices.dtype_vae)
        if opts.sd_vae_encode_method == "Full":
            p.sd_model.first_stage_model.to(devices.dtype_vae)
            posterior = p.sd_model.encode_first_stage(pixels * 2 - 1)
            latent = p.sd_model.get_first_stage_encoding(posterior.mode())
        else:
            approximation = sd_samplers_common.approximation_indexes[opts.sd_vae_encode_method]
            latent = sd_samplers_common.images_tensor_to_samples(pixels, approximation, p.sd_model)
        if p.resize_mode == LATENT_UPSCALE:
            latent = torch.nn.functional.interpolate(latent, size=(p.height // 8, p.width // 8), mode="bilinear")
        return latent.float()


@contextmanager
def _starting_from(sampler: Any, form: SamplerForm, clean: Tensor, start: Tensor) -> Iterator[None]:
    """The host's sampling starts from `start`, variance-exploding: it is handed the noise that leads there."""
    host_sample = sampler.sample_img2img

    def sample_img2img(p: Any, x: Tensor, noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        latent = clean.expand_as(start)
        noise = form.noise_between(p, latent, start).to(noise) * p.initial_noise_multiplier
        return host_sample(p, latent.to(x), noise, *args, **kwargs)

    with instance_attribute(sampler, "sample_img2img", sample_img2img):
        yield


@contextmanager
def _guided_by(sampler: Any, form: SamplerForm, guide: Guide) -> Iterator[None]:
    """The guide stands around every call of the host's guided denoiser."""
    denoiser = sampler.model_wrap_cfg
    host_forward = denoiser.forward

    def forward(x: Tensor, sigma: Tensor, uncond: Any, cond: Any, *args: Any, **kwargs: Any) -> Tensor:
        level = form.noise_level(float(sigma.max()))
        latent = x / form.scale(level)
        aligned = guide.align_latent(latent, level)
        if aligned is not latent:
            # in place: the sampler itself goes on from the aligned latent
            x.copy_(aligned * form.scale(level))
        output = predicted = x

        def denoise() -> Tensor:
            nonlocal output, predicted
            output = host_forward(x, sigma, uncond, cond, *args, **kwargs)
            predicted = form.noise_of(output, x, level)
            return predicted

        # the host evaluates the prompts' rows first, one for each part of an AND, then those of the negative prompts
        halves = [GUIDED for parts in cond.batch for _ in parts] + [UNGUIDED] * len(x)
        noise = guide.guided_noise(level, denoise, halves)
        return output if noise is predicted else form.output_of(noise, x, level).to(x)

    with instance_attribute(denoiser, "forward", forward):
        yield


def _refuse(p: Any, settings: Settings) -> None:
    """Raises RivalError for what cannot be honoured, before anything is sampled."""
    model = p.sd_model
    first = p.init_images[0]
    refusals = {
        f"sampler {sampler_name(p)} is not supported; choose one of {', '.join(SAMPLERS)}.": (
            sampler_name(p) not in SAMPLERS
        ),
        "exact guidance is not supported beside ControlNet's reference units; switch one of the two off.": (
            settings.exact and bool(settings.exemplar_prompt) and reorders_rows(p)
        ),
        "this checkpoint is not a Stable Diffusion 1.x text-to-image one; load one.": (
            not getattr(model, "is_sd1", False)
            or model.model.conditioning_key != "crossattn"
            or model.cond_stage_key == "edit"
        ),
        "inpainting is not supported; remove the mask or switch RIVAL off.": p.image_mask is not None,
        "one input image at a time; send each exemplar in a request of its own, or set Batch size to 1 (SD upscale).": (
            any(image is not first and image.tobytes() != first.tobytes() for image in p.init_images)
        ),
        f"width and height must be multiples of 8, not {p.width}x{p.height}.": p.width % 8 or p.height % 8,
        "a variation seed is not supported; set Variation strength to 0.": p.subseed_strength > 0,
        "resizing the seed is not supported; set Resize seed from width and height to 0.": (
            p.seed_resize_from_w > 0 or p.seed_resize_from_h > 0
        ),
        "the refiner is not supported; switch it off.": p.refiner_checkpoint not in (None, "", "None", "none"),
        "exemplar_prompt must not hold <...> tags; LoRAs of the prompt take part in the inversion already.": (
            bool(extra_networks.parse_prompt(settings.exemplar_prompt)[1])
        ),
    }
    for sentence, holds in refusals.items():
        if holds:
            raise RivalError(sentence)
