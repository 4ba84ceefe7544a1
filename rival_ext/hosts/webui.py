"""AUTOMATIC1111's WebUI 1.10: its samplers, prompts and progress, as the core wants them.

Everything is hooked for the length of one sampling and on instances only: the sampler's own method and denoiser, the
UNet's layers. The host's own sampling runs in between, so previews, prompts, schedules and masks stay its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from modules import extra_networks, prompt_parser, sd_samplers_common, shared
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
    undisturbed,
    with_neighbours_defaults,
)
from rival_ext.hosts.webui_pictures import Pictures, encode
from rival_ext.hosts.webui_refusals import refuse
from rival_ext.hosts.webui_samplers import SamplerForm, sampler_form
from rival_ext.noise import levels_tensor
from rival_ext.prepare import Painting, Picture, prepare
from rival_ext.report import Report
from rival_ext.settings import FIELDS, PIXELS_PER_POSITION, Settings, parse_settings
from rival_ext.store import ChainStore
from rival_ext.ui.infotext import REPORT, REPORT_OF_HIRES, settings_to_infotext

STORE = ChainStore()
"""The chains of this server."""

GREY = (127, 127, 127)


def announce(p: Any, args: Sequence[Any]) -> None:
    """Writes the settings into the generation parameters before the host saves these; wrong ones it leaves to `arm`."""
    try:
        settings = read_arguments(p, args)
    except RivalError:
        return
    if settings.enabled:
        p.extra_generation_params.update(settings_to_infotext(settings))


def arm(p: Any, args: Sequence[Any]) -> None:
    """Has the sampling that follows guided, if the panel's arguments enable it.

    What is wrong is raised by the sampling: the host swallows exceptions of a script's callbacks.
    """
    kind = FromNoise if not hasattr(p, "init_images") else FromImage
    if getattr(p, "is_hr_pass", False):
        kind = HiresPass
    try:
        settings = read_arguments(p, args)
    except RivalError as error:
        GuidedSampling(p, error, kind)
        return
    if settings.enabled:
        GuidedSampling(p, settings, kind)


def read_arguments(p: Any, args: Sequence[Any]) -> Settings:
    """The settings of a request: one object with the fields' names, or the panel's values in its own order."""
    if args and isinstance(args[0], Mapping):
        values = args[0]
    else:
        values = dict(zip((field.name for field in FIELDS), args, strict=False))
    return with_neighbours_defaults(p, parse_settings(values), args)


class FromImage:
    """img2img: the host starts from an image that it adds noise to."""

    method = "sample_img2img"
    report = REPORT

    @staticmethod
    def levels(form: SamplerForm, p: Any, steps: int | None) -> list[float]:
        """Ascending: where the clean latent lies, then the noise levels that will be visited."""
        return form.img2img_levels(p, steps)

    @staticmethod
    def start(host: WebuiHost, guide: Guide, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The method's own latents, so that the sampling starts where the guide says."""
        p, form = host.p, host.form
        start = guide.start(p.seeds, (x.shape[2], x.shape[3])).to(x)
        clean = host.clean_latent(x)
        return clean, form.noise_between(p, host.steps, clean, start).to(noise) * p.initial_noise_multiplier


class FromNoise:
    """txt2img: the host starts from noise."""

    method = "sample"
    report = REPORT

    @staticmethod
    def levels(form: SamplerForm, p: Any, steps: int | None) -> list[float]:
        """As of `FromImage`."""
        return form.txt2img_levels(p, steps)

    @staticmethod
    def start(host: WebuiHost, guide: Guide, x: Tensor) -> tuple[Tensor]:
        """As of `FromImage`."""
        start = guide.start(host.p.seeds, (x.shape[2], x.shape[3]))
        return (host.form.noise_to(host.p, host.steps, start).to(x),)


