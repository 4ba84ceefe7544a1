"""The WebUIs of AUTOMATIC1111's kind: their samplers, prompts and progress, as the core wants them.

Everything is hooked for the length of one sampling and on instances only: the sampler's own method and denoiser, the
UNet's layers. The host's own sampling runs in between, so previews, prompts, schedules and masks stay its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from modules import sd_samplers_common, sd_samplers_kdiffusion, sd_samplers_timesteps, shared
from torch import Tensor

from rival_ext.attention import count_rows
from rival_ext.errors import Interrupted, RivalError
from rival_ext.guide import GUIDED, UNGUIDED, Guide
from rival_ext.hosts.webui_conditioning import ExemplarConditioning
from rival_ext.hosts.webui_fingerprint import fingerprint
from rival_ext.hosts.webui_foresight import is_stored, outline_of, remember
from rival_ext.hosts.webui_neighbours import (
    instance_attribute,
    neighbours_leave,
    samples_by_itself,
    with_neighbours_defaults,
)
from rival_ext.hosts.webui_pictures import Pictures
from rival_ext.hosts.webui_platform import LoadedModel, errors_on_the_page, loaded_model
from rival_ext.hosts.webui_progress import OneJob
from rival_ext.hosts.webui_refusals import refuse
from rival_ext.hosts.webui_rehearsal import Rehearsal, rehearse
from rival_ext.hosts.webui_samplers import SamplerForm, levels_of
from rival_ext.noise import SAME_LEVEL, levels_tensor
from rival_ext.prepare import Painting, Picture, prepare
from rival_ext.report import Report
from rival_ext.settings import FIELDS, Settings, parse_settings, stood_for
from rival_ext.store import ChainStore
from rival_ext.ui.axes import cell_of
from rival_ext.ui.infotext import REPORT, REPORT_OF_HIRES, settings_to_infotext
from rival_ext.ui.strokes import with_strokes

__all__ = ["STORE", "announce", "arm", "is_stored"]

STORE = ChainStore()
"""The chains of this server, as those see them who have not logged in, such as the API's clients."""

Sample = Callable[[Sequence[Tensor]], Tensor]
"""(latents that the host's method starts from) -> final latents."""


def announce(p: Any, args: Sequence[Any]) -> None:
    """Writes the settings into the generation parameters before the host saves these; wrong ones it leaves to `arm`."""
    try:
        settings = read_arguments(p, args)
    except RivalError:
        return
    if settings.enabled:
        p.extra_generation_params.update(settings_to_infotext(settings))
        if samples_by_itself(p):
            # there is no other call of the host's to raise in: `arm` is never reached
            p.sample = partial(_refuse_sampling, p)


def _refuse_sampling(p: Any, **_: Any) -> None:
    with neighbours_leave(p):
        raise RivalError("DemoFusion samples by itself, and RIVAL guides the WebUI's own sampling; switch one off.")


def arm(p: Any, args: Sequence[Any]) -> None:
    """Has the sampling that follows guided, if the panel's arguments enable it.

    What is wrong is raised by the sampling: the host swallows exceptions of a script's callbacks.
    """
    try:
        settings = read_arguments(p, args)
    except RivalError as error:
        GuidedSampling(p, error)
        return
    if settings.enabled:
        GuidedSampling(p, settings)


def read_arguments(p: Any, args: Sequence[Any]) -> Settings:
    """The settings of a request: one object with the fields' names, or the panel's values in its own order.

    In an X/Y/Z plot what the cell's axes stand for goes before these, and what they say before that.
    """
    plotted = cell_of(p)
    asked = {**stood_for(plotted), **plotted}
    if args and isinstance(args[0], Mapping):
        asked = {**args[0], **asked}
        values = asked
    else:
        values = dict(zip((field.name for field in FIELDS), args, strict=False))
        values = {**with_strokes(values, args[len(FIELDS) :]), **asked}
    return with_neighbours_defaults(p, parse_settings(values), asked)


