"""How exact an exemplar's inversion is in the WebUI: there and back, before anything is generated from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from modules import call_queue, images, processing, scripts, sd_samplers, sd_schedulers, shared
from PIL import Image
from torch import Tensor

from rival_ext.attention import count_rows
from rival_ext.errors import Interrupted, RivalError
from rival_ext.guide import Guide
from rival_ext.hosts.webui import STORE, GuidedSampling, Sample, WebuiHost
from rival_ext.hosts.webui_neighbours import instance_attribute
from rival_ext.hosts.webui_options import options_set
from rival_ext.hosts.webui_pictures import LATENT_UPSCALE
from rival_ext.inversion import reconstruct
from rival_ext.report import Report
from rival_ext.settings import Settings
from rival_ext.verdict import Verdict, exactness, judge

MEDDLING = ("save_init_img", "img2img_color_correction")
"""Options with which the host would save the exemplar or change the colours of what is shown."""

SMALLEST_SIDE, LARGEST_SIDE = 64, 4096
"""Pixels; the panel's *Resize by* can come to less, even to none."""

LARGEST_ASPECT = 64
"""The host crops and fills by way of a picture of the same aspect, which can have no width or take all memory."""

STRETCH = 0
"""`resize_mode` for which any shape will do."""


@dataclass(frozen=True)
class CheckRequest:
    """A run that is to be checked, in the WebUI's own words; what makes no difference to an inversion is left out.

    image: the img2img image; None checks a run of txt2img, whose exemplar is in the settings.
    prompt, styles: for their LoRA tags. scheduler: empty is the sampler's own. resize_mode: 0 to 3, as the API counts.
    override_settings: the WebUI's options for this run alone: checkpoint, VAE, clip skip.
    user: who logged in to ask for it.
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
class Checked:
    """What a check found.

    original: the exemplar as the model was shown it. ceiling: as the VAE alone gives it back.
    reconstruction: led back from its inversion.
    psnr: dB, reconstruction against ceiling: what the VAE loses is not the inversion's fault and is not counted.
    seconds: of the inversion and the way back. evaluations: of the UNet, in both; the inversion's are nought if stored.
    chain: the inversion's id in the store, None if the memory budget has no room for it.
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


def check_in_queue(request: CheckRequest) -> Checked:
    """As `check`, in its turn among the host's own jobs: for callers that do not hold the queue's lock."""
    with call_queue.queue_lock:
        shared.state.begin(job="rival_check")
        try:
            return check(request)
        finally:
            shared.state.end()
            shared.total_tqdm.clear()


def check(request: CheckRequest) -> Checked:
    """Inverts the exemplars, unless they are stored, and leads the first one back; nothing is saved but the chains.

    A run with the same image and settings finds the inversion stored. An inpainting mask is not looked at: the whole
    image is checked. Raises RivalError, as the run itself would, and if the user interrupts.
    """
    _refuse_unknown_names(request)
    _refuse_sizes(request)
    # the whole image: mode inpaint would ask for a mask
    settings = Settings(**{**dict(request.settings), "mode": "variation"})
    script = CheckScript(settings)
    with closing(_processing(request)) as p, _nothing_kept():
        p.user = request.user
        p.scripts = script.runner()
        p.script_args = ()
        pictures = processing.process_images(p).images
    if not script.found:
        raise RivalError("the check was interrupted; start it again for a verdict.")
    (found,) = script.found
    report = found.report
    ceiling, reconstruction = pictures
    report.mode = request.settings.mode
    report.inversion.psnr = decibels = exactness(ceiling, reconstruction)
    return Checked(
        original=found.original,
        ceiling=ceiling,
        reconstruction=reconstruction,
        psnr=decibels,
        seconds=report.seconds.inversion + report.seconds.generation,
        evaluations=report.rows.inversion + report.rows.generation,
        chain=found.chain,
        verdict=judge(decibels, request.settings, request.steps),
        report=report,
    )


class Found(NamedTuple):
    """What a check knows before anything is decoded; names as in `Checked`."""

    original: Image.Image
    report: Report
    chain: str | None


class CheckScript(scripts.Script):
    """The only script of a check: no other extension and no panel takes part in it."""

    filename = __file__
    args_from = args_to = 0
    alwayson = True

    def __init__(self, settings: Settings):
        self.settings = settings
        self.found: list[Found] = []

    def title(self) -> str:
        return "RIVAL check"

    def runner(self) -> Any:
        """The host's list of scripts with this one in it."""
        runner = scripts.ScriptRunner()
        runner.scripts.append(self)
        runner.alwayson_scripts.append(self)
        return runner

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        ThereAndBack(p, self.settings, self.found.append)


