"""Forge Neo's loaded checkpoint: Forge's, where the two differ. Written after Neo's files, never run in it."""

from __future__ import annotations

from typing import Any

from backend.nn.vae import DiagonalGaussianDistribution
from modules import sd_samplers_common
from torch import Tensor

from rival_ext.hosts.webui.backends.forge import ForgeModel
from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.hosts.webui.samplers import correct_last_noise


class NeoModel(ForgeModel):
    """See `LoadedModel`."""

    def _posterior_mean(self, pixels: Tensor) -> Tensor:
        # its encoder draws a sample, whatever a patcher asks for
        with instance_attribute(DiagonalGaussianDistribution, "sample", DiagonalGaussianDistribution.mode):
            mean: Tensor = self.engine.forge_objects.vae.encode(pixels)
        return mean

    def _mark_own_pass(self, unet: Any) -> None:
        super()._mark_own_pass(unet)
        options = unet.model_options

        def look(done: dict[str, Any]) -> Tensor:
            self._uncond_prediction = done["uncond_denoised"]
            denoised: Tensor = done["denoised"]
            return denoised

        options["sampler_post_cfg_function"] = [look, *options["sampler_post_cfg_function"]]

    def correct_uncond(self, denoiser: Any, correction: Tensor) -> None:
        if denoiser.need_last_noise_uncond:
            correct_last_noise(denoiser, correction)
        else:
            # in key: a sampler of k-diffusion's has looked at it already
            self._uncond_prediction += correction

    def switch_to_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor, noise_level: float) -> bool:
        switched: bool = sd_samplers_common.apply_refiner(denoiser, x, noise_level)
        return switched

    def _acting_networks(self) -> object:
        # where a patcher keeps them has changed more than once
        return None if self.networks_are_aside else self.engine.current_lora_hash
