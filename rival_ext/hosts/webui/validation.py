"""What cannot be honoured in the WebUI: one plain sentence for each, before anything is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modules import extra_networks, sd_samplers_timesteps
from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.hosts.webui.backends.protocol import LoadedModel
from rival_ext.hosts.webui.compat import controlnet_reorders_rows
from rival_ext.hosts.webui.request import settings_of_cell
from rival_ext.images.decoding import pixel_digest
from rival_ext.images.transforms import grey_mask
from rival_ext.settings import MASK_MISSING, Settings

MASK_EMPTY = "the mask is empty; paint over the area to fill, and lower Mask blur if that area is small."
"""The error sentence for a mask of which nothing is set. A wide blur can leave nothing of a few pixels."""

Validate = Callable[[Any, Settings, LoadedModel], None]
"""(processing, settings, loaded checkpoint) -> None. Raises RivalError."""


def validate_run(p: Any, settings: Settings, model: LoadedModel) -> None:
    """Do `validate_inversion`, and refuse mode inpaint without a mask, and a second pass that would have no step."""
    validate_inversion(p, settings, model)
    if settings.mode == "inpaint" and getattr(p, "mask", None) is None:
        # the host drops an empty mask if only the masked area is to be painted
        raise RivalError(MASK_MISSING if getattr(p, "image_mask", None) is None else MASK_EMPTY)
    _raise_first(_hires_refusals(p))


def validate_inversion(p: Any, settings: Settings, model: LoadedModel) -> None:
    """Refuse a run whose exemplars cannot be inverted, or whose sampling cannot be guided.

    Args:
        p: The host's processing.
        settings: The validated settings.
        model: The loaded checkpoint.

    Raises:
        RivalError: The first thing that cannot be honoured.
    """
    _raise_first(
        {
            "this checkpoint is not supported; load a Stable Diffusion 1, 2 or XL checkpoint for text, inpainting or "
            "instruct-pix2pix.": not model.is_supported(),
            "an instruct-pix2pix checkpoint needs an image to change, and txt2img has none; use img2img.": (
                model.is_instruct_pix2pix() and not _input_images(p)
            ),
            MASK_EMPTY: getattr(p, "mask", None) is not None and not p.nmask.any() and _is_empty(p),
            **_request_refusals(p, settings),
            **model.refusals(),
            "exact guidance is not supported beside ControlNet's reference units; switch one of the two off.": (
                settings.exact and bool(settings.exemplar_prompt) and controlnet_reorders_rows(p)
            ),
        }
    )


def validate_cell(p: Any, cell: Mapping[str, Any]) -> None:
    """Refuse a cell of a plot before the first cell is made, as far as the request alone shows what is wrong.

    Args:
        p: The host's processing of the whole plot.
        cell: The values of RIVAL's axes in this cell, by field name.

    Raises:
        RivalError: The first thing that cannot be honoured.
    """
    settings = settings_of_cell(p, cell)
    if not settings.enabled:
        return
    if settings.mode == "inpaint" and getattr(p, "image_mask", None) is None:
        raise RivalError(MASK_MISSING)
    _raise_first(_request_refusals(p, settings) | _hires_refusals(p))


def _request_refusals(p: Any, settings: Settings) -> dict[str, bool]:
    """What the request alone shows, before the host has looked at its images or loaded anything."""
    has_region = any(exemplar.mask for exemplar in settings.exemplar_inputs)
    return {
        "a batch must have one input image; send each image in its own request, or set Batch size to 1 (SD upscale).": (
            _are_different(_input_images(p))
        ),
        "a variation seed needs start set to matched; change it, or set Variation strength to 0.": (
            settings.start != "matched" and p.subseed_strength > 0
        ),
        "resizing the seed needs start set to matched; change it, or set Resize seed from width and height to 0.": (
            settings.start != "matched" and (p.seed_resize_from_w > 0 or p.seed_resize_from_h > 0)
        ),
        "token merging needs layers set to all, no exemplar_mask, and with a mask Masked content set to original; "
        "change these, or set the token merging ratio to 0.": p.get_token_merging_ratio() > 0
        and (settings.layers != "all" or has_region),
        "exemplar_prompt must not contain <...> tags; remove them: the prompt's LoRAs act in the inversion already.": (
            bool(extra_networks.parse_prompt(settings.exemplar_prompt)[1])
        ),
    }


def _hires_refusals(p: Any) -> dict[str, bool]:
    """What would be wrong with the second pass of hires fix. Nothing, if that pass is the present one or there is none.

    Returns:
        The sentence, and whether it applies.
    """
    if not getattr(p, "enable_hr", False) or getattr(p, "is_hr_pass", False):
        return {}
    steps = p.hr_second_pass_steps or p.steps
    timestep_samplers = {label for label, *_ in sd_samplers_timesteps.samplers_timesteps}
    # the DDIM family makes one step less than it is asked for
    is_one_less = (p.hr_sampler_name or p.sampler_name) in timestep_samplers
    return {no_step_sentence(p, steps): p.denoising_strength <= 0 or steps - is_one_less < 1}


def no_step_sentence(p: Any, steps: int) -> str:
    """Say that a pass has no step.

    Args:
        p: The host's processing.
        steps: The sampling steps of the pass.

    Returns:
        The error sentence.
    """
    return f"denoising strength {p.denoising_strength} with {steps} sampling steps leaves no step; raise one of them."


def _raise_first(refusals: Mapping[str, bool]) -> None:
    for sentence, holds in refusals.items():
        if holds:
            raise RivalError(sentence)


def _input_images(p: Any) -> Sequence[Image.Image]:
    return getattr(p, "init_images", None) or []


def _is_empty(p: Any) -> bool:
    """Whether the mask was given empty. One that is blurred or reduced to nothing is the host's own affair."""
    nothing = 255 if p.inpainting_mask_invert else 0
    return grey_mask(p.image_mask).getextrema() == (nothing, nothing)


def _are_different(images: Sequence[Image.Image]) -> bool:
    """Whether these are more than one image. The host repeats one image for all images of a batch."""
    distinct = list({id(image): image for image in images}.values())
    if len(distinct) < 2:
        return False
    return len({image.size for image in distinct}) > 1 or len(set(map(pixel_digest, distinct))) > 1
