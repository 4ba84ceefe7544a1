"""The images and prompts of a request, as the WebUI would show them to the model: resized, cropped, encoded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from modules import images, masking, prompt_parser, shared
from PIL import Image
from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.fields import EXEMPLAR_SUFFIXES
from rival_ext.hosts.webui.backends.protocol import LoadedModel
from rival_ext.hosts.webui.patching import options_set
from rival_ext.images.transforms import crop_note, fit, grey_mask, mask_array, size_of_area
from rival_ext.method.host import EncodedExemplar, InpaintInput
from rival_ext.method.regions import FEWEST_POSITIONS, positions_in, region_of_mask
from rival_ext.method.rows import UNCOND
from rival_ext.settings import PIXELS_PER_POSITION, ExemplarInput, Settings

LATENT_UPSCALE = 3
"""The host's `resize_mode` "Just resize (latent upscale)"."""

RESIZE_AND_FILL = 2
"""The host's `resize_mode` with which it brings a cropped inpaint area to size."""

ORIGINAL = 1
"""The host's `inpainting_fill` "original". Only with it the masked part itself is shown to the model."""

LATENT_FILLS = (2, 3)
"""The host's `inpainting_fill` "latent noise" and "latent nothing", which change the latent's masked part."""

SIZE_UNIT = 64
"""Width and height of an exemplar with an aspect of its own are multiples of this, so that each level of the UNet
halves them evenly."""

GREY = (127, 127, 127)
"""What inpainting checkpoints see in place of an image whose every part is to be made."""

NOT_CROPPED = {"sdxl_crop_top": 0, "sdxl_crop_left": 0}
"""SDXL is told where its image was cropped. The exemplar is whole, whatever the options say of the output."""


