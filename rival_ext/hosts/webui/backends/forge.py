"""Forge's loaded checkpoint: an engine of Forge's own, behind patchers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from backend import attention
from backend.nn.unet import IntegratedUNet2DConditionModel
from backend.sampling.condition import Condition, compile_conditions
from backend.sampling.sampling_function import sampling_cleanup, sampling_function_inner, sampling_prepare
from modules import sd_models, sd_samplers_common, shared
from PIL import Image
from torch import Tensor

from rival_ext.hosts.webui.backends.patched import FAMILIES, INPAINTING_CHANNELS, TEXT_CHANNELS, PatchedModel
from rival_ext.hosts.webui.patching import instance_attribute, random_numbers_kept
from rival_ext.hosts.webui.samplers import SigmaConvention, correct_last_noise

FLOW = "const"
"""The host's name for the prediction of flow matching."""

REFINER = "StableDiffusionXLRefiner"
"""The host's engine for SDXL's refiner, which can only finish what another checkpoint has begun."""


class ForgeSigmaConvention(SigmaConvention):
    """k-diffusion, which counts in the sigmas of the checkpoint's predictor."""

    @staticmethod
    def alphas(sampler: Any) -> Tensor:
        sigmas = shared.sd_model.forge_objects.unet.model.predictor.sigmas
        return 1 / (sigmas**2 + 1)


class ForgeModel(PatchedModel):
    """Forge's loaded checkpoint (`LoadedModel`)."""

    sigma_convention = ForgeSigmaConvention

    def is_supported(self) -> bool:
        engine = self.engine
        return (
            any(getattr(engine, family, False) for family in FAMILIES)
            and isinstance(self.unet, IntegratedUNet2DConditionModel)
            and self.unet.in_channels in (TEXT_CHANNELS, INPAINTING_CHANNELS)
            and engine.forge_objects.unet.model.predictor.prediction_type != FLOW
            and type(engine).__name__ != REFINER
        )

    def is_instruct_pix2pix(self) -> bool:
        # the host takes such a checkpoint for an inpainting one, and fails
        return False

    def is_inpainting(self) -> bool:
        inpainting: bool = self.engine.is_inpaint
        return inpainting

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        method = shared.opts.sd_vae_encode_method
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]
        if method != "Full":
            approximation = sd_samplers_common.approximation_indexes[method]
            pixels = pixels.movedim(-1, 1).to(shared.device)
            return sd_samplers_common.images_tensor_to_samples(pixels, approximation, self.engine).float()
        # short of memory, the host encodes in tiles and draws a sample, which must not move the random generator
        with random_numbers_kept(shared.device):
            encoded = self._posterior_mean(pixels)
        latent: Tensor = self.engine.forge_objects.vae.first_stage_model.process_in(encoded).to(shared.device).float()
        return latent

    def _posterior_mean(self, pixels: Tensor) -> Tensor:
        """The unscaled mean, `[1, C, H, W]`, of pixels `[1, H, W, 3]` from 0 to 1."""
        vae = self.engine.forge_objects.vae.clone()
        vae.patcher.set_model_vae_regulation(lambda posterior: posterior.mode())
        mean: Tensor = vae.encode(pixels)
        return mean

    def _prepare(self, unet: Any, latent: Tensor) -> None:
        sampling_prepare(unet, x=latent)

    def _clean_up(self, unet: Any) -> None:
        sampling_cleanup(unet)

    def _predict_clean(self, unet: Any, latent: Tensor, sigma: Tensor, texts: Any, image: Tensor | None) -> Tensor:
        conditions = compile_conditions(texts)
        if image is not None:
            conditions[0]["model_conds"]["c_concat"] = Condition(image)
        clean: Tensor = sampling_function_inner(unet.model, latent, sigma, None, conditions, 1.0, unet.model_options)
        return clean

    def _track_prompt_pass(self, unet: Any) -> None:
        state, options = self.state, unet.model_options

        def begin(*asked: Any) -> tuple[Any, ...]:
            state.is_prompt_pass = True
            return asked

        def end(done: dict[str, Any]) -> Tensor:
            state.is_prompt_pass = False
            denoised: Tensor = done["denoised"]
            return denoised

        options["sampler_pre_cfg_function"] = [*options.get("sampler_pre_cfg_function", []), begin]
        options["sampler_post_cfg_function"] = [end, *options.get("sampler_post_cfg_function", [])]

    @contextmanager
    def keeping_region(self, denoiser: Any, clean: Tensor, noisy: Tensor) -> Iterator[None]:
        predictor = self.engine.forge_objects.unet.model.predictor
        with (
            instance_attribute(denoiser, "init_latent", clean),
            # the host would add fresh noise to the kept region at each level
            instance_attribute(predictor, "noise_scaling", lambda *_, **__: noisy),
        ):
            yield

    def correct_uncond(self, denoiser: Any, correction: Tensor) -> None:
        correct_last_noise(denoiser, correction)

    def fingerprint(self) -> Iterator[object]:
        unet = self._exemplar_unet
        loaded = sd_models.model_data.forge_loading_parameters
        yield loaded.get("additional_modules"), loaded.get("unet_storage_dtype")
        yield unet.model.predictor.sigmas.tolist(), unet.model.predictor.prediction_type
        yield unet.model.storage_dtype, unet.model.computation_dtype, attention.attention_function.__name__
        yield self._acting_networks(), self._lora_files()

    def _acting_networks(self) -> object:
        """What identifies the LoRAs that act on the exemplar."""
        return [name for name, patches in self._exemplar_unet.lora_patches.items() if patches]
