"""Exemplars as the generation sees them: several, each with a weight and a region. And the canvas of inpainting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from rival_ext.method.alignment import Statistics, blend_statistics, channel_statistics
from rival_ext.method.chain import Chain
from rival_ext.method.regions import positions_in
from rival_ext.method.tokens import TokenSubset, token_grid
from rival_ext.settings import HALF


@dataclass(frozen=True)
class Exemplar:
    """One exemplar of a run.

    Attributes:
        chain: Its inversion chain.
        weight: Its share among the exemplars, above 0.
        region: `[1, 1, H, W]` at the latent's size, from 0 (unseen) to 1 (seen). None shows all of it.
        attention_only: If true, this exemplar is used for attention only. Its statistics are not used for alignment
            and its latent is not used for the start, because inside a mask the latent still encodes the object's shape.
    """

    chain: Chain
    weight: float = 1.0
    region: Tensor | None = None
    attention_only: bool = False
    _token_positions: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def positions(self) -> Tensor:
        """Row-major indices of the latent's seen positions, on the latent's device."""
        if self.region is None:
            return torch.arange(self.chain.top[0, 0].numel()).to(self.chain.latents.device)
        return positions_in(self.region).to(self.chain.latents.device)

    def below(self, noise_level: float) -> Exemplar:
        """Return the same exemplar with its chain cut off at a noise level."""
        return dataclasses.replace(self, chain=self.chain.below(noise_level))

    def without_image(self) -> Exemplar:
        """Return the same exemplar with the noise part of its chain alone."""
        return dataclasses.replace(self, chain=self.chain.without_image())

    def seen(self, latent: Tensor) -> Tensor:
        """Take the seen positions of a latent.

        Args:
            latent: `[1, C, H, W]`, of the exemplar's own size.

        Returns:
            `[1, C, n, 1]`.
        """
        return latent.flatten(2)[:, :, self.positions, None]

    def seen_tokens(self, h: Tensor) -> Tensor:
        """Take the tokens of a layer's input that lie in the region.

        A token is seen if the region covers half of it or more. If the region covers no token by half, the tokens that
        it covers most are seen.

        Args:
            h: The exemplar's features of one layer, `[rows, tokens, channels]`.

        Returns:
            `[rows, n, channels]`, one token at least. `h` itself if there is no region.

        Raises:
            RivalError: There is a region, and token merging has taken some of the tokens away.
        """
        if self.region is None:
            return h
        key = (h.shape[1], h.device)
        if key not in self._token_positions:
            height, width, _ = token_grid(self.chain.latents, h.shape[1])
            # on the CPU, because Apple's GPUs pool into even parts only
            covered = adaptive_avg_pool2d(self.region.cpu(), (height, width)).flatten()
            is_seen = covered >= covered.max().clamp(max=HALF)
            self._token_positions[key] = is_seen.nonzero().flatten().to(h.device)
        return h[:, self._token_positions[key]]


def joint_statistics(exemplars: Sequence[Exemplar], latents: Sequence[Tensor]) -> Statistics:
    """Compute the statistics of several exemplars together, by weight and within their regions.

    Args:
        exemplars: One or more.
        latents: For each exemplar a latent or a noise prediction, `[1, C, H, W]`.

    Returns:
        Mean and deviation, each `[1, C, 1, 1]`.
    """
    statistics = [
        channel_statistics(exemplar.seen(latent)) for exemplar, latent in zip(exemplars, latents, strict=True)
    ]
    return blend_statistics(statistics, [exemplar.weight for exemplar in exemplars])


class SeenTokens(Mapping[str, Tensor]):
    """The tokens of one exemplar that a layer sees: those in its region, and fewer of a lighter exemplar.

    Args:
        exemplar: The exemplar.
        features: Its features at one noise level, by layer.
        subset: The share of its tokens, by its weight.
    """

    def __init__(self, exemplar: Exemplar, features: Mapping[str, Tensor], subset: TokenSubset):
        self._exemplar = exemplar
        self._features = features
        self._subset = subset

    def __getitem__(self, name: str) -> Tensor:
        return self._subset.of(self._exemplar.seen_tokens(self._features[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)


def weight_subsets(exemplars: Sequence[Exemplar]) -> list[TokenSubset]:
    """Take fewer tokens of a lighter exemplar, in proportion to the heaviest one.

    Args:
        exemplars: The exemplars of a run.

    Returns:
        The share of each exemplar's tokens.
    """
    heaviest = max(exemplar.weight for exemplar in exemplars)
    return [TokenSubset(exemplar.weight / heaviest) for exemplar in exemplars]


@dataclass(frozen=True)
class InpaintCanvas:
    """The image whose masked part is generated anew. The rest follows its own chain exactly.

    Attributes:
        chain: The image's inversion chain.
        mask: `[1, 1, H, W]` at the latent's size: 1 where it is generated, 0 where it is kept, between on a soft edge.
    """

    chain: Chain
    mask: Tensor

    @cached_property
    def positions(self) -> Tensor:
        """Row-major indices of the positions that are generated, in part or whole, on the latent's device."""
        return (self.mask.flatten() > 0).nonzero().flatten().to(self.chain.latents.device)

    def below(self, noise_level: float) -> InpaintCanvas:
        """Return the same canvas with its chain cut off at a noise level."""
        return dataclasses.replace(self, chain=self.chain.below(noise_level))

    def keep_latent(self, latent: Tensor, noise_level: float) -> Tensor:
        """Put the chain's latent into the kept region.

        Args:
            latent: `[N, C, H, W]`, variance-exploding.
            noise_level: The level of `latent`.

        Returns:
            `[N, C, H, W]`, variance-exploding.
        """
        return torch.where(self.mask > 0, latent, self.chain.latent(noise_level).to(latent))

    def keep_noise(self, noise: Tensor, noise_level: float) -> Tensor:
        """Put the prediction that leads to the chain's next node into the kept region.

        Args:
            noise: `[N, C, H, W]`, a noise prediction.
            noise_level: The level at which it was made.

        Returns:
            `[N, C, H, W]`.
        """
        return torch.where(self.mask > 0, noise, self.chain.slope(noise_level).to(noise))