class RequestImages:
    """The exemplars and the canvas of one batch.

    Args:
        p: The host's processing.
        settings: The validated settings.
        model: The loaded checkpoint.
    """

    def __init__(self, p: Any, settings: Settings, model: LoadedModel):
        self.p = p
        self.settings = settings
        self.model = model
        self.mask = getattr(p, "mask", None)
        self.own_latent: Tensor | None = None
        self.exemplar_inputs: list[ExemplarInput] = []
        self.exemplars: list[EncodedExemplar] = []

    def encode(self) -> RequestImages:
        """Encode all images with the mean of the VAE's posterior.

        Returns:
            These images.

        Raises:
            RivalError: There is no exemplar, a region has too few positions, or the VAE gives NaN or infinity.
        """
        if getattr(self.p, "init_images", None):
            self.own_latent = self._encode_own_image()
        self.exemplar_inputs = [
            one for one in self.settings.exemplar_inputs if one.image or self.own_latent is not None
        ]
        self.exemplars = [self._encode_exemplar(one) for one in self.exemplar_inputs]
        if not self.exemplars:
            raise RivalError(_no_exemplar_sentence(self.settings))
        return self

    @property
    def inpaint_input(self) -> InpaintInput | None:
        """The image that is inpainted, if there is a mask.

        The masked part starts from its own former content if that is an exemplar, else from the exemplars.
        """
        if self.mask is None or self.own_latent is None:
            return None
        mask = self._latent_mask()
        is_shown = any(one.latent is self.own_latent for one in self.exemplars) and self._kept_region() is None
        return InpaintInput(self.own_latent, mask, (mask > 0).float() if is_shown else None)

    def notes(self) -> list[str]:
        """List the uploaded exemplars of which much is cut off."""
        uploaded = [(one.suffix, one.image) for one in self.exemplar_inputs if one.image]
        notes = (crop_note("exemplar" + suffix, image, self._size_for_model(image)) for suffix, image in uploaded)
        return [note for note in notes if note]

    def image_for_model(self, exemplar: ExemplarInput) -> Image.Image:
        """Return an exemplar as the model sees it: without transparency, at the size at which it is encoded."""
        if exemplar.image is None:
            return self._own_image()
        flat = images.flatten(exemplar.image, shared.opts.img2img_background_color)
        return fit(flat, self._size_for_model(flat))

    def _size_for_model(self, image: Image.Image) -> tuple[int, int]:
        """The size at which an uploaded exemplar is encoded: its own aspect, at the area of the output."""
        side = PIXELS_PER_POSITION * math.sqrt(math.prod(self._output_latent_size))
        return size_of_area(image, side, SIZE_UNIT)

    def _encode_exemplar(self, exemplar: ExemplarInput) -> EncodedExemplar:
        if exemplar.image is None:
            assert self.own_latent is not None
            asked = None
            if exemplar.mask:
                drawn = grey_mask(exemplar.mask).resize(self.p.init_images[0].size)
                asked = _latent_region(exemplar, self._at_size(drawn.convert("RGB")))
            region = self._without_painted_over(exemplar, asked)
            return EncodedExemplar(self.own_latent, exemplar.weight, region, attention_only=region is not None)
        image = self.image_for_model(exemplar)
        region = None
        if exemplar.mask:
            drawn = fit(grey_mask(exemplar.mask).resize(exemplar.image.size), image.size)
            region = _latent_region(exemplar, drawn)
        return EncodedExemplar(self._encode(image), exemplar.weight, region, attention_only=region is not None)

    def _without_painted_over(self, exemplar: ExemplarInput, asked: Tensor | None) -> Tensor | None:
        """The seen part of the img2img image: the region that was asked for, without what is to be painted over."""
        kept = self._kept_region()
        if kept is None or asked is None:
            return asked if kept is None else kept
        if len(positions_in(asked * kept)) < FEWEST_POSITIONS:
            raise RivalError(
                f"exemplar_mask{exemplar.suffix} shows what the mask paints over; paint another part white, or set "
                "Masked content to original."
            )
        return asked * kept

    def _kept_region(self) -> Tensor | None:
        """The part of the img2img image that the model may see, or None if it may see all of it.

        With another masked content than "original" the masked part is not shown, unless next to nothing else is left.
        """
        if self.mask is None or self.p.inpainting_fill == ORIGINAL:
            return None
        kept = (self._latent_mask() <= 0).float()
        return kept if len(positions_in(kept)) >= FEWEST_POSITIONS else None

    def _own_image(self) -> Image.Image:
        p = self.p
        image = self._at_size(images.flatten(p.init_images[0], shared.opts.img2img_background_color))
        if self.mask is not None and p.inpainting_fill != ORIGINAL:
            image = masking.fill(image, self._at_size(p.mask_for_overlay)).convert("RGB")
        return image

    def _encode_own_image(self) -> Tensor:
        p = self.p
        latent = self._encode(self._own_image())
        if p.resize_mode == LATENT_UPSCALE:
            latent = torch.nn.functional.interpolate(latent, size=self._output_latent_size, mode="bilinear")
        return latent

    def _encode(self, image: Image.Image) -> Tensor:
        latent = self.model.encode(image)
        if not latent.isfinite().all():
            raise RivalError(
                "the VAE's encoder gave values that are not numbers (NaN); start the WebUI with --no-half-vae (Forge "
                "and reForge: --vae-in-fp32), or choose another VAE."
            )
        return latent

    @property
    def _output_latent_size(self) -> tuple[int, int]:
        """Height and width of the latents to make. The host drops pixels beyond the last whole position."""
        return self.p.height // PIXELS_PER_POSITION, self.p.width // PIXELS_PER_POSITION

    def _at_size(self, image: Image.Image) -> Image.Image:
        """Bring an image that lies over the input to the size of the output, as the host does."""
        p = self.p
        if self.mask is not None and p.paste_to is not None:
            left, top, width, height = p.paste_to
            image = image.crop((left, top, left + width, top + height))
            return images.resize_image(RESIZE_AND_FILL, image, p.width, p.height)
        if p.resize_mode == LATENT_UPSCALE or image.size == (p.width, p.height):
            return image
        return images.resize_image(p.resize_mode, image, p.width, p.height)

    def _latent_mask(self) -> Tensor:
        return self.p.nmask[:1].float()[None]


