"""What differs between the WebUIs: the loaded checkpoint, and what evaluates it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn

from rival_ext.hosts.webui.samplers import SamplerConvention, SigmaConvention, TimestepConvention
from rival_ext.method.attention import Layers


class LoadedModel(Protocol):
    """The checkpoint that a batch is made with, in its host.

    unet: what is evaluated. layers: its self-attention.
    sigma_convention, timestep_convention: the translations of the two families of samplers.
    """

    @property
    def sigma_convention(self) -> type[SigmaConvention]: ...

    @property
    def timestep_convention(self) -> type[TimestepConvention]: ...

    @property
    def unet(self) -> nn.Module: ...

    @property
    def layers(self) -> Layers: ...

    def __init__(self, p: Any) -> None: ...

    @staticmethod
    def errors_on_page() -> AbstractContextManager[None]:
        """Around a run: what it raises is shown to its user, as most hosts do by themselves."""

    @property
    def networks_are_aside(self) -> bool:
        """Whether `without_networks` is entered now."""

    def is_supported(self) -> bool:
        """Whether it is a Stable Diffusion 1, 2 or XL whose self-attention is the method's."""

    def is_instruct_pix2pix(self) -> bool:
        """Whether it sees an image beside the latent and changes it as the prompt says (8 channels)."""

    def is_inpainting(self) -> bool:
        """Whether it sees a mask beside the latent and what lies around it (9 channels)."""

    def refusals(self) -> Mapping[str, bool]:
        """Sentences on what cannot be honoured in this host alone, and whether it is wanted."""

    def notes(self) -> Sequence[str]:
        """For the report: what a neighbour takes from the guided sampling, which is otherwise as asked for."""

    def encode(self, image: Image.Image) -> Tensor:
        """`[1, C, H, W]`: an RGB image as the host would encode it, but with the mean of the VAE's posterior."""

    def predict_noise(
        self, convention: SamplerConvention, latent: Tensor, noise_level: float, texts: Mapping[str, Any], image: Tensor
    ) -> Tensor:
        """`eps` of a variance-exploding latent `[rows, C, H, W]`, unguided, with nothing of a neighbour's steering.

        texts: the host's conditioning of a prompt a row. image: what some checkpoints see beside the latent.
        """

    def without_networks(self) -> AbstractContextManager[None]:
        """While this runs the prompt's LoRAs do not act."""

    def inverting(self) -> AbstractContextManager[None]:
        """Around the inversions of a run, before its sampling."""

    def guided(self) -> AbstractContextManager[None]:
        """Around the host's own sampling."""

    def keeping_region(self, denoiser: Any, clean: Tensor, noisy: Tensor) -> AbstractContextManager[None]:
        """Around a call of the guided denoiser: what it blends into the kept region of an inpainted picture.

        clean: in the form that it blends in. noisy: the chain's latent, variance-exploding.
        """

    def correct_uncond(self, denoiser: Any, correction: Tensor) -> None:
        """Adds what the guide has changed in the denoiser's answer to its prediction without the prompt, where the
        sampler takes its direction from that (CFG++)."""

    def switch_to_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor, noise_level: float) -> bool:
        """Switches to the refiner where the host would in this call, and says whether it has just done so.

        sigma: what the denoiser is told. noise_level: what that means.
        """

    def fingerprint(self) -> Iterable[Tensor | object]:
        """What of this host alone changes a prediction."""
