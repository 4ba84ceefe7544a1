"""Forge's loaded checkpoint: an engine of its own, reached through patchers and under its own memory management."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from backend import attention
from backend.nn.unet import IntegratedUNet2DConditionModel
from backend.sampling.condition import Condition, compile_conditions
from backend.sampling.sampling_function import sampling_cleanup, sampling_function_inner, sampling_prepare
from modules import sd_models, sd_samplers_common, shared
from PIL import Image
from torch import Tensor, nn

from rival_ext.attention import Layers, self_attention_modules
from rival_ext.chain import Chain
from rival_ext.hosts.forge_patches import Board, PatchedLayer, patch, place_of
from rival_ext.hosts.webui_neighbours import instance_attribute
from rival_ext.hosts.webui_samplers import SamplerForm, SigmaForm, TimestepForm, clean_prediction

FAMILIES = ("is_sd1", "is_sd2", "is_sdxl")
"""The host's marks on a checkpoint whose UNet has the self-attention layers of the method."""

FLOW = "const"
"""What the host calls the prediction of flow matching."""

REFINER = "StableDiffusionXLRefiner"
"""The host's engine for SDXL's refiner, which only finishes what another checkpoint has begun."""


class ForgeSigmaForm(SigmaForm):
    """k-diffusion counts in the sigmas of the checkpoint's predictor."""

    @staticmethod
    def alphas(sampler: Any) -> Tensor:
        sigmas = shared.sd_model.forge_objects.unet.model.predictor.sigmas
        return 1 / (sigmas**2 + 1)


class ForgeTimestepForm(TimestepForm):
    """The DDIM family: outside as AUTOMATIC1111's, inside the denoiser evaluates and blends clean predictions."""

    def noise_level(self, clock: float) -> float:
        # the denoiser looks its level up by whole timesteps
        return super().noise_level(round(clock))

    def kept(self, chain: Chain, noise_level: float) -> Tensor:
        return clean_prediction(chain, noise_level)


