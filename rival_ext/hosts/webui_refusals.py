"""What cannot be honoured in the WebUI: a plain sentence for each, before anything is sampled."""

from __future__ import annotations

from typing import Any

from modules import extra_networks, shared

from rival_ext.errors import RivalError
from rival_ext.hosts.webui_neighbours import reorders_rows, sampler_name
from rival_ext.hosts.webui_samplers import SAMPLERS
from rival_ext.settings import Settings


def refuse(p: Any, settings: Settings) -> None:
    """Raises RivalError for the first thing in a batch of `p` that cannot be honoured."""
    sampler = sampler_name(p)
    if getattr(p, "is_hr_pass", False):
        sampler = p.hr_sampler_name or sampler
    images = getattr(p, "init_images", None) or []
    model = shared.sd_model
    refusals = {
        f"sampler {sampler} is not supported; choose one of {', '.join(SAMPLERS)}.": sampler not in SAMPLERS,
        "this checkpoint is not a Stable Diffusion 1.x one for text or inpainting; load one.": (
            not getattr(model, "is_sd1", False)
            or model.model.conditioning_key not in ("crossattn", "hybrid")
            or model.cond_stage_key == "edit"
        ),
        "mode inpaint needs a mask: paint one in an inpaint tab, or send one.": (
            settings.mode == "inpaint" and getattr(p, "mask", None) is None
        ),
        "the mask is empty; paint over what is to be filled.": (
            getattr(p, "mask", None) is not None and not p.nmask.any()
        ),
        "one input image at a time; send each exemplar in a request of its own, or set Batch size to 1 (SD upscale).": (
            any(image is not images[0] and image.tobytes() != images[0].tobytes() for image in images)
        ),
        f"width and height must be multiples of 8, not {p.width}x{p.height}.": p.width % 8 or p.height % 8,
        "a variation seed is not supported; set Variation strength to 0.": p.subseed_strength > 0,
        "resizing the seed is not supported; set Resize seed from width and height to 0.": (
            p.seed_resize_from_w > 0 or p.seed_resize_from_h > 0
        ),
        "token merging mixes the tokens of layers and regions; set its ratio to 0, or layers to all and no "
        "exemplar_mask.": (
            p.get_token_merging_ratio() > 0 and (settings.layers != "all" or any(slot.mask for slot in settings.slots))
        ),
        "exact guidance is not supported beside ControlNet's reference units; switch one of the two off.": (
            settings.exact and bool(settings.exemplar_prompt) and reorders_rows(p)
        ),
        "exemplar_prompt must not hold <...> tags; LoRAs of the prompt take part in the inversion already.": (
            bool(extra_networks.parse_prompt(settings.exemplar_prompt)[1])
        ),
    }
    for sentence, holds in refusals.items():
        if holds:
            raise RivalError(sentence)
