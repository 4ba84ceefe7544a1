"""Checks an inversion: inverts an exemplar and leads it back, before anything is generated from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from modules import call_queue, images, processing, scripts, sd_samplers, sd_schedulers, shared
from PIL import Image
from torch import Tensor

from rival_ext.errors import Interrupted, RivalError, short_repr
from rival_ext.hosts.webui.host import WebuiHost
from rival_ext.hosts.webui.inputs import LATENT_UPSCALE
from rival_ext.hosts.webui.patching import instance_attribute, options_set
from rival_ext.hosts.webui.sampling import SamplingCall, SamplingReplacement, after_inversion
from rival_ext.hosts.webui.session import Session
from rival_ext.hosts.webui.validation import validate_inversion
from rival_ext.images.transforms import rgb_array
from rival_ext.method.chain import Chain
from rival_ext.method.inversion import reconstruct
from rival_ext.method.layers import count_rows
from rival_ext.method.prepare import Prepared
from rival_ext.method.quality import Verdict, exactness, judge
from rival_ext.report import GuidePart, InversionPart, Report, join_report
from rival_ext.settings import Settings, settings_of_check

UNWANTED_OPTIONS = ("save_init_img", "img2img_color_correction")
"""Options with which the host would save the exemplar or change the colours of the shown images."""

SMALLEST_SIDE, LARGEST_SIDE = 64, 4096
"""Bounds of width and height in pixels. The panel's *Resize by* can go below them, even to 0."""

LARGEST_ASPECT = 64
"""The largest ratio of an image's sides. The host crops and fills with an intermediate image of the same aspect, which
could have a width of 0 or take all memory."""

STRETCH = 0
"""The host's `resize_mode` with which an image may have any shape."""


