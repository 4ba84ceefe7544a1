"""What Forge and reForge share: a loaded checkpoint behind patchers, under the host's own memory management."""

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

from rival_ext.hosts.webui.backends.patches import (
    BlockKey,
    PatchedLayer,
    PatchState,
    block_key,
    patched_clone,
    replaced_blocks,
)
from rival_ext.hosts.webui.samplers import (
    SamplerConvention,
    SigmaConvention,
    TimestepConvention,
    by_row,
    clean_prediction,
)
from rival_ext.method.attention import Layers
from rival_ext.method.chain import Chain
from rival_ext.method.layers import self_attention_modules

FAMILIES = ("is_sd1", "is_sd2", "is_sdxl")
"""The hosts' marks on a checkpoint whose UNet has the self-attention layers of the method."""

TEXT_CHANNELS, INPAINTING_CHANNELS = 4, 9
"""How many channels the UNet of a text checkpoint and of an inpainting checkpoint sees."""


class PatchedTimestepConvention(TimestepConvention):
    """The DDIM family in Forge and reForge.

    The samplers are AUTOMATIC1111's, but inside the denoiser the model predicts the clean latent. So the denoiser
    blends the kept region of an inpainted image into that prediction, not into the noisy latent.
    """

    def noise_level(self, sigma: float) -> float:
        # the denoiser looks its level up by whole timesteps
        return super().noise_level(round(sigma))

    def kept_latent(self, chain: Chain, noise_level: float) -> Tensor:
        return clean_prediction(chain, noise_level)


class PatchedModel(ABC):
    """The part of `LoadedModel` that Forge and reForge share.

    Args:
        p: The host's processing.
    """

    sigma_convention: type[SigmaConvention]
    timestep_convention = PatchedTimestepConvention

    def __init__(self, p: Any):
        self.p = p
        self.engine = p.sd_model
        self.state = PatchState()
        self.networks_are_aside = False
        self._prepared_unet: Any = None
        """The patcher whose weights the host has loaded for the exemplar's evaluations, or None."""
        self._prepared_latent: Tensor | None = None

    @staticmethod
    def errors_on_page() -> AbstractContextManager[None]:
        return nullcontext()

    @abstractmethod
    def _prepare(self, unet: Any, latent: Tensor) -> None:
        """Have the host load a patcher's weights, and get the memory for evaluations of such a latent."""

    @abstractmethod
    def _clean_up(self, unet: Any) -> None:
        """Give back what `_prepare` has got for a patcher."""

    @abstractmethod
    def _predict_clean(self, unet: Any, latent: Tensor, sigma: Tensor, texts: Any, image: Tensor | None) -> Tensor:
        """Evaluate a patcher's model without guidance.

        Args:
            unet: The patcher.
            latent: `[rows, C, H, W]`, variance-exploding.
            sigma: The noise level of each row, `[rows]`.
            texts: The conditioning of each row, as the host's prompts have it.
            image: `[rows, 5, H, W]`, what an inpainting UNet sees beside the latent, or None for other checkpoints.

        Returns:
            The clean latent that the model predicts, `[rows, C, H, W]`.
        """

    @abstractmethod
    def _track_prompt_pass(self, unet: Any) -> None:
        """Register functions on a patcher that keep `state.is_prompt_pass` up to date."""

    @abstractmethod
    def is_inpainting(self) -> bool: ...

    @property
    def unet(self) -> nn.Module:
        unet: nn.Module = self.engine.forge_objects.unet.model.diffusion_model
        return unet

    @cached_property
    def layers(self) -> Layers:
        return {
            name: PatchedLayer(block_key(name), module, self.state)
            for name, module in self_attention_modules(self.unet).items()
        }

    def refusals(self) -> Mapping[str, bool]:
        return {
            "MultiDiffusion evaluates tiles, but RIVAL needs the whole image; switch it off.": (
                "model_function_wrapper" in self.engine.forge_objects.unet.model_options
            )
        }

    def notes(self) -> Sequence[str]:
        replaced = replaced_blocks(self.engine.forge_objects.unet.model_options) & self._modules.keys()
        note = f"another extension replaces {len(replaced)} of the layers and only the others see the exemplar"
        return [note] if replaced else ()

    def is_steered(self) -> bool:
        return self.engine.forge_objects.unet.controlnet_linked_list is not None

    @torch.inference_mode()
    def predict_noise(
        self,
        convention: SamplerConvention,
        latent: Tensor,
        noise_levels: Sequence[float],
        texts: Mapping[str, Any],
        image: Tensor,
    ) -> Tensor:
        unet = self._exemplar_unet
        if self._prepared_unet is not unet:
            self._prepare(unet, latent)
            self._prepared_unet, self._prepared_latent = unet, latent
        sigma = torch.tensor(noise_levels, dtype=torch.float32, device=latent.device)
        text = texts["c_crossattn"][0] if "c_crossattn" in texts else texts
        clean = self._predict_clean(unet, latent, sigma, text, image if self.is_inpainting() else None)
        return (latent - clean) / by_row(noise_levels, latent)

    @contextmanager
    def without_networks(self) -> Iterator[None]:
        objects = self.engine.forge_objects
        self.engine.forge_objects = self.engine.forge_objects_original.shallow_copy()
        self.networks_are_aside = True
        before = self._prepared_unet
        try:
            yield
        finally:
            self.networks_are_aside = False
            self.engine.forge_objects = objects
            if before is not None and self._prepared_unet is not before:
                # the generation goes on with weights into which the LoRAs are merged
                assert self._prepared_latent is not None
                self._prepare(before, self._prepared_latent)
                self._prepared_unet = before

    @contextmanager
    def inverting(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._prepared_unet is not None:
                self._clean_up(self._prepared_unet)
                self._prepared_unet = None

    @contextmanager
    def guided(self) -> Iterator[None]:
        objects = self.engine.forge_objects
        guided = objects.shallow_copy()
        guided.unet = self._patched(objects.unet)
        self.engine.forge_objects = guided
        # the host itself loads the weights with the LoRAs for its sampling
        self._prepared_unet = self._unet_with_networks
        try:
            yield
        finally:
            self._prepared_unet = None
            self.engine.forge_objects = objects

    def switch_to_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor, noise_level: float) -> bool:
        switched: bool = sd_samplers_common.apply_refiner(denoiser, x)
        return switched

    @property
    def _exemplar_unet(self) -> Any:
        """A patcher without other extensions, and with the prompt's LoRAs unless they are put aside."""
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
        """Clone a patcher, let the guide into the clone's self-attention layers, and track its prompt pass."""
        clone = patched_clone(unet, self.state, self._modules)
        self._track_prompt_pass(clone)
        return clone

    def _lora_files(self) -> list[object]:
        """The files of the LoRAs that act on the exemplar, each with the time at which the host saw it written."""
        if self.networks_are_aside:
            return []
        loaded = getattr(sys.modules.get("networks"), "loaded_networks", ())
        return [(network.network_on_disk.filename, network.mtime) for network in loaded]
