"""What a WebUI must give for a loaded checkpoint. Each WebUI has its own class (`backends.MODEL_CLASSES`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from PIL import Image
from torch import Tensor, nn

from rival_ext.hosts.webui.samplers import SamplerConvention, SigmaConvention, TimestepConvention
from rival_ext.method.attention import Layers


class LoadedModel(Protocol):
    """The checkpoint with which a batch is made.

    Args:
        p: The host's processing.
    """

    def __init__(self, p: Any) -> None: ...

    @property
    def sigma_convention(self) -> type[SigmaConvention]:
        """The class that describes k-diffusion's samplers in this WebUI."""

    @property
    def timestep_convention(self) -> type[TimestepConvention]:
        """The class that describes the DDIM family's samplers in this WebUI."""

    @property
    def unet(self) -> nn.Module:
        """The UNet."""

    @property
    def layers(self) -> Layers:
        """The UNet's self-attention layers by name, in network order."""

    @property
    def networks_are_aside(self) -> bool:
        """Whether `without_networks` is open now."""

    @staticmethod
    def errors_on_page() -> AbstractContextManager[None]:
        """Show what a run raises to its user, on a host that would not show it by itself.

        Returns:
            A context manager to open around a run. It passes every exception on.
        """

    def is_supported(self) -> bool:
        """Tell whether the checkpoint is a Stable Diffusion 1, 2 or XL whose self-attention the method knows."""

    def is_instruct_pix2pix(self) -> bool:
        """Tell whether the UNet sees an image beside the latent and changes it as the prompt says (8 channels)."""

    def is_inpainting(self) -> bool:
        """Tell whether the UNet sees a mask beside the latent, and what lies around the mask (9 channels)."""

    def refusals(self) -> Mapping[str, bool]:
        """List what cannot be honoured in this WebUI alone.

        Returns:
            For each refusal its sentence, and whether it applies to this run.
        """

    def notes(self) -> Sequence[str]:
        """List what another extension takes away from the guided sampling.

        Returns:
            Sentences for the report, often none.
        """

    def is_steered(self) -> bool:
        """Tell whether ControlNet steers the sampling that is about to begin. Reference units do not count."""

    def encode(self, image: Image.Image) -> Tensor:
        """Encode an image as the host does, but with the mean of the VAE's posterior.

        Args:
            image: An image of any mode, 8x8 pixels or more.

        Returns:
            `[1, C, height // 8, width // 8]`, float32, in the model's scaling, on the model's device.
        """

    def predict_noise(
        self,
        convention: SamplerConvention,
        latent: Tensor,
        noise_levels: Sequence[float],
        texts: Mapping[str, Any],
        image: Tensor,
    ) -> Tensor:
        """Evaluate the UNet without guidance, while no other extension steers it.

        Args:
            convention: The convention of the sampler.
            latent: `[rows, C, H, W]`, variance-exploding.
            noise_levels: The level of each row, above 0.
            texts: The host's conditioning of one prompt for each row.
            image: `[rows, channels, h, w]`, what the UNet of some checkpoints sees beside the latent.

        Returns:
            `eps`, `[rows, C, H, W]`.
        """

    def without_networks(self) -> AbstractContextManager[None]:
        """Put the prompt's LoRAs and other networks aside.

        Returns:
            A context manager. The networks do not act while it is open.
        """

    def inverting(self) -> AbstractContextManager[None]:
        """Prepare the model for inversions, and free what they have taken.

        Returns:
            A context manager to open around the inversions of a run, before its sampling.
        """

    def guided(self) -> AbstractContextManager[None]:
        """Prepare the model for the host's own sampling beside the guide.

        Returns:
            A context manager to open around the sampling.
        """

    def keeping_region(self, denoiser: Any, clean: Tensor, noisy: Tensor) -> AbstractContextManager[None]:
        """Make the denoiser blend the chain into the kept region of an inpainted image.

        Args:
            denoiser: The host's guided denoiser.
            clean: `[N, C, H, W]`, in the form in which the denoiser blends (`SamplerConvention.kept_latent`).
            noisy: `[N, C, H, W]`, the chain's latent, variance-exploding.

        Returns:
            A context manager to open around one call of the denoiser.
        """

    def correct_uncond(self, denoiser: Any, correction: Tensor) -> None:
        """Correct the prediction without the prompt as well, if the sampler takes its direction from it (CFG++).

        Args:
            denoiser: The host's guided denoiser.
            correction: What the guide has added to the denoiser's answer, `[N, C, H, W]`.
        """

    def switch_to_refiner(self, denoiser: Any, x: Tensor, sigma: Tensor, noise_level: float) -> bool:
        """Switch to the refiner if the host would do so in this call.

        Each WebUI's own function for this takes only some of these arguments.

        Args:
            denoiser: The host's guided denoiser.
            x: The latent that the denoiser is given.
            sigma: What the denoiser is told as `sigma`.
            noise_level: The noise level that `sigma` means.

        Returns:
            True only in the call that switches.
        """

    def fingerprint(self) -> Iterable[Tensor | object]:
        """List what changes a prediction in this WebUI alone.

        Returns:
            Tensors, and other values whose `repr` tells them apart. They are part of the store's key.
        """