class ExemplarConditioning:
    """The host's conditionings for the exemplars of one batch. Each is made once for each size of a latent.

    Args:
        p: The host's processing.
        settings: The validated settings.
        steps: Calls of the denoiser. The host spreads a prompt that changes on the way over them.
        model: The loaded checkpoint.
    """

    def __init__(self, p: Any, settings: Settings, steps: int, model: LoadedModel):
        self.engine = p.sd_model
        self.model = model
        self.steps = steps
        self.prompts = [settings.exemplar_prompt]
        if settings.exact and settings.exemplar_prompt:
            self.prompts.insert(UNCOND, "")
        self._schedules: dict[torch.Size, list[Any]] = {}
        self._images: dict[torch.Size, Tensor] = {}

    @property
    def rows(self) -> int:
        """With how many prompts the exemplar is evaluated. The last one is its own."""
        return len(self.prompts)

    def at(self, latent: Tensor, step: int) -> tuple[dict[str, Any], Tensor]:
        """Return the conditionings for one evaluation.

        Args:
            latent: `[1, C, H, W]`.
            step: The call of the denoiser, from 0.

        Returns:
            The prompts' conditioning and what the UNet sees beside the latent, `rows` of each.

        Raises:
            RivalError: The two prompts of exact guidance do not fit into one batch.
        """
        text = prompt_parser.reconstruct_cond_batch(self.schedules(latent.shape), step)
        return _texts_of(text), self._image_beside(latent).expand(self.rows, -1, -1, -1)

    def at_calls(self, latent: Tensor, steps: Sequence[int]) -> tuple[dict[str, Any], Tensor]:
        """Return the exemplar's own conditioning for several calls of the denoiser, evaluated together.

        Args:
            latent: `[1, C, H, W]`.
            steps: The calls, from 0.

        Returns:
            As `at`, one row for each call.
        """
        schedule = self.schedules(latent.shape)[-1:]
        texts = [prompt_parser.reconstruct_cond_batch(schedule, step) for step in steps]
        text = (
            {name: torch.cat([one[name] for one in texts]) for name in texts[0]}
            if isinstance(texts[0], dict)
            else (torch.cat(texts))
        )
        return _texts_of(text), self._image_beside(latent).expand(len(steps), -1, -1, -1)

    def schedules(self, shape: torch.Size) -> list[Any]:
        """Return the host's schedule of each prompt, `UNCOND` first.

        Args:
            shape: Of a latent, `[1, C, H, W]`.

        Returns:
            `rows` schedules.

        Raises:
            RivalError: The two prompts of exact guidance do not fit into one batch.
        """
        if shape not in self._schedules:
            height, width = (PIXELS_PER_POSITION * side for side in shape[2:])
            texts = prompt_parser.SdConditioning(self.prompts, width=width, height=height)
            with options_set(shared.opts, NOT_CROPPED):
                schedules = prompt_parser.get_learned_conditioning(self.engine, texts, self.steps)
            if len({_text_of(entry.cond).shape for schedule in schedules for entry in schedule}) > 1:
                raise RivalError("exact guidance needs an exemplar_prompt of at most 75 tokens; shorten it.")
            self._schedules[shape] = schedules
        return self._schedules[shape]

    def _image_beside(self, latent: Tensor) -> Tensor:
        if latent.shape not in self._images:
            self._images[latent.shape] = self._encode_image_beside(latent)
        return self._images[latent.shape]

    def _encode_image_beside(self, latent: Tensor) -> Tensor:
        """What some checkpoints see beside the latent. For an exemplar: that all of it is to be made, from no image."""
        height, width = latent.shape[2:]
        if self.model.is_instruct_pix2pix():
            return latent.new_zeros(1, 4, height, width)
        if not self.model.is_inpainting():
            return latent.new_zeros(1, 5, 1, 1)
        grey = Image.new("RGB", (width * PIXELS_PER_POSITION, height * PIXELS_PER_POSITION), GREY)
        return torch.nn.functional.pad(self.model.encode(grey).to(latent), (0, 0, 0, 0, 1, 0), value=1.0)


def with_strokes(values: Mapping[str, Any], strokes: Sequence[Any]) -> dict[str, Any]:
    """Join what was painted on the exemplars with the exemplars. Forge's canvas gives the two separately.

    Args:
        values: Values of RIVAL's fields.
        strokes: For each exemplar an RGBA image whose alpha holds the strokes, or None. It may be shorter.

    Returns:
        The values, each painted exemplar as `{"image": ..., "mask": ...}`.
    """
    painted = dict(values)
    for suffix, stroke in zip(EXEMPLAR_SUFFIXES, strokes, strict=False):
        name = "exemplar" + suffix
        if isinstance(stroke, Image.Image) and isinstance(values.get(name), Image.Image):
            painted[name] = {"image": values[name], "mask": stroke.getchannel("A")}
    return painted


def _texts_of(conditioning: Any) -> dict[str, Any]:
    # SDXL's conditioning holds the sizes beside the text
    return conditioning if isinstance(conditioning, dict) else {"c_crossattn": [conditioning]}


def _text_of(cond: Any) -> Tensor:
    return cond["crossattn"] if isinstance(cond, dict) else cond


def _latent_region(exemplar: ExemplarInput, drawn: Image.Image) -> Tensor | None:
    """The region of an exemplar, of its mask at the size at which the exemplar is encoded."""
    width, height = (side // PIXELS_PER_POSITION for side in drawn.size)
    covered = torch.from_numpy(mask_array(drawn, width, height))[None, None].to(shared.device)
    return region_of_mask(covered, "exemplar_mask" + exemplar.suffix)


def _no_exemplar_sentence(settings: Settings) -> str:
    if not settings.exemplar_inputs:
        return "weight leaves no exemplar; raise one of the weights above 0."
    return (
        "exemplar is missing, and txt2img has no image to use instead; upload one, or send one in the field exemplar."
    )
