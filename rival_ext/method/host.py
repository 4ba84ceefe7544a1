"""What a host must give to the method. A host translates and holds no mathematics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from rival_ext.method.attention import Layers
from rival_ext.method.noise import NoiseSchedule


@dataclass(frozen=True)
class EncodedExemplar:
    """An exemplar after the VAE and before its inversion.

    Attributes:
        latent: `[1, C, H, W]`, the mean of the VAE's posterior in the model's scaling.
        weight: As in `Exemplar`.
        region: As in `Exemplar`. From a mask `rival_ext.method.regions.region_of_mask` makes it.
        attention_only: As in `Exemplar`.
    """

    latent: Tensor
    weight: float = 1.0
    region: Tensor | None = None
    attention_only: bool = False


@dataclass(frozen=True)
class InpaintInput:
    """An image with a mask to fill, after the VAE and before its inversion.

    Attributes:
        latent: `[1, C, H, W]`, as in `EncodedExemplar`.
        mask: `[1, 1, H, W]`, as in `InpaintCanvas`.
        source: `[1, 1, H, W]`, 1 where the start of the masked part is drawn from this image. None draws it from the
            exemplars.
    """

    latent: Tensor
    mask: Tensor
    source: Tensor | None


class Host(Protocol):
    """What a host gives for one sampling."""

    unet: nn.Module
    layers: Layers
    schedule: NoiseSchedule

    def noise_levels(self) -> Tensor:
        """Return the levels that the sampler will really visit.

        Returns:
            `[N + 1]`, float64, ascending. The first is where the clean latent lies; the sampler visits the others.
        """

    def levels_are_known(self) -> bool:
        """Tell whether the sampler visits exactly `noise_levels`. An adaptive sampler chooses its levels as it runs."""

    def adds_noise(self) -> bool:
        """Tell whether the sampler adds fresh noise on the way."""

    def is_guided(self) -> bool:
        """Tell whether the negative prompt has an effect: the guidance scale is not 1."""

    def encoded_exemplars(self) -> Sequence[EncodedExemplar]:
        """Return the exemplars, one or more."""

    def inpaint_input(self) -> InpaintInput | None:
        """Return the image that is inpainted, or None."""

    def predict_noise(self, latent: Tensor, noise_level: float) -> Tensor:
        """Evaluate an exemplar under its own prompt at guidance 1, while nothing else steers.

        Args:
            latent: `[1, C, H, W]`, variance-exploding.
            noise_level: The level of `latent`, above 0.

        Returns:
            `eps`, `[1, C, H, W]`.
        """

    def predict_noises(self, latents: Tensor, noise_levels: Sequence[float]) -> Tensor:
        """Evaluate an exemplar at several noise levels in one call of the UNet, otherwise as `predict_noise` does.

        Args:
            latents: `[n, C, H, W]`, variance-exploding.
            noise_levels: The level of each latent, above 0.

        Returns:
            `eps`, `[n, C, H, W]`.
        """

    def progress(self, done: int, total: int) -> None:
        """Show the progress of all inversions of this run together.

        Args:
            done: UNet evaluations so far.
            total: UNet evaluations at most.

        Raises:
            Interrupted: The user stopped the run.
        """

    def notes(self) -> Sequence[str]:
        """List what this host did otherwise than usual with the request.

        Returns:
            Sentences for the report, without a comma, a colon and a full stop. Often none.
        """

    def preview(self, latent: Tensor) -> None:
        """Show what an inversion has come to.

        Args:
            latent: `[1, C, H, W]`, variance-preserving.
        """

    def fingerprint(self) -> Iterable[Tensor | object]:
        """Return whatever changes a prediction, besides the latent, the noise level and the sampler.

        Returns:
            Tensors, and other values whose `repr` tells them apart.
        """

    def sampler_fingerprint(self) -> Iterable[object]:
        """Return what a sampler changes in a prediction: how it brings noise levels to the model.

        Returns:
            Values whose `repr` tells them apart.
        """

    def memory_budget(self) -> float:
        """Return how many bytes all chains together may take."""