@dataclass(frozen=True)
class CheckRequest:
    """A run to check, in the WebUI's own words. Fields that make no difference to an inversion are left out.

    Attributes:
        settings: The validated settings.
        image: The img2img image. None checks a run of txt2img, whose exemplar is in the settings.
        prompt: The prompt. Only its LoRA tags count.
        styles: Names of the WebUI's styles. Only their LoRA tags count.
        sampler_name: The name of one of the WebUI's samplers.
        scheduler: The name of one of the WebUI's schedules. Empty is the sampler's own.
        steps: Sampling steps, 1 or more.
        width: In pixels. The WebUI drops the pixels beyond the last whole position of the latent.
        height: In pixels, likewise.
        denoising_strength: From 0 to 1.
        resize_mode: From 0 to 3, as the API counts.
        override_settings: The WebUI's options for this run alone, such as checkpoint, VAE and clip skip.
        user: Who is logged in and asks for the check.
    """

    settings: Settings
    image: Image.Image | None = None
    prompt: str = ""
    styles: Sequence[str] = ()
    sampler_name: str = "DDIM"
    scheduler: str = ""
    steps: int = 50
    width: int = 512
    height: int = 512
    denoising_strength: float = 1.0
    resize_mode: int = 0
    override_settings: Mapping[str, Any] = field(default_factory=dict)
    user: str | None = None


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        original: The exemplar as the model saw it.
        ceiling: The exemplar as the VAE alone gives it back.
        reconstruction: The exemplar led back from its inversion.
        psnr: How close the reconstruction is to the ceiling, in dB. What the VAE loses is not counted.
        seconds: Wall-clock seconds of the inversion and the way back.
        evaluations: UNet rows of both. A stored inversion takes none.
        chain: The inversion's id in the store, or None if the memory budget has no room for it.
        verdict: The grade, and what to change.
        report: The report of the check. The way back counts as its generation.
    """

    original: Image.Image
    ceiling: Image.Image
    reconstruction: Image.Image
    psnr: float
    seconds: float
    evaluations: int
    chain: str | None
    verdict: Verdict
    report: Report

    @property
    def is_stored(self) -> bool:
        """Whether the inversion had been stored before."""
        return self.report.store == "hit"


def check_in_queue(request: CheckRequest, session: Session) -> CheckResult:
    """Do `check_inversion` in its turn among the host's own jobs, for callers that do not hold the queue's lock."""
    with call_queue.queue_lock:
        shared.state.begin(job="rival_check")
        try:
            return check_inversion(request, session)
        finally:
            shared.state.end()
            shared.total_tqdm.clear()


def check_inversion(request: CheckRequest, session: Session) -> CheckResult:
    """Invert the exemplars, unless they are stored, and lead the first one back. Only the inversions are kept.

    A run with the same image and settings finds the inversion stored. An inpainting mask is not looked at: the whole
    image is checked.

    Args:
        request: The run to check.
        session: What is kept between runs.

    Returns:
        What the check found.

    Raises:
        RivalError: The run cannot be honoured, or the user interrupted the check.
    """
    _refuse_unknown_names(request)
    _refuse_sizes(request)
    settings = settings_of_check(request.settings)
    found: list[Found] = []
    with closing(_processing(request)) as p, _saving_nothing():
        p.user = request.user
        work = partial(_there_and_back, found.append)
        replacement = partial(after_inversion, settings, session, validate=validate_inversion, work=work)
        p.scripts = CheckScript(replacement).runner()
        p.script_args = ()
        decoded = processing.process_images(p).images
    if not found:
        raise RivalError("the check was interrupted; start it again for a verdict.")
    original, part, way_back, chain = found[0]
    ceiling, reconstruction = decoded
    decibels = exactness(*(torch.from_numpy(rgb_array(image)) for image in (ceiling, reconstruction)))
    report = join_report(
        request.settings, part, GuidePart(), rows=way_back.rows, seconds=way_back.seconds, psnr=decibels
    )
    return CheckResult(
        original=original,
        ceiling=ceiling,
        reconstruction=reconstruction,
        psnr=decibels,
        seconds=report.seconds.inversion + report.seconds.generation,
        evaluations=report.rows.inversion + report.rows.generation,
        chain=session.store.of(request.user).id_of(chain),
        verdict=judge(decibels, request.settings, request.steps),
        report=report,
    )


class WayBack(NamedTuple):
    """What the way back from the inversion to the exemplar took: UNet rows and wall-clock seconds."""

    rows: int
    seconds: float


class Found(NamedTuple):
    """What a check knows before the host decodes the latents.

    Attributes:
        original: The exemplar as the model saw it.
        inversion: The inversion's part of the report.
        way_back: What the way back took.
        chain: The first exemplar's chain.
    """

    original: Image.Image
    inversion: InversionPart
    way_back: WayBack
    chain: Chain


class CheckScript(scripts.Script):
    """The only script of a check: no other extension and no panel takes part in it.

    Args:
        work: What stands in for the sampling.
    """

    filename = __file__
    args_from = args_to = 0
    alwayson = True

    def __init__(self, work: Callable[[SamplingCall], Tensor]):
        self.work = work

    def title(self) -> str:
        return "RIVAL check"

    def runner(self) -> Any:
        """Return the host's list of scripts with this one in it."""
        runner = scripts.ScriptRunner()
        runner.scripts.append(self)
        runner.alwayson_scripts.append(self)
        return runner

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        SamplingReplacement(p, self.work).install()