class ForgeModel:
    """See `rival_ext.hosts.webui_platform.LoadedModel`."""

    sigma_form = ForgeSigmaForm
    timestep_form = ForgeTimestepForm

    def __init__(self, p: Any):
        self.p = p
        self.engine = p.sd_model
        self.board = Board()
        self._networks_are_aside = False
        self._ready: Any = None

    @property
    def unet(self) -> nn.Module:
        unet: nn.Module = self.engine.forge_objects.unet.model.diffusion_model
        return unet

    @cached_property
    def layers(self) -> Layers:
        return {name: PatchedLayer(place_of(name), self.board) for name in self_attention_modules(self.unet)}

    def is_known(self) -> bool:
        engine = self.engine
        return (
            any(getattr(engine, family, False) for family in FAMILIES)
            and isinstance(self.unet, IntegratedUNet2DConditionModel)
            and engine.forge_objects.unet.model.predictor.prediction_type != FLOW
            and type(engine).__name__ != REFINER
        )

    def changes_an_image(self) -> bool:
        # the host loads none of these
        return False

    def is_inpainting(self) -> bool:
        inpainting: bool = self.engine.is_inpaint
        return inpainting

    def refusals(self) -> Mapping[str, bool]:
        return {
            "MultiDiffusion evaluates tiles, none of which is the whole image; switch it off.": (
                "model_function_wrapper" in self.engine.forge_objects.unet.model_options
            )
        }

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        method = shared.opts.sd_vae_encode_method
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)[None]
        if method != "Full":
            approximation = sd_samplers_common.approximation_indexes[method]
            pixels = pixels.movedim(-1, 1).to(shared.device)
            return sd_samplers_common.images_tensor_to_samples(pixels, approximation, self.engine).float()
        vae = self.engine.forge_objects.vae.clone()
        vae.patcher.set_model_vae_regulation(lambda posterior: posterior.mode())
        # in tiles, where memory runs out, it draws samples all the same: these must not move the generator
        with torch.random.fork_rng(devices=[]):
            encoded = vae.encode(pixels)
        latent: Tensor = vae.first_stage_model.process_in(encoded).to(shared.device).float()
        return latent

    @torch.inference_mode()
    def predict_noise(
        self, form: SamplerForm, latent: Tensor, noise_level: float, texts: Mapping[str, Any], image: Tensor
    ) -> Tensor:
        unet = self._exemplars_unet
        if self._ready is not unet:
            sampling_prepare(unet, x=latent)
            self._ready, self._latent = unet, latent
        conditions = compile_conditions(texts["c_crossattn"][0] if "c_crossattn" in texts else texts)
        if self.is_inpainting():
            conditions[0]["model_conds"]["c_concat"] = Condition(image)
        sigma = torch.full((len(latent),), noise_level, dtype=torch.float32, device=latent.device)
        clean = sampling_function_inner(unet.model, latent, sigma, None, conditions, 1.0, unet.model_options)
        return (latent - clean) / noise_level

    @property
    def _exemplars_unet(self) -> Any:
        """A patcher with nothing of a neighbour's, and the prompt's LoRAs or none."""
        return self._plain_unet if self._networks_are_aside else self._unet_with_networks

    @cached_property
    def _unet_with_networks(self) -> Any:
        return patch(self.engine.forge_objects_after_applying_lora.unet, self.board, self._modules)

    @cached_property
    def _plain_unet(self) -> Any:
        return patch(self.engine.forge_objects_original.unet, self.board, self._modules)

    @cached_property
    def _modules(self) -> dict[tuple[str, int, int], nn.Module]:
        return {place_of(name): module for name, module in self_attention_modules(self.unet).items()}

    @contextmanager
    def without_networks(self) -> Iterator[None]:
        objects = self.engine.forge_objects
        self.engine.forge_objects = self.engine.forge_objects_original.shallow_copy()
        self._networks_are_aside = True
        before = self._ready
        try:
            yield
        finally:
            self._networks_are_aside = False
            self.engine.forge_objects = objects
            if before is not None and self._ready is not before:
                # in the middle of the generation, whose weights are merged with the LoRAs
                sampling_prepare(before, x=self._latent)
                self._ready = before

    @contextmanager
    def inverting(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._ready is not None:
                sampling_cleanup(self._ready)
                self._ready = None

    @contextmanager
    def guided(self) -> Iterator[None]:
        objects = self.engine.forge_objects
        patched = objects.shallow_copy()
        patched.unet = patch(objects.unet, self.board, self._modules)
        self.engine.forge_objects = patched
        self._ready = self._unet_with_networks
        try:
            yield
        finally:
            self._ready = None
            self.engine.forge_objects = objects

    @contextmanager
    def keeping(self, denoiser: Any, clean: Tensor, noisy: Tensor) -> Iterator[None]:
        predictor = self.engine.forge_objects.unet.model.predictor
        with (
            instance_attribute(denoiser, "init_latent", clean),
            # the host would add fresh noise to what is kept at each level
            instance_attribute(predictor, "noise_scaling", lambda *_, **__: noisy),
        ):
            yield

    def has_switched(self, denoiser: Any, x: Tensor, sigma: Tensor) -> bool:
        switched: bool = sd_samplers_common.apply_refiner(denoiser, x)
        return switched

    def fingerprint(self) -> Iterator[object]:
        unet = self._exemplars_unet
        loaded = sd_models.model_data.forge_loading_parameters
        yield loaded.get("additional_modules"), loaded.get("unet_storage_dtype")
        yield unet.model.predictor.sigmas.tolist(), unet.model.predictor.prediction_type
        yield unet.model.storage_dtype, unet.model.computation_dtype, attention.attention_function.__name__
        yield [name for name, patches in unet.lora_patches.items() if patches]
