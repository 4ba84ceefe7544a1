"""A loaded checkpoint behind patchers, as Forge and reForge have it: under their own memory management."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from modules import sd_samplers_common
from torch import Tensor, nn

from rival_ext.hosts.webui.backends.patches import BlockKey, PatchedLayer, PatchState, block_key, patch, taken
from rival_ext.hosts.webui.samplers import SamplerConvention, SigmaConvention, TimestepConvention, clean_prediction
from rival_ext.method.attention import Layers
from rival_ext.method.chain import Chain
from rival_ext.method.layers import self_attention_modules

FAMILIES = ("is_sd1", "is_sd2", "is_sdxl")
"""The hosts' marks on a checkpoint whose UNet has the self-attention layers of the method."""


class PatchedTimestepConvention(TimestepConvention):
    """The DDIM family: outside as AUTOMATIC1111's, inside the denoiser evaluates and blends clean predictions."""

    def noise_level(self, sigma: float) -> float:
        # the denoiser looks its level up by whole timesteps
        return super().noise_level(round(sigma))

    def kept_latent(self, chain: Chain, noise_level: float) -> Tensor:
        return clean_prediction(chain, noise_level)


class PatchedModel(ABC):
    """What the hosts have in common of `LoadedModel`."""

    sigma_convention: type[SigmaConvention]
    timestep_convention = PatchedTimestepConvention

    def __init__(self, p: Any):
        self.p = p
        self.engine = p.sd_model
        self.state = PatchState()
        self.networks_are_aside = False
        self._ready: Any = None

    @staticmethod
    def errors_on_page() -> AbstractContextManager[None]:
        return nullcontext()

    @abstractmethod
    def _prepare(self, unet: Any, latent: Tensor) -> None:
        """Asks the host for the memory that a patcher's evaluations take."""

    @abstractmethod
    def _clean_up(self, unet: Any) -> None:
        """Gives it back."""

    @abstractmethod
    def _denoised(self, unet: Any, latent: Tensor, sigma: Tensor, texts: Any, image: Tensor | None) -> Tensor:
        """The clean prediction of a patcher's model for conditionings as the host's prompts have them.

        image: what the UNet sees beside the latent, if it does.
        """

    @abstractmethod
    def _mark_own_pass(self, unet: Any) -> None:
        """Has a patcher keep `state.is_own_pass`."""

    @abstractmethod
    def is_inpainting(self) -> bool: ...

    @property
    def unet(self) -> nn.Module:
        unet: nn.Module = self.engine.forge_objects.unet.model.diffusion_model
        return unet

    @cached_property
    def layers(self) -> Layers:
        return {name: PatchedLayer(block_key(name), self.state) for name in self_attention_modules(self.unet)}

    def refusals(self) -> Mapping[str, bool]:
        return {
            "MultiDiffusion evaluates tiles, none of which is the whole image; switch it off.": (
                "model_function_wrapper" in self.engine.forge_objects.unet.model_options
            )
        }

    def notes(self) -> Sequence[str]:
        count = len(taken(self.engine.forge_objects.unet.model_options) & self._modules.keys())
        return [f"another extension's attention stands in for {count} of the layers"] if count else ()

    @torch.inference_mode()
    def predict_noise(
        self, convention: SamplerConvention, latent: Tensor, noise_level: float, texts: Mapping[str, Any], image: Tensor
    ) -> Tensor:
        unet = self._exemplars_unet
        if self._ready is not unet:
            self._prepare(unet, latent)
            self._ready, self._latent = unet, latent
        sigma = torch.full((len(latent),), noise_level, dtype=torch.float32, device=latent.device)
        text = texts["c_crossattn"][0] if "c_crossattn" in texts else texts
        clean = self._denoised(unet, latent, sigma, text, image if self.is_inpainting() else None)
        return (latent - clean) / noise_level

    @property
    def _exemplars_unet(self) -> Any:
        """A patcher with nothing of a neighbour's, and the prompt's LoRAs or none."""
        return self._plain_unet if self.networks_are_aside else self._unet_with_networks

    @cached_property
    def _unet_with_networks(self) -> Any:
        return self._patched(self.engine.forge_objects_after_applying_lora.unet)

    @cached_property
    def _plain_unet(self) -> Any:
        return self._patched(self.engine.forge_objects_original.unet)

    @cached_property
    def _modules(self) -> dict[BlockKey, nn.Module]:
        return {block_key(name): module for name, module in self_attention_modules(self.unet).items()}

    def _patched(self, unet: Any) -> Any:
        patched = patch(unet, self.state, self._modules)
        self._mark_own_pass(patched)
        return patched

    def _lora_files(self) -> list[object]:
        """Of the LoRAs that the exemplar is evaluated with: the files, and when each was written as the host looked."""
        if self.networks_are_aside:
            return []
        loaded = getattr(sys.modules.get("networks"), "loaded_networks", ())
        return [(network.network_on_disk.filename, network.mtime) for network in loaded]

    @contextmanager
    def without_networks(self) -> Iterator[None]:
        objects = self.engine.forge_objects
        self.engine.forge_objects = self.engine.forge_objects_original.shallow_copy()
        self.networks_are_aside = True
        before = self._ready
        try:
            yield
        finally:
            self.networks_are_aside = False
            self.engine.forge_objects = objects
            if before is not None and self._ready is not before:
                # in the middle of the generation, whose weights are merged with the LoRAs
                self._prepare(before, self._latent)
                self._ready = before

    @contextmanager
    def inverting(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._ready is not None:
                self._clean_up(self._ready)
                self._ready = None

    @contextmanager
    def guided(self) -> Iterator[None]:
        objects = self.engine.forge_objects
        patched = objects.shallow_copy()
        patched.unet = self._patched(objects.unet)
        self.engine.forge_objects = patched
        self._ready = self._unet_with_networks
        try:
            yield
        finally:
            self._ready = None
            self.engine.forge_objects = objects

    def switch_to_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor, noise_level: float) -> bool:
        switched: bool = sd_samplers_common.apply_refiner(denoiser, x)
        return switched