class HiresPass(FromImage):
    """The second pass of hires fix: it goes on from the first pass's image and sees the exemplar again."""

    report = REPORT_OF_HIRES

    @staticmethod
    def start(host: WebuiHost, guide: Guide, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the host would start from."""
        return x, noise


class GuidedSampling:
    """Stands in for the sampler's own method once; `wanted` is what to do, or the error to raise instead."""

    def __init__(self, p: Any, wanted: Settings | RivalError, kind: type[FromImage] | type[FromNoise]):
        self.wanted = wanted
        self.kind = kind
        self.placed = ExitStack()
        armed = vars(p.sampler).get(kind.method)
        if isinstance(armed, GuidedSampling):
            # the sampling that it waited for never came
            armed.placed.close()
        self.original = getattr(p.sampler, kind.method)
        self.placed.enter_context(instance_attribute(p.sampler, kind.method, self))

    def __call__(self, p: Any, x: Tensor, *args: Any, steps: int | None = None, **kwargs: Any) -> Tensor:
        self.placed.close()
        with controlnet_leaves_on_error(p):
            if isinstance(self.wanted, RivalError):
                raise self.wanted
            return self._sample_guided(self.wanted, p, x, *args, steps=steps, **kwargs)

    def _sample_guided(
        self, settings: Settings, p: Any, x: Tensor, *args: Any, steps: int | None, **kwargs: Any
    ) -> Tensor:
        kind = self.kind
        sampler = p.sampler
        # the latents that the method starts from come first, then the prompts
        latents, prompts = (x, *args[:-2]), args[-2:]

        def sample(latents: tuple[Tensor, ...]) -> Tensor:
            return self.original(p, *latents, *prompts, steps=steps, **kwargs)

        refuse(p, settings)
        report = Report(settings.mode, settings.t_align, settings.t_early)
        host = WebuiHost(p, settings, kind.levels(sampler_form(sampler), p, steps), steps)
        try:
            with host.inversion_networks():
                guide = prepare(host, settings, STORE, report)
        except Interrupted as stopped:
            p.extra_generation_params[kind.report] = f"stopped in the inversion at step {stopped}"
            # the host's own sampler sees the same wish before its first step and ends as it always does
            return sample(latents)
        finally:
            shared.state.textinfo = None
        begun = time.perf_counter()
        with _guided_by(sampler, host.form, guide), references_apart(p), count_rows(host.unet) as rows:
            samples = sample(kind.start(host, guide, *latents))
        report.rows.generation = sum(rows)
        report.seconds.generation = time.perf_counter() - begun
        p.extra_generation_params[kind.report] = report.summary()
        print(f"RIVAL: {report.summary()}")
        return samples


class WebuiHost:
    """The loaded checkpoint, one batch of `p` and its exemplars (`rival_ext.prepare.Host`)."""

    def __init__(self, p: Any, settings: Settings, levels: list[float], steps: int | None):
        self.p = p
        self.settings = settings
        self.steps = steps
        self.unet = p.sd_model.model.diffusion_model
        self.form: SamplerForm = sampler_form(p.sampler)
        self.schedule = self.form.schedule
        self._levels = levels
        self._refuse_no_step()
        self._networks_are_aside = False
        self._unseen: dict[tuple[int, int], Tensor] = {}
        self.pictures_of_request = Pictures(p, settings)
        with self.inversion_networks():
            self._prompt_schedules = self._encode_prompts(settings)

    def noise_levels(self) -> Tensor:
        return levels_tensor(self._levels)

    def pictures(self) -> Sequence[Picture]:
        return self.pictures_of_request.exemplars

    def painting(self) -> Painting | None:
        return self.pictures_of_request.painting

    def predict_noise(self, latent: Tensor, noise_level: float) -> Tensor:
        steps_before = sum(level > noise_level * (1 + 1e-4) for level in self._levels)
        rows = len(self._prompt_schedules)
        conditioning = {
            "c_crossattn": [prompt_parser.reconstruct_cond_batch(self._prompt_schedules, steps_before)],
            "c_concat": [self._image_conditioning(latent).expand(rows, -1, -1, -1)],
        }
        latent = (latent * self.form.scale(noise_level)).expand(rows, -1, -1, -1)
        with self.inversion_networks(), undisturbed(self.unet):
            # the last row's prompt is the exemplar's own
            return self.form.predict_noise(latent, noise_level, conditioning)[-1:]

    def clean_latent(self, x: Tensor) -> Tensor:
        """What img2img may add its noise to in place of `x`, which the host has drawn from the VAE's posterior."""
        pictures = self.pictures_of_request
        latent = pictures.exemplars[0].latent if pictures.painting is None else pictures.own
        return x if latent is None or latent.shape[2:] != x.shape[2:] else latent.expand_as(x).to(x)

    def progress(self, done: int, total: int) -> None:
        state = shared.state
        if state.interrupted or state.skipped:
            raise Interrupted(f"{done} of {total}")
        state.sampling_steps, state.sampling_step = total, done
        state.textinfo = f"Inverting {done}/{total}"

    def fingerprint(self) -> Iterable[Tensor | object]:
        return fingerprint(self.p, self._prompt_schedules, {} if self._networks_are_aside else self._networks)

    def memory_budget(self) -> float:
        return shared.opts.rival_memory_mb * 2**20

    @contextmanager
    def inversion_networks(self) -> Iterator[None]:
        """The prompt's LoRAs act on the exemplar, or are put aside meanwhile, as the user wishes."""
        if not self.settings.plain_inversion or self._networks_are_aside:
            yield
            return
        extra_networks.activate(self.p, {})
        self._networks_are_aside = True
        try:
            yield
        finally:
            self._networks_are_aside = False
            extra_networks.activate(self.p, self._networks)

    @property
    def _networks(self) -> Any:
        p = self.p
        return (p.hr_extra_network_data if getattr(p, "is_hr_pass", False) else p.extra_network_data) or {}

    def _image_conditioning(self, latent: Tensor) -> Tensor:
        """What a checkpoint for inpainting sees beside the latent: for an exemplar, that all of it is to be made."""
        if self.p.sd_model.model.conditioning_key not in ("hybrid", "concat"):
            return latent.new_zeros(1, 5, 1, 1)
        size = (latent.shape[3] * PIXELS_PER_POSITION, latent.shape[2] * PIXELS_PER_POSITION)
        if size not in self._unseen:
            # encoded once, not at every evaluation
            grey = encode(self.p.sd_model, Image.new("RGB", size, GREY)).to(latent)
            self._unseen[size] = torch.nn.functional.pad(grey, (0, 0, 0, 0, 1, 0), value=1.0)
        return self._unseen[size]

    def _encode_prompts(self, settings: Settings) -> list[Any]:
        """The schedule of each prompt that the exemplar is evaluated with, in the order of the guide's halves."""
        p = self.p
        prompts = [settings.exemplar_prompt]
        if settings.exact and settings.exemplar_prompt:
            prompts.insert(UNGUIDED, "")
        texts = prompt_parser.SdConditioning(prompts, width=p.width, height=p.height)
        schedules = prompt_parser.get_learned_conditioning(p.sd_model, texts, self.steps or p.steps)
        if len({entry.cond.shape for schedule in schedules for entry in schedule}) > 1:
            raise RivalError("exact guidance works with an exemplar_prompt of up to 75 tokens; shorten it.")
        return schedules

    def _refuse_no_step(self) -> None:
        if len(self._levels) < 2:
            raise RivalError(
                f"denoising strength {self.p.denoising_strength} leaves no step at {self.p.steps} sampling steps; "
                "raise one of them (RIVAL is meant for denoising strength 1)."
            )


@contextmanager
def _guided_by(sampler: Any, form: SamplerForm, guide: Guide) -> Iterator[None]:
    """The guide stands around every call of the host's guided denoiser."""
    denoiser = sampler.model_wrap_cfg
    host_forward = denoiser.forward
    checkpoint = shared.sd_model.sd_checkpoint_info

    def forward(x: Tensor, sigma: Tensor, uncond: Any, cond: Any, *args: Any, **kwargs: Any) -> Tensor:
        if sd_samplers_common.apply_refiner(denoiser, sigma):
            # as the host itself does where it switches, only before anything is injected
            cond, uncond = (denoiser.sampler.sampler_extra_args[name] for name in ("cond", "uncond"))
        if shared.sd_model.sd_checkpoint_info is not checkpoint:
            guide.report.note("injection ended with the switch to the refiner, whose features are others")
            return host_forward(x, sigma, uncond, cond, *args, **kwargs)
        level = form.noise_level(float(sigma.max()))
        latent = x / form.scale(level)
        corrected = guide.corrected_latent(latent, level)
        if corrected is not latent:
            # in place: the sampler itself goes on from the corrected latent
            x.copy_(corrected * form.scale(level))
        output = predicted = x

        def denoise() -> Tensor:
            nonlocal output, predicted
            with ExitStack() as stack:
                if guide.canvas:
                    # what the host blends in, so that its own masks and soft inpainting keep the chain
                    kept = form.kept(guide.canvas.chain, level).expand_as(x).to(x)
                    stack.enter_context(instance_attribute(denoiser, "init_latent", kept))
                output = host_forward(x, sigma, uncond, cond, *args, **kwargs)
            predicted = form.noise_of(output, x, level)
            return predicted

        # the host evaluates the prompts' rows first, one for each part of an AND, then those of the negative prompts
        halves = [GUIDED for parts in cond.batch for _ in parts] + [UNGUIDED] * len(x)
        noise = guide.guided_noise(level, denoise, halves)
        return output if noise is predicted else form.output_of(noise, x, level).to(x)

    with instance_attribute(denoiser, "forward", forward):
        yield
