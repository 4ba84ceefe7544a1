"""The small demo model with RIVAL and without, and how alike two pictures are; for docs/modes.md and its tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from rival_ext.hosts.diffusers import DiffusersHost, Request, RequestImages
from rival_ext.method.guide import Guide
from rival_ext.method.injection import Injection
from rival_ext.method.prepare import prepare
from rival_ext.settings import GUIDANCE, parse_settings
from rival_ext.storage.store import NoStore

CELLS = 16
"""A layout is compared on a grid of so many cells in each direction."""


@dataclass
class Studio:
    """Makes a picture for each seed, of a scene and a prompt."""

    pipeline: StableDiffusionPipeline
    seeds: Sequence[int] = (1, 2)
    steps: int = 20

    def host(
        self,
        images: RequestImages,
        prompt: str = "",
        guidance: float = 5.0,
        exemplar_prompt: str = "",
        exact: bool = False,
    ) -> DiffusersHost:
        """The embedded host for a scene."""
        request = Request(prompt, exemplar_prompt, guidance, "ddim", self.steps, exact)
        return DiffusersHost(self.pipeline, request, images, lambda done, total: None)

    def rival(self, images: RequestImages, prompt: str = "", **fields: Any) -> list[Image.Image]:
        """Pictures with RIVAL, at the guidance scale of the mode; fields: of the settings."""
        host, guide = self.guided(images, prompt, **fields)
        return self._sample(host, host.start(self.seeds, guide), guide)

    def guided(self, images: RequestImages, prompt: str = "", **fields: Any) -> tuple[DiffusersHost, Guide]:
        """A host and the guide for its next sampling."""
        settings = parse_settings(fields)
        host = self.host(images, prompt, GUIDANCE[settings.mode], settings.exemplar_prompt, settings.exact)
        # with a store, the inversion of an earlier picture could serve, and the order of the pictures would show
        return host, prepare(host, settings, NoStore()).guide

    def plain(self, images: RequestImages, prompt: str = "", mode: str = "variation") -> list[Image.Image]:
        """Pictures without RIVAL, at the guidance scale of the mode; a canvas is inpainted in the usual way."""
        host = self.host(images, prompt, GUIDANCE[mode])
        start = host.start(self.seeds, None)
        inpaint = host.inpaint_input()
        return self._sample(host, start, inpaint and PlainInpainting(inpaint.latent, inpaint.mask))

    def seen(self, image: Image.Image) -> Image.Image:
        """A picture as the VAE gives it back: what the model could draw at best."""
        host = self.host(RequestImages.of(image))
        return host.decode(host.exemplar_latent())[0]

    def _sample(self, host: DiffusersHost, start: Tensor, guide: Any) -> list[Image.Image]:
        images = host.decode(host.sample(start, self.seeds, guide, lambda done, total: None))
        canvas, mask = host.images.canvas, host.images.mask
        return [Image.composite(image, canvas, mask) for image in images] if canvas and mask else images


@dataclass(frozen=True)
class PlainInpainting:
    """In a guide's place: the kept region is the clean latent with new noise at every step; nothing else is done."""

    clean: Tensor
    mask: Tensor
    injection: Injection = field(default_factory=lambda: Injection({}))

    def corrected_latent(self, latent: Tensor, noise_level: float) -> Tensor:
        """The sampler's latent with the kept region as it should be at this noise level."""
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(round(1000 * noise_level)))
        return torch.where(self.mask > 0, latent, self.clean + noise_level * noise)

    def guided_noise(self, noise_level: float, denoise: Any, cond_or_uncond: Sequence[int] = ()) -> Tensor:
        """The prediction as it is."""
        prediction: Tensor = denoise()
        return prediction


def layout_correlation(one: Image.Image, other: Image.Image) -> float:
    """How alike the places of edges are, whatever the colours: from 1, the same, to 0, unrelated."""
    grids = []
    for image in (one, other):
        edges = torch.from_numpy(_gradients(image))[None, None]
        grids.append(avg_pool2d(edges, edges.shape[-1] // CELLS).flatten())
    return float(torch.corrcoef(torch.stack(grids))[0, 1])


def texture_distance(one: Image.Image, other: Image.Image) -> float:
    """Earth mover's distance between the strengths of all edges, wherever they lie: 0 is the same texture."""
    flat, other_flat = (np.sort(_gradients(image), axis=None) for image in (one, other))
    return float(np.abs(flat - other_flat).mean())


def _gradients(image: Image.Image) -> np.ndarray:
    """The steepest of the three channels' gradients at each pixel, `[H, W]`, in grey levels a pixel."""
    down, right = np.gradient(np.asarray(image.convert("RGB"), dtype=np.float32), axis=(0, 1))
    steepest: np.ndarray = np.hypot(down, right).max(axis=2)
    return steepest
