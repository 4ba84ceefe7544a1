"""AUTOMATIC1111's loaded checkpoint: a module of ldm or sgm. Its layers are reached through torch's own hooks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from modules import devices, extra_networks, sd_hijack, sd_samplers_common, shared
from modules.hypernetworks import hypernetwork
from PIL import Image
from torch import Tensor, nn

from rival_ext.hosts.webui.compat import (
    controlnet_steers,
    references_without_exemplar,
    uses_tiled_diffusion,
    without_other_extensions,
)
from rival_ext.hosts.webui.patching import instance_attribute, random_numbers_kept
from rival_ext.hosts.webui.samplers import (
    SamplerConvention,
    SigmaConvention,
    TimestepConvention,
    by_row,
    correct_last_noise,
)
from rival_ext.method.attention import Layers
from rival_ext.method.layers import HookedLayer, self_attention_modules
from rival_ext.method.rows import KeysValues

FAMILIES = ("is_sd1", "is_sd2", "is_sdxl")
"""The host's marks on a checkpoint whose UNet has the self-attention layers of the method."""

UNCLIP = "crossattn-adm"
"""The host's `conditioning_key` of unCLIP checkpoints, whose UNet also sees an image embedding."""


class LdmLayer(HookedLayer):
    """A self-attention layer on which the host's hypernetworks act, before its projections."""

    def project(self, h: Tensor) -> KeysValues:
        return self._projected(*hypernetwork.apply_hypernetworks(shared.loaded_hypernetworks, h))


class LdmModel:
    """AUTOMATIC1111's loaded checkpoint (`LoadedModel`).

    Args:
        p: The host's processing.
    """

    sigma_convention = SigmaConvention
    timestep_convention = TimestepConvention

    def __init__(self, p: Any):
        self.p = p
        self.model = p.sd_model
        self.networks_are_aside = False

    @staticmethod
    def errors_on_page() -> AbstractContextManager[None]:
        return nullcontext()

    @property
    def unet(self) -> nn.Module:
        unet: nn.Module = self.model.model.diffusion_model
        return unet

    @cached_property
    def layers(self) -> Layers:
        return {name: LdmLayer(module) for name, module in self_attention_modules(self.unet).items()}

    def is_supported(self) -> bool:
        model = self.model
        return (
            any(getattr(model, family, False) for family in FAMILIES)
            and model.model.conditioning_key != UNCLIP
            and getattr(model, "depth_model", None) is None
        )

    def is_instruct_pix2pix(self) -> bool:
        return getattr(self.model, "cond_stage_key", None) == "edit"

    def is_inpainting(self) -> bool:
        return getattr(self.model, "is_sdxl_inpaint", False) or (
            self.model.model.conditioning_key in ("hybrid", "concat") and not self.is_instruct_pix2pix()
        )

    def refusals(self) -> Mapping[str, bool]:
        return {
            "Tiled Diffusion evaluates tiles, but RIVAL needs the whole image; switch it off, or make its tiles at "
            "least as large as the image.": uses_tiled_diffusion(self.p)
        }

    def notes(self) -> Sequence[str]:
        return ()

    def is_steered(self) -> bool:
        return controlnet_steers(self.p)

    @torch.no_grad()
    def encode(self, image: Image.Image) -> Tensor:
        method = shared.opts.sd_vae_encode_method
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)[None]
        pixels = pixels.to(shared.device, dtype=devices.dtype_vae)
        if method == "Full":
            self.model.first_stage_model.to(devices.dtype_vae)
            return self._posterior_mean(pixels * 2 - 1).float()
        approximation = sd_samplers_common.approximation_indexes[method]
        return sd_samplers_common.images_tensor_to_samples(pixels, approximation, self.model).float()

    def _posterior_mean(self, pixels: Tensor) -> Tensor:
        """The mean in the model's scaling. SDXL's own encoding returns only a sample, so a hook reads the mean."""
        model = self.model
        moments: list[Tensor] = []
        handle = model.first_stage_model.quant_conv.register_forward_hook(lambda *seen: moments.append(seen[-1]))
        try:
            # the sample is not used, so it must not move the random generator
            with random_numbers_kept(shared.device):
                encoded = model.encode_first_stage(pixels)
        finally:
            handle.remove()
        if isinstance(encoded, Tensor):
            return model.scale_factor * moments[0].chunk(2, dim=1)[0]
        return model.get_first_stage_encoding(encoded.mode())

    def predict_noise(
        self,
        convention: SamplerConvention,
        latent: Tensor,
        noise_levels: Sequence[float],
        texts: Mapping[str, Any],
        image: Tensor,
    ) -> Tensor:
        with without_other_extensions(self.unet):
            latent = latent * by_row([convention.scale(level) for level in noise_levels], latent)
            return convention.predict_noise(latent, noise_levels, {**texts, "c_concat": [image]})

    @contextmanager
    def without_networks(self) -> Iterator[None]:
        p = self.p
        networks = p.hr_extra_network_data if getattr(p, "is_hr_pass", False) else p.extra_network_data
        self.networks_are_aside = True
        try:
            extra_networks.activate(p, {})
            yield
        finally:
            self.networks_are_aside = False
            extra_networks.activate(p, networks or {})

    def inverting(self) -> AbstractContextManager[None]:
        return nullcontext()

    def guided(self) -> AbstractContextManager[None]:
        return references_without_exemplar(self.p)

    def keeping_region(self, denoiser: Any, clean: Tensor, noisy: Tensor) -> AbstractContextManager[None]:
        return instance_attribute(denoiser, "init_latent", clean)

    def correct_uncond(self, denoiser: Any, correction: Tensor) -> None:
        correct_last_noise(denoiser, correction)

    def switch_to_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor, noise_level: float) -> bool:
        switched: bool = sd_samplers_common.apply_refiner(denoiser, sigma)
        return switched

    def fingerprint(self) -> Iterator[object]:
        yield getattr(self.model, "applied_token_merged_ratio", 0), self.model.alphas_cumprod.tolist()
        yield getattr(sd_hijack.current_optimizer, "name", None)
        yield list(_loras())
        yield [(network.name, network.filename, _multipliers(network)) for network in shared.loaded_hypernetworks]


def _multipliers(network: Any) -> list[float]:
    return [layer.multiplier for layers in network.layers.values() for layer in layers]


def _loras() -> Iterable[object]:
    """What identifies the LoRAs that the WebUI's own Lora extension has merged, for the prompt or for an option."""
    for network in getattr(sys.modules.get("networks"), "loaded_networks", ()):
        strengths = network.te_multiplier, network.unet_multiplier, network.dyn_dim
        yield network.name, network.network_on_disk.filename, network.mtime, *strengths
