"""Exemplars as the generation sees them: several, with a weight each, whole or in part; and a canvas to inpaint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from rival_ext.alignment import Statistics, blend_statistics, channel_statistics
from rival_ext.attention import scattered, token_grid
from rival_ext.chain import Chain


def positions_in(region: Tensor) -> Tensor:
    """Indices of the positions, row-major, that at least half belong to a region `[1, 1, H, W]` of 0 to 1."""
    return (region.flatten() >= 0.5).nonzero().flatten().cpu()


@dataclass(frozen=True)
class Exemplar:
    """One exemplar: its chain, its share among several (above 0), the region of it that is seen.

    region: `[1, 1, H, W]` at the latent's size, from 0 (unseen) to 1; None is all of it.
    is_part: attention alone sees the region. The noise and the statistics of a part carry its own shapes over the
    whole picture, and those of the whole what lies outside: neither aligns anything, nor is a start drawn from it.
    """

    chain: Chain
    weight: float = 1.0
    region: Tensor | None = None
    is_part: bool = False

    @cached_property
    def positions(self) -> Tensor:
        """Indices of the latent's seen positions, row-major."""
        if self.region is None:
            return torch.arange(self.chain.top[0, 0].numel())
        return positions_in(self.region)

    def below(self, noise_level: float) -> Exemplar:
        """The same exemplar with its chain up to a noise level only."""
        return replace(self, chain=self.chain.below(noise_level))

    def seen(self, latent: Tensor) -> Tensor:
        """The seen positions `[1, C, n, 1]` of a latent of the exemplar's own shape."""
        return latent.flatten(2)[:, :, self.positions.to(latent.device), None]

    def seen_tokens(self, h: Tensor) -> Tensor:
        """The seen tokens of a layer's input `[rows, tokens, channels]`; one at least."""
        if self.region is None:
            return h
        height, width, _ = token_grid(self.chain.latents, h.shape[1])
        # on the CPU, since Apple's GPUs pool into even parts only
        covered = adaptive_avg_pool2d(self.region.cpu(), (height, width)).flatten()
        return h[:, (covered >= covered.max().clamp(max=0.5)).to(h.device)]


def joint_statistics(exemplars: Sequence[Exemplar], latents: Sequence[Tensor]) -> Statistics:
    """Of the exemplars' latents or predictions, `[1, C, H, W]` each, by weight and within the regions."""
    statistics = [
        channel_statistics(exemplar.seen(latent)) for exemplar, latent in zip(exemplars, latents, strict=True)
    ]
    return blend_statistics(statistics, [exemplar.weight for exemplar in exemplars])


class JointFeatures(Mapping[str, Tensor]):
    """The tokens of all exemplars, joined layer by layer; of a lighter one fewer are taken, in proportion."""

    def __init__(self, exemplars: Sequence[Exemplar], features: Sequence[Mapping[str, Tensor]]):
        heaviest = max(exemplar.weight for exemplar in exemplars)
        self._parts = [
            (exemplar, exemplar.weight / heaviest, layers) for exemplar, layers in zip(exemplars, features, strict=True)
        ]

    def __getitem__(self, name: str) -> Tensor:
        parts = [scattered(exemplar.seen_tokens(layers[name]), share) for exemplar, share, layers in self._parts]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts[0][2])

    def __len__(self) -> int:
        return len(self._parts[0][2])


@dataclass(frozen=True)
class Canvas:
    """A picture of which a hole is generated anew (inpainting); the rest follows its own chain, exactly.

    hole: `[1, 1, H, W]` at the latent's size, 1 where it is generated, 0 where it is kept, between on a soft edge.
    """

    chain: Chain
    hole: Tensor

    @cached_property
    def positions(self) -> Tensor:
        """Indices of the latent's positions that are generated, in part or whole, row-major."""
        return (self.hole.flatten() > 0).nonzero().flatten().cpu()

    def below(self, noise_level: float) -> Canvas:
        """The same canvas with its chain up to a noise level only."""
        return replace(self, chain=self.chain.below(noise_level))

    def keep_latent(self, latent: Tensor, noise_level: float) -> Tensor:
        """`latent` `[N, C, H, W]`, variance-exploding, with the chain's in the kept region."""
        return torch.where(self.hole > 0, latent, self.chain.latent(noise_level).to(latent))

    def keep_noise(self, noise: Tensor, noise_level: float) -> Tensor:
        """A prediction `[N, C, H, W]` with the one in the kept region that leads to the chain's next node."""
        return torch.where(self.hole > 0, noise, self.chain.slope(noise_level).to(noise))
