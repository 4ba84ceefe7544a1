"""Forge Neo's loaded checkpoint: where it differs from Forge's. Written after Neo's sources, never run in Neo."""

from __future__ import annotations

from typing import Any

from modules import sd_samplers_common
from torch import Tensor

from rival_ext.hosts.webui.backends.forge import ForgeModel
from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.hosts.webui.samplers import correct_last_noise


class NeoModel(ForgeModel):
    """Forge Neo's loaded checkpoint (`LoadedModel`)."""

    def _posterior_mean(self, pixels: Tensor) -> Tensor:
        vae = self.engine.forge_objects.vae
        model = vae.first_stage_model

        def encode_mean(pixels: Tensor) -> Tensor:
            moments = model.encoder(pixels)
            if model.quant_conv is not None:
                moments = model.quant_conv(moments)
            mean: Tensor = moments.chunk(2, dim=1)[0]
            return mean

        # Neo's own `encode` always draws a sample, whatever the patcher's option says
        with instance_attribute(model, "encode", encode_mean):
            encoded: Tensor = vae.encode(pixels)
        return encoded

    def _track_prompt_pass(self, unet: Any) -> None:
        super()._track_prompt_pass(unet)
        options = unet.model_options

        def keep_uncond(done: dict[str, Any]) -> Tensor:
            self._uncond_prediction = done["uncond_denoised"]
            denoised: Tensor = done["denoised"]
            return denoised

        options["sampler_post_cfg_function"] = [keep_uncond, *options["sampler_post_cfg_function"]]

    def correct_uncond(self, denoiser: Any, correction: Tensor) -> None:
        if denoiser.need_last_noise_uncond:
            correct_last_noise(denoiser, correction)
        else:
            # in place, because a sampler of k-diffusion already holds this tensor
            self._uncond_prediction += correction

    def switch_to_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor, noise_level: float) -> bool:
        switched: bool = sd_samplers_common.apply_refiner(denoiser, x, noise_level)
        return switched

    def _acting_networks(self) -> object:
        # Neo has moved a patcher's list of LoRAs more than once
        return None if self.networks_are_aside else self.engine.current_lora_hash