class FromImage:
    """img2img: the host starts from an image that it adds noise to."""

    method = "sample_img2img"
    report = REPORT

    @staticmethod
    def start(host: WebuiHost, guide: Guide, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The method's own latents, so that the sampling starts where the guide says."""
        of_image, of_noise = host.gains
        clean = host.clean_latent(x)
        noise = ((host.start(guide, x) - of_image * clean) / of_noise).to(noise)
        return clean, noise * host.p.initial_noise_multiplier


class FromNoise:
    """txt2img: the host starts from noise."""

    method = "sample"
    report = REPORT

    @staticmethod
    def start(host: WebuiHost, guide: Guide, x: Tensor) -> tuple[Tensor]:
        """As of `FromImage`."""
        (of_noise,) = host.gains
        return (host.start(guide, x) / of_noise,)


class HiresPass(FromImage):
    """The second pass of hires fix: it goes on from the first pass's image and sees the exemplar again."""

    report = REPORT_OF_HIRES

    @staticmethod
    def start(host: WebuiHost, guide: Guide, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the host would start from."""
        return x, noise


def _kind_of(p: Any) -> type[FromImage] | type[FromNoise]:
    if getattr(p, "is_hr_pass", False):
        return HiresPass
    return FromImage if hasattr(p, "init_images") else FromNoise


class GuidedSampling:
    """Stands in for the sampler's own method once; `wanted` is what to do, or the error to raise instead."""

    def __init__(self, p: Any, wanted: Settings | RivalError):
        self.wanted = wanted
        self.kind = kind = _kind_of(p)
        self.placed = ExitStack()
        armed = vars(p.sampler).get(kind.method)
        if isinstance(armed, GuidedSampling):
            # the sampling that it waited for never came
            armed.placed.close()
        self.original = getattr(p.sampler, kind.method)
        self.placed.enter_context(instance_attribute(p.sampler, kind.method, self))

    def __call__(self, p: Any, x: Tensor, *args: Any, steps: int | None = None, **kwargs: Any) -> Tensor:
        self.placed.close()
        with errors_on_the_page(), neighbours_leave(p):
            if isinstance(self.wanted, RivalError):
                raise self.wanted
            return self._sample_guided(self.wanted, p, x, *args, steps=steps, **kwargs)

    def _sample_guided(
        self, settings: Settings, p: Any, x: Tensor, *args: Any, steps: int | None, **kwargs: Any
    ) -> Tensor:
        # the latents that the method starts from come first, then the prompts
        latents, prompts = (x, *args[:-2]), args[-2:]

        def sample(latents: Sequence[Tensor]) -> Tensor:
            return self.original(p, *latents, *prompts, steps=steps, **kwargs)

        model = loaded_model(p)
        refuse(p, settings, model)
        report = Report(settings.mode, settings.t_align, settings.t_early)
        # before the inversion: options that are set meanwhile are those of the next run
        outline = outline_of(p, settings)
        host = WebuiHost(p, settings, model, rehearse(p, sample, latents), steps or p.steps)
        with host.job:
            try:
                with host.inversion_networks(), model.inverting():
                    guide = prepare(host, settings, STORE.of(p.user), report)
            except Interrupted as stopped:
                p.extra_generation_params[self.kind.report] = f"stopped in the inversion at step {stopped}"
                host.job.begin_sampling()
                # the host's own sampler sees the same wish before its first step and ends as it always does
                return sample(latents)
            remember(outline, [exemplar.chain for exemplar in guide.exemplars])
            host.job.begin_sampling()
            return self.finish(host, guide, sample, latents)

    def finish(self, host: WebuiHost, guide: Guide, sample: Sample, latents: Sequence[Tensor]) -> Tensor:
        """What follows the inversion: the host's own `sample`, from the guide's start and with the guide beside it."""
        p, report = host.p, guide.report
        begun = time.perf_counter()
        for note in host.model.notes():
            report.note(note)
        with host.model.guided(), _guided_by(host, guide, latents[0].shape[2:]), count_rows(host.unet) as rows:
            samples = sample(self.kind.start(host, guide, *latents))
        report.rows.generation = sum(rows)
        report.seconds.generation = time.perf_counter() - begun
        p.extra_generation_params[self.kind.report] = report.summary()
        # shown under the gallery
        p.comment("\n".join(report.lines()))
        print(f"RIVAL: {report.summary()}")
        return samples


class WebuiHost:
    """The loaded checkpoint, one batch of `p` and its exemplars (`rival_ext.prepare.Host`)."""

    def __init__(self, p: Any, settings: Settings, model: LoadedModel, rehearsal: Rehearsal, steps: int):
        self.p = p
        self.settings = settings
        self.model = model
        self.unet, self.layers = model.unet, model.layers
        self.gains = rehearsal.gains
        self._adds_noise = rehearsal.adds_noise
        self.form = _form_of(p, model, rehearsal)
        self.schedule = self.form.schedule
        self._levels = levels_of(self.form)
        self._refuse_no_step()
        self._networks_are_aside = False
        self.pictures_of_request = Pictures(p, settings, model)
        self.conditioning = ExemplarConditioning(p, settings, p.sampler.config.total_steps(steps), model)
        with self.inversion_networks():
            self._prompt_schedules = self.conditioning.schedules(self.pictures_of_request.exemplars[0].latent.shape)
        # a step evaluates the prompts' row and the negative prompts' for each image
        rows = len(self.form.visits) * 2 * len(p.seeds)
        self.job = OneJob(p.sampler, rows // self.conditioning.rows)

    def noise_levels(self) -> Tensor:
        return levels_tensor(self._levels)

    def is_predictable(self) -> bool:
        return self.form.is_predictable

    def adds_noise(self) -> bool:
        return self._adds_noise

    def pictures(self) -> Sequence[Picture]:
        return self.pictures_of_request.exemplars

    def painting(self) -> Painting | None:
        return self.pictures_of_request.painting

    def predict_noise(self, latent: Tensor, noise_level: float) -> Tensor:
        visits = self.form.visits
        reached = (call for call, visited in enumerate(visits) if visited <= noise_level * (1 + SAME_LEVEL))
        with self.inversion_networks():
            texts, image = self.conditioning.at(latent, next(reached, len(visits)))
            latent = latent.expand(self.conditioning.rows, -1, -1, -1)
            # the last row's prompt is the exemplar's own
            return self.model.predict_noise(self.form, latent, noise_level, texts, image)[-1:]

    def start(self, guide: Guide, x: Tensor) -> Tensor:
        """Where the sampler's function shall start, in the sampler's form; `x` has its shape."""
        level = self.form.start_level
        return (guide.start(self.p.seeds, (x.shape[2], x.shape[3]), level) * self.form.scale(level)).to(x)

    def clean_latent(self, x: Tensor) -> Tensor:
        """What img2img may add its noise to in place of `x`, which the host has drawn from the VAE's posterior."""
        pictures = self.pictures_of_request
        latent = pictures.exemplars[0].latent if pictures.painting is None else pictures.own
        return x if latent is None or latent.shape[2:] != x.shape[2:] else latent.expand_as(x).to(x)

    def progress(self, done: int, total: int) -> None:
        self.job.show_inversion(done, total)

    def preview(self, latent: Tensor) -> None:
        sd_samplers_common.store_latent(latent)

    def fingerprint(self) -> Iterable[Tensor | object]:
        return fingerprint(
            self.p, self.model, self._prompt_schedules, {} if self._networks_are_aside else self._networks
        )

    def memory_budget(self) -> float:
        return shared.opts.rival_memory_mb * 2**20

    @contextmanager
    def inversion_networks(self) -> Iterator[None]:
        """The prompt's LoRAs act on the exemplar, or are put aside meanwhile, as the user wishes."""
        if not self.settings.plain_inversion or self._networks_are_aside:
            yield
            return
        with self.model.without_networks():
            self._networks_are_aside = True
            try:
                yield
            finally:
                self._networks_are_aside = False

    @property
    def _networks(self) -> Any:
        p = self.p
        return (p.hr_extra_network_data if getattr(p, "is_hr_pass", False) else p.extra_network_data) or {}

    def _refuse_no_step(self) -> None:
        if len(self._levels) < 2:
            raise RivalError(
                f"denoising strength {self.p.denoising_strength} leaves no step at {self.p.steps} sampling steps; "
                "raise one of them (RIVAL is meant for denoising strength 1)."
            )


def _form_of(p: Any, model: LoadedModel, rehearsal: Rehearsal) -> SamplerForm:
    """The translation for the sampler of `p`; raises RivalError for one of neither family."""
    if isinstance(p.sampler, sd_samplers_timesteps.CompVisSampler):
        return model.timestep_form(p.sampler, rehearsal)
    if isinstance(p.sampler, sd_samplers_kdiffusion.KDiffusionSampler):
        return model.sigma_form(p.sampler, p, rehearsal)
    raise RivalError(f"sampler {p.sampler_name} is of a kind that RIVAL does not know; choose one of the WebUI's own.")


@contextmanager
def _guided_by(host: WebuiHost, guide: Guide, size: Sequence[int]) -> Iterator[None]:
    """The guide stands around every call of the host's guided denoiser for a latent of this height and width."""
    denoiser, form = host.p.sampler.model_wrap_cfg, host.form
    host_forward = denoiser.forward
    checkpoint = shared.sd_model.sd_checkpoint_info
    has_switched = False

    def forward(x: Tensor, sigma: Tensor, uncond: Any, cond: Any, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal has_switched
        level = form.noise_level(float(sigma.max()))
        if host.model.has_switched(denoiser, x, sigma, level):
            has_switched = True
            # as the host itself does where it switches, only before anything is injected
            cond, uncond = (denoiser.sampler.sampler_extra_args[name] for name in ("cond", "uncond"))
        if has_switched or shared.sd_model.sd_checkpoint_info is not checkpoint:
            guide.report.note("injection ended with the switch to the refiner, whose features are others")
            return host_forward(x, sigma, uncond, cond, *args, **kwargs)
        if x.shape[2:] != size:
            # some of reForge's samplers try parts of the picture, or a larger one, at a level that these are not of
            return host_forward(x, sigma, uncond, cond, *args, **kwargs)
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
                    chain = guide.canvas.chain
                    kept = (form.kept(chain, level), chain.latent(level))
                    stack.enter_context(host.model.keeping(denoiser, *(one.expand_as(x).to(x) for one in kept)))
                output = host_forward(x, sigma, uncond, cond, *args, **kwargs)
            predicted = form.noise_of(output, x, level)
            return predicted

        # the host evaluates the prompts' rows first, one for each part of an AND, then those of the negative prompts,
        # which instruct-pix2pix evaluates twice: with the image and without
        halves = [GUIDED for parts in cond.batch for _ in parts] + [UNGUIDED] * 2 * len(x)
        noise = guide.guided_noise(level, denoise, halves)
        if noise is predicted:
            return output
        corrected_output = form.output_of(noise, x, level).to(x)
        host.model.correct_unguided(denoiser, corrected_output - output)
        return corrected_output

    with instance_attribute(denoiser, "forward", forward):
        yield