def _there_and_back(tell: Callable[[Found], None], host: WebuiHost, prepared: Prepared, call: SamplingCall) -> Tensor:
    """In place of a sampling, go back down the noise levels of the inversion.

    The way back is the inversion's own inverse, an Euler step from level to level (DDIM), whatever the sampler is. So
    the verdict is on the inversion alone: a sampler that adds noise never comes back, and one of higher order comes
    back by other steps. With several exemplars all are inverted and the first one is led back.

    Returns:
        `[2, C, H, W]`, the exemplar's latent and the latent to which it comes back. The host decodes both.
    """
    chain = prepared.guide.exemplars[0].chain
    begun = time.perf_counter()
    try:
        with host.inversion_networks(), host.model.inverting(), count_rows(host.unet) as rows:
            back = reconstruct(chain, host.predict_noise, host.job.show_way_back)
    except Interrupted:
        # as in the inversion: the host's own sampler ends at once
        return call.sample(call.latents)
    finally:
        shared.state.textinfo = None
    way_back = WayBack(sum(rows), time.perf_counter() - begun)
    encoded = host.images
    tell(Found(encoded.image_for_model(encoded.exemplar_inputs[0]), prepared.inversion, way_back, chain))
    return torch.cat([encoded.exemplars[0].latent, back])


def _processing(request: CheckRequest) -> Any:
    common = {
        "sd_model": shared.sd_model,
        "prompt": request.prompt,
        "styles": list(request.styles),
        "seed": 1,
        "sampler_name": request.sampler_name,
        "scheduler": request.scheduler or sd_schedulers.schedulers[0].label,
        # two, because the host has to decode the exemplar and its reconstruction
        "batch_size": 2,
        "steps": request.steps,
        "cfg_scale": 1,
        "width": request.width,
        "height": request.height,
        "restore_faces": False,
        "do_not_save_samples": True,
        "do_not_save_grid": True,
        "override_settings": dict(request.override_settings),
    }
    if request.image is None:
        return processing.StableDiffusionProcessingTxt2Img(**common)
    return processing.StableDiffusionProcessingImg2Img(
        **common,
        # upright and with its transparency, as the host reads every image of a request
        init_images=[images.fix_image(request.image)],
        denoising_strength=request.denoising_strength,
        resize_mode=request.resize_mode,
    )


@contextmanager
def _saving_nothing() -> Iterator[None]:
    """Keep the host from saving images, and from taking the check's prompt for the user's last prompt."""
    with ExitStack() as stack:
        stack.enter_context(instance_attribute(shared.cmd_opts, "no_prompt_history", True))
        unwanted = {name: False for name in UNWANTED_OPTIONS if getattr(shared.opts, name)}
        stack.enter_context(options_set(shared.opts, unwanted))
        yield


def _refuse_unknown_names(request: CheckRequest) -> None:
    """Refuse names that the host does not know. It would take another sampler, or end in a traceback for an option."""
    sampler, scheduler = request.sampler_name, request.scheduler
    if sampler not in sd_samplers.all_samplers_map:
        raise RivalError(f"sampler_name must be the name of one of the WebUI's samplers, not {short_repr(sampler)}.")
    if scheduler and scheduler not in sd_schedulers.schedulers_map:
        raise RivalError(f"scheduler must be the name of one of the WebUI's schedules, not {short_repr(scheduler)}.")
    for name in request.override_settings:
        if name not in shared.opts.data_labels:
            raise RivalError(f"override_settings must name options of the WebUI, not {short_repr(name)}.")


def _refuse_sizes(request: CheckRequest) -> None:
    """Refuse sizes for which the host would end in a traceback or take all memory."""
    if min(request.width, request.height) < SMALLEST_SIDE:
        raise RivalError(f"width and height must be at least {SMALLEST_SIDE}, not {request.width}x{request.height}.")
    if request.image is None or request.resize_mode == STRETCH:
        return
    (shorter, longer), size = sorted(request.image.size), "{}x{}".format(*request.image.size)
    if request.resize_mode == LATENT_UPSCALE and not SMALLEST_SIDE <= shorter <= longer <= LARGEST_SIDE:
        raise RivalError(
            f"image must have {SMALLEST_SIDE} to {LARGEST_SIDE} pixels on each side with resize_mode {LATENT_UPSCALE}, "
            f"not {size}; choose another resize_mode."
        )
    if longer > LARGEST_ASPECT * shorter:
        raise RivalError(f"image must be at most {LARGEST_ASPECT} times as long as it is wide, not {size}; crop it.")
