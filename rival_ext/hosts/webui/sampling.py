"""RIVAL's part in one sampling of the WebUI: it stands in for the sampler's own method, once.

Everything is hooked for the length of one sampling and on instances only: the sampler's method, its denoiser, the
UNet's layers. The host's own sampling runs in between, so previews, prompts, schedules and masks stay its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from modules import shared
from torch import Tensor

from rival_ext.errors import Interrupted, RivalError
from rival_ext.fields import DEFAULTS
from rival_ext.hosts.webui.backends import model_class
from rival_ext.hosts.webui.backends.protocol import LoadedModel
from rival_ext.hosts.webui.batch import watch_batch, watched_batch
from rival_ext.hosts.webui.denoiser import guided_denoiser
from rival_ext.hosts.webui.fingerprint import preview_key_of_run
from rival_ext.hosts.webui.host import WebuiHost
from rival_ext.hosts.webui.infotext import write_settings
from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.hosts.webui.request import parsed_request
from rival_ext.hosts.webui.samplers import dry_run
from rival_ext.hosts.webui.session import Session
from rival_ext.hosts.webui.validation import Validate, validate_run
from rival_ext.infotext import HIRES_REPORT, REPORT
from rival_ext.method.guide import Guide
from rival_ext.method.layers import count_rows
from rival_ext.method.prepare import Prepared, prepare
from rival_ext.report import join_report
from rival_ext.settings import Settings

UNGUIDED = (
    "the sampler ran without its guided denoiser, so no step saw the exemplar; another extension may have replaced "
    "the sampler: disable the other extensions one by one."
)
"""The error sentence for a sampling in which the guide was never called."""

T_EARLY_WITH_CONTROLNET = 400
"""The authors' `t_early` beside ControlNet."""

Sample = Callable[[Sequence[Tensor]], Tensor]
"""(the latents that the host's method starts from) -> the final latents."""


def announce(p: Any, args: Sequence[Any]) -> None:
    """Watch over the batch, and write the settings into the generation parameters before the host saves these.

    Wrong settings are left to `arm`.

    Args:
        p: The host's processing.
        args: The script's arguments.
    """
    settings = parsed_request(p, args).outcome
    if isinstance(settings, RivalError):
        watch_batch(p)
    elif settings.enabled:
        watch_batch(p)
        write_settings(settings, p.extra_generation_params)


def arm(p: Any, args: Sequence[Any], session: Session) -> None:
    """Guide the sampling that follows, if the arguments switch RIVAL on.

    An error is raised by the sampling itself, because the host swallows what a script's callback raises.

    Args:
        p: The host's processing.
        args: The script's arguments.
        session: What is kept between runs.
    """
    request = parsed_request(p, args)
    if isinstance(request.outcome, RivalError):
        SamplingReplacement(p, partial(_raise, request.outcome)).install()
    elif request.outcome.enabled:
        SamplingReplacement(p, partial(sample_guided, request.outcome, request.given, session)).install()


