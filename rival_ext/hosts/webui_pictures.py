"""The pictures of a request as the WebUI would show them to the model: resized, cropped, filled, encoded."""

from __future__ import annotations

import math
from typing import Any

import torch
from modules import images, masking, shared
from PIL import Image
from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.hosts.webui_platform import LoadedModel
from rival_ext.pictures import fit, grey_mask, mask_array, size_of_area
from rival_ext.prepare import Painting, Picture
from rival_ext.settings import PIXELS_PER_POSITION, Settings, Slot

LATENT_UPSCALE = 3
"""`resize_mode` of "Just resize (latent upscale)"."""

RESIZE_AND_FILL = 2
"""`resize_mode` with which the host brings a cropped inpaint area to size."""

ORIGINAL = 1
FROM_THE_KEPT_REGION = (2, 3)
"""`inpainting_fill`: masked content "original", which alone is looked at, and "latent noise", "latent nothing"."""

SIZE_UNIT = 64
"""Width and height of an exemplar of its own aspect: each level of the UNet halves them evenly."""


class Pictures:
    """The exemplars and the canvas of one batch of `p`, encoded with the mean of the VAE's posterior."""

    def __init__(self, p: Any, settings: Settings, model: LoadedModel):
        self.p = p
        self.model = model
        self.mask = getattr(p, "mask", None)
        self.own = self._own_latent() if getattr(p, "init_images", None) else None
        self.slots = [slot for slot in settings.slots if slot.image or self.own is not None]
        self.exemplars = [self._exemplar(slot) for slot in self.slots]
        if not self.exemplars:
            raise RivalError(_nothing_to_look_at(settings))

    @property
    def painting(self) -> Painting | None:
        """What is inpainted: the hole starts from its own former content, from what is kept, or from the exemplars."""
        if self.mask is None or self.own is None:
            return None
        hole = self._hole()
        if not any(picture.latent is self.own for picture in self.exemplars):
            return Painting(self.own, hole, None)
        kept = (hole <= 0).float()
        from_kept = self.p.inpainting_fill in FROM_THE_KEPT_REGION and kept.any()
        return Painting(self.own, hole, kept if from_kept else (hole > 0).float())

    def shown(self, slot: Slot) -> Image.Image:
        """An exemplar as the model is shown it: without transparency, at the size that it is encoded at."""
        if slot.image is None:
            return self._own_image()
        side = math.sqrt(self.p.width * self.p.height)
        flat = images.flatten(slot.image, shared.opts.img2img_background_color)
        return fit(flat, size_of_area(flat, side, SIZE_UNIT))

    def _exemplar(self, slot: Slot) -> Picture:
        if slot.image is None:
            assert self.own is not None
            return Picture(self.own, slot.weight, self._own_region(slot), is_part=slot.mask is not None)
        image = self.shown(slot)
        region = _region(fit(grey_mask(slot.mask).resize(slot.image.size), image.size)) if slot.mask else None
        return Picture(self.model.encode(image), slot.weight, region, is_part=region is not None)

    def _own_region(self, slot: Slot) -> Tensor | None:
        """What is seen of the img2img image: the region asked for, and of an inpainted one not what is to vanish."""
        region = None
        if slot.mask:
            drawn = grey_mask(slot.mask).resize(self.p.init_images[0].size)
            region = _region(self._at_size(drawn.convert("RGB")))
        if self.mask is None or self.p.inpainting_fill == ORIGINAL:
            return region
        kept = (self._hole() <= 0).float()
        if not kept.any():
            return region
        return kept if region is None else region * kept

    def _own_image(self) -> Image.Image:
        p = self.p
        image = self._at_size(images.flatten(p.init_images[0], shared.opts.img2img_background_color))
        if self.mask is not None and p.inpainting_fill != ORIGINAL:
            image = masking.fill(image, self._at_size(p.mask_for_overlay)).convert("RGB")
        return image

    def _own_latent(self) -> Tensor:
        p = self.p
        latent = self.model.encode(self._own_image())
        if p.resize_mode == LATENT_UPSCALE:
            size = (p.height // PIXELS_PER_POSITION, p.width // PIXELS_PER_POSITION)
            latent = torch.nn.functional.interpolate(latent, size=size, mode="bilinear")
        return latent

    def _at_size(self, image: Image.Image) -> Image.Image:
        """An image that lies over the input as the host brings it to the size of what is made."""
        p = self.p
        if self.mask is not None and p.paste_to is not None:
            left, top, width, height = p.paste_to
            image = image.crop((left, top, left + width, top + height))
            return images.resize_image(RESIZE_AND_FILL, image, p.width, p.height)
        if p.resize_mode == LATENT_UPSCALE or image.size == (p.width, p.height):
            return image
        return images.resize_image(p.resize_mode, image, p.width, p.height)

    def _hole(self) -> Tensor:
        return self.p.nmask[:1].float()[None]


def _region(mask: Image.Image) -> Tensor:
    width, height = (side // PIXELS_PER_POSITION for side in mask.size)
    return torch.from_numpy(mask_array(mask, width, height))[None, None].to(shared.device)


def _nothing_to_look_at(settings: Settings) -> str:
    if not settings.slots:
        return "weight leaves no exemplar; raise one of the weights above 0."
    return "exemplar is missing: upload one in the panel, or send one, since txt2img has no image of its own."