class ThereAndBack(GuidedSampling):
    """In place of a sampling: the inversion of any guided run, then the way back down the same noise levels.

    The way back is the inversion's own inverse, an Euler step from level to level (DDIM), whatever the sampler. So the
    verdict is on the inversion alone: a sampler that adds noise never comes back, and one of higher order comes back
    by other steps than those inverted, which says nothing of what is recorded here. With several exemplars all are
    inverted, and the first one is led back.
    """

    def __init__(self, p: Any, settings: Settings, tell: Callable[[Found], None]):
        super().__init__(p, settings)
        self.tell = tell

    def finish(self, host: WebuiHost, guide: Guide, sample: Sample, latents: Sequence[Tensor]) -> Tensor:
        """`[2, C, H, W]`: the exemplar's latent and the one that it comes back to, for the host to decode."""
        report, chain = guide.report, guide.exemplars[0].chain

        begun = time.perf_counter()
        try:
            with host.inversion_networks(), host.model.inverting(), count_rows(host.unet) as rows:
                back = reconstruct(chain, host.predict_noise, host.job.show_way_back)
        except Interrupted:
            # as in the inversion: the host's own sampler ends at once
            return sample(latents)
        finally:
            shared.state.textinfo = None
        report.rows.generation = sum(rows)
        report.seconds.generation = time.perf_counter() - begun
        pictures = host.pictures_of_request
        self.tell(Found(pictures.shown(pictures.slots[0]), report, STORE.of(host.p.user).id_of(chain)))
        return torch.cat([pictures.exemplars[0].latent, back])


def _processing(request: CheckRequest) -> Any:
    common = {
        "sd_model": shared.sd_model,
        "prompt": request.prompt,
        "styles": list(request.styles),
        "seed": 1,
        "sampler_name": request.sampler_name,
        "scheduler": request.scheduler or sd_schedulers.schedulers[0].label,
        # the host decodes two latents then
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
        # upright and with its transparency, as the host reads every picture of a request
        init_images=[images.fix_image(request.image)],
        denoising_strength=request.denoising_strength,
        resize_mode=request.resize_mode,
    )


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """The host neither saves a picture nor takes the prompt for the last one that the user generated with."""
    with ExitStack() as stack:
        stack.enter_context(instance_attribute(shared.cmd_opts, "no_prompt_history", True))
        stack.enter_context(options_set({name: False for name in MEDDLING if getattr(shared.opts, name)}))
        yield


def _refuse_unknown_names(request: CheckRequest) -> None:
    """The host itself would take another sampler, and answer an option that it does not have with a traceback."""
    if request.sampler_name not in sd_samplers.all_samplers_map:
        raise RivalError(f"sampler_name must be the name of one of the WebUI's samplers, not {request.sampler_name!r}.")
    if request.scheduler and request.scheduler not in sd_schedulers.schedulers_map:
        raise RivalError(f"scheduler must be the name of one of the WebUI's schedules, not {request.scheduler!r}.")
    for name in request.override_settings:
        if name not in shared.opts.data_labels:
            raise RivalError(f"override_settings must name options of the WebUI, not {name!r}.")


def _refuse_sizes(request: CheckRequest) -> None:
    """What the host itself would answer with a traceback, or with all of the memory."""
    if min(request.width, request.height) < SMALLEST_SIDE:
        raise RivalError(f"width and height must be at least {SMALLEST_SIDE}, not {request.width}x{request.height}.")
    if request.image is None or request.resize_mode == STRETCH:
        return
    (shorter, longer), shown = sorted(request.image.size), "{}x{}".format(*request.image.size)
    if request.resize_mode == LATENT_UPSCALE and not SMALLEST_SIDE <= shorter <= longer <= LARGEST_SIDE:
        raise RivalError(
            f"image must have {SMALLEST_SIDE} to {LARGEST_SIDE} pixels on each side for resize_mode {LATENT_UPSCALE}, "
            f"which encodes it as it is, not {shown}."
        )
    if longer > LARGEST_ASPECT * shorter:
        raise RivalError(f"image must be at most {LARGEST_ASPECT} times as long as it is wide, not {shown}; crop it.")