class FromImage:
    """img2img: the host starts from an image to which it adds noise. At denoising strength 1 no image is kept.

    Attributes:
        method: The name of the sampler's method that the host calls.
        report: The name of the report in the infotext.
    """

    method = "sample_img2img"
    report = REPORT

    @staticmethod
    def start(host: WebuiHost, guide: Guide, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return (clean latent, noise) for the sampler's method. The host adds them up to the guide's start."""
        clean_scale, noise_scale = host.trace.input_scales
        clean, multiplier = host.clean_latent(x), host.p.initial_noise_multiplier
        # the host has multiplied its noise already; 0 leaves none
        start = host.start(guide, noise / (multiplier or 1), clean if host.p.denoising_strength < 1 else None)
        return clean, ((start - clean_scale * clean) / noise_scale).to(noise) * multiplier


class FromNoise:
    """txt2img: the host starts from noise."""

    method = "sample"
    report = REPORT

    @staticmethod
    def start(host: WebuiHost, guide: Guide, x: Tensor) -> tuple[Tensor]:
        """Return the noise for the sampler's method. The host scales it to the guide's start."""
        (noise_scale,) = host.trace.input_scales
        return (host.start(guide, x) / noise_scale,)


class HiresPass(FromImage):
    """The second pass of hires fix: it goes on from the first pass's image and sees the exemplar again."""

    report = HIRES_REPORT

    @staticmethod
    def start(host: WebuiHost, guide: Guide, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the host would start from."""
        return x, noise


SamplingPass = type[FromImage] | type[FromNoise]


@dataclass(frozen=True)
class SamplingCall:
    """The host's call of its sampler.

    Attributes:
        p: The host's processing.
        sampling_pass: Which pass of the host this is.
        latents: What the host's method was given to start from.
        sample: Calls the host's method with other latents.
        steps: The sampling steps of this pass.
    """

    p: Any
    sampling_pass: SamplingPass
    latents: Sequence[Tensor]
    sample: Sample
    steps: int


AfterInversion = Callable[[WebuiHost, Prepared, SamplingCall], Tensor]
"""(host, the guide and the inversion's part of the report, the host's call) -> the final latents."""


class SamplingReplacement:
    """Stands in for the sampler's own method for one call.

    Args:
        p: The host's processing.
        work: What to do instead of the call. It may raise.
    """

    def __init__(self, p: Any, work: Callable[[SamplingCall], Tensor]):
        self.p = p
        self.work = work
        self.sampling_pass = _sampling_pass_of(p)
        self.was_called = False
        self._original: Any = None
        self._installed = ExitStack()

    def install(self) -> None:
        """Replace the method on the sampler's instance, until it is called."""
        sampler, method = self.p.sampler, self.sampling_pass.method
        waiting = vars(sampler).get(method)
        if isinstance(waiting, SamplingReplacement):
            # the sampling for which it waits is this one: Forge announces the second pass of hires fix twice
            waiting._installed.close()
        self._original = getattr(sampler, method)
        self._installed.enter_context(instance_attribute(sampler, method, self))
        batch = watched_batch(self.p)
        if batch is not None:
            batch.expect(self, instead_of=waiting)

    def __call__(self, p: Any, x: Tensor, *args: Any, steps: int | None = None, **kwargs: Any) -> Tensor:
        self._installed.close()
        self.was_called = True
        # the latents from which the method starts come first, then the prompts
        latents, prompts = (x, *args[:-2]), args[-2:]

        def sample(latents: Sequence[Tensor]) -> Tensor:
            return self._original(p, *latents, *prompts, steps=steps, **kwargs)

        return self.work(SamplingCall(p, self.sampling_pass, latents, sample, steps or p.steps))


def sample_guided(settings: Settings, given: Container[str], session: Session, call: SamplingCall) -> Tensor:
    """Invert what the store does not hold, then sample with the guide beside the denoiser.

    Args:
        settings: The validated settings.
        given: The names of the fields that the request itself gives.
        session: What is kept between runs.
        call: The host's call of its sampler.

    Returns:
        The final latents, `[N, C, H, W]`.

    Raises:
        RivalError: The request cannot be honoured.
    """
    # only now is it known which of ControlNet's units act
    settings = apply_controlnet_default(model_class()(call.p), settings, given)
    write_settings(settings, call.p.extra_generation_params)
    return after_inversion(settings, session, call, validate_run, _sample_with_guide)


def after_inversion(
    settings: Settings, session: Session, call: SamplingCall, validate: Validate, work: AfterInversion
) -> Tensor:
    """Find or make the inversions of a run, then do the work, both as one job of the host.

    Args:
        settings: The validated settings.
        session: What is kept between runs.
        call: The host's call of its sampler.
        validate: Refuses what cannot be honoured.
        work: What follows the inversions.

    Returns:
        What `work` returns. If the user stops the inversion, what the host's own sampler returns.

    Raises:
        RivalError: The request cannot be honoured.
    """
    # before the inversion: options that are set meanwhile belong to the next run
    key = preview_key_of_run(call.p, settings)
    model = model_class()(call.p)
    validate(call.p, settings, model)
    trace = dry_run(call.p, call.sample, call.latents)
    host = WebuiHost(call.p, settings, model, trace, call.steps)
    with host.job:
        try:
            with host.inversion_networks(), model.inverting():
                host.open()
                prepared = prepare(host, settings, session.store.of(call.p.user))
        except Interrupted as stopped:
            call.p.extra_generation_params[call.sampling_pass.report] = f"stopped in the inversion at step {stopped}"
            host.job.begin_sampling()
            # the host's own sampler sees the interruption before its first step and ends as it always does
            return call.sample(call.latents)
        session.remember(key, [exemplar.chain for exemplar in prepared.guide.exemplars])
        host.job.begin_sampling()
        return work(host, prepared, call)


def _sample_with_guide(host: WebuiHost, prepared: Prepared, call: SamplingCall) -> Tensor:
    guide, settings = prepared.guide, host.settings
    begun = time.perf_counter()
    notes = host.model.notes()
    size = call.latents[0].shape[2:]
    with (
        host.model.guided(),
        guide.injection.installed(),
        guided_denoiser(host, guide, size),
        count_rows(host.unet) as rows,
    ):
        samples = call.sample(call.sampling_pass.start(host, guide, *call.latents))
    if not (guide.counts.steps.total or shared.state.interrupted or shared.state.skipped):
        raise RivalError(UNGUIDED)
    seconds = time.perf_counter() - begun
    if guide.counts.evaluated_live and settings.plain_inversion and host.networks:
        notes = [*notes, "the LoRAs act on the exemplar where it is evaluated beside the steps"]
    report = join_report(settings, prepared.inversion, guide.counts, rows=sum(rows), seconds=seconds, notes=notes)
    call.p.extra_generation_params[call.sampling_pass.report] = report.summary()
    # shown under the gallery
    call.p.comment("\n".join(report.lines()))
    print(f"RIVAL: {report.summary()}")
    return samples


def apply_controlnet_default(model: LoadedModel, settings: Settings, given: Container[str]) -> Settings:
    """Replace the default of `t_early` by the authors' value beside ControlNet.

    Args:
        model: The loaded checkpoint, while a sampling is about to begin.
        settings: The validated settings.
        given: The names of the fields that the request itself gives.

    Returns:
        Settings with `t_early` 400 if ControlNet steers the sampling, the request does not give `t_early`, and
        `t_early` has its default. Else `settings`.
    """
    if "t_early" in given or settings.t_early != DEFAULTS["t_early"] or not model.is_steered():
        return settings
    return Settings(**{**dict(settings), "t_early": T_EARLY_WITH_CONTROLNET})


def _sampling_pass_of(p: Any) -> SamplingPass:
    if getattr(p, "is_hr_pass", False):
        return HiresPass
    return FromImage if hasattr(p, "init_images") else FromNoise


def _raise(error: RivalError, call: SamplingCall) -> Tensor:
    raise error
