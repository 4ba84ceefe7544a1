"""What cannot be honoured in the WebUI: a plain sentence for each, before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules import extra_networks
from PIL import Image

from rival_ext.errors import RivalError
from rival_ext.hosts.webui_neighbours import reorders_rows
from rival_ext.hosts.webui_platform import LoadedModel
from rival_ext.settings import MASK_MISSING, Settings
from rival_ext.ui.outlook import digest


def refuse(p: Any, settings: Settings, model: LoadedModel) -> None:
    """Raises RivalError for the first thing in a batch of `p` that cannot be honoured."""
    images = getattr(p, "init_images", None) or []
    refusals = {
        "this checkpoint is none of Stable Diffusion 1, 2 or XL for text, inpainting or instruct-pix2pix; load one.": (
            not model.is_known()
        ),
        "an instruct-pix2pix checkpoint changes an image and has none in txt2img; use img2img.": (
            model.changes_an_image() and not images
        ),
        MASK_MISSING: settings.mode == "inpaint" and getattr(p, "mask", None) is None,
        "the mask is empty, or too thin for latent positions of 8 pixels; paint over all that is to be filled.": (
            getattr(p, "mask", None) is not None and not p.nmask.any()
        ),
        "one input image at a time; send each exemplar in a request of its own, or set Batch size to 1 (SD upscale).": (
            _differ(images)
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
        **model.refusals(),
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


def _differ(images: Sequence[Image.Image]) -> bool:
    """Whether they are more than one picture; the host repeats one for the images of a batch."""
    apart = list({id(image): image for image in images}.values())
    return len(apart) > 1 and (len({image.size for image in apart}) > 1 or len(set(map(digest, apart))) > 1)
