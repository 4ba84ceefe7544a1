"""What an exemplar is evaluated with in the WebUI: its prompt, its own size, nothing of a mask."""

from __future__ import annotations

from typing import Any

import torch
from modules import prompt_parser
from PIL import Image
from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.guide import UNGUIDED
from rival_ext.hosts.webui_options import options_set
from rival_ext.hosts.webui_platform import LoadedModel
from rival_ext.settings import PIXELS_PER_POSITION, Settings

GREY = (127, 127, 127)
NOT_CROPPED = {"sdxl_crop_top": 0, "sdxl_crop_left": 0}


class ExemplarConditioning:
    """The host's conditionings for one batch of `p`, made once for each size of a latent.

    steps: calls of the denoiser, over which the host spreads a prompt that changes on the way.
    Raises RivalError for two prompts that do not fit into one batch.
    """

    def __init__(self, p: Any, settings: Settings, steps: int, model: LoadedModel):
        self.engine = p.sd_model
        self.model = model
        self.steps = steps
        self.prompts = [settings.exemplar_prompt]
        if settings.exact and settings.exemplar_prompt:
            self.prompts.insert(UNGUIDED, "")
        self._schedules: dict[torch.Size, list[Any]] = {}
        self._images: dict[torch.Size, Tensor] = {}

    @property
    def rows(self) -> int:
        """How many prompts the exemplar is evaluated with; the last one is its own."""
        return len(self.prompts)

    def at(self, latent: Tensor, step: int) -> tuple[dict[str, Any], Tensor]:
        """For a latent `[1, C, H, W]` at a step, `rows` of them: of the prompts, and what is seen beside the latent."""
        text = prompt_parser.reconstruct_cond_batch(self.schedules(latent.shape), step)
        # SDXL's holds the sizes beside the text
        texts = text if isinstance(text, dict) else {"c_crossattn": [text]}
        return texts, self._image(latent).expand(self.rows, -1, -1, -1)

    def schedules(self, shape: torch.Size) -> list[Any]:
        """The schedule of each prompt, in the order of the guide's halves."""
        if shape not in self._schedules:
            height, width = (PIXELS_PER_POSITION * side for side in shape[2:])
            texts = prompt_parser.SdConditioning(self.prompts, width=width, height=height)
            # SDXL is told where its picture was cropped: the exemplar is whole, whatever the options say of the output
            with options_set(NOT_CROPPED):
                schedules = prompt_parser.get_learned_conditioning(self.engine, texts, self.steps)
            if len({_text(entry.cond).shape for schedule in schedules for entry in schedule}) > 1:
                raise RivalError("exact guidance works with an exemplar_prompt of up to 75 tokens; shorten it.")
            self._schedules[shape] = schedules
        return self._schedules[shape]

    def _image(self, latent: Tensor) -> Tensor:
        """What some checkpoints see beside the latent: for an exemplar that all of it is to be made, from no image."""
        if latent.shape not in self._images:
            self._images[latent.shape] = self._encode_image(latent)
        return self._images[latent.shape]

    def _encode_image(self, latent: Tensor) -> Tensor:
        height, width = latent.shape[2:]
        if self.model.changes_an_image():
            return latent.new_zeros(1, 4, height, width)
        if not self.model.is_inpainting():
            return latent.new_zeros(1, 5, 1, 1)
        grey = Image.new("RGB", (width * PIXELS_PER_POSITION, height * PIXELS_PER_POSITION), GREY)
        return torch.nn.functional.pad(self.model.encode(grey).to(latent), (0, 0, 0, 0, 1, 0), value=1.0)


def _text(cond: Any) -> Tensor:
    return cond["crossattn"] if isinstance(cond, dict) else cond
