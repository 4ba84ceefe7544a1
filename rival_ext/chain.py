"""The inversion chain: the exemplar at every noise level (paper section 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rival_ext.attention import Features
from rival_ext.noise import SAME_LEVEL


@dataclass(frozen=True)
class Chain:
    """The exemplar's latents at ascending noise levels, with what the self-attention layers saw there.

    noise_levels: float64 `[N + 1]` on the CPU, ascending; the lowest is where the clean latent lies.
    latents: `[N + 1, C, H, W]` in variance-exploding form, on the model's device.
    features: by node, the self-attention inputs recorded at its evaluation; a node may be missing.
    evaluations: how many UNet evaluations made it.
    residual: largest relative size of a step's last fixed-point update, 0 where the steps are explicit.
    """

    noise_levels: Tensor
    latents: Tensor
    features: dict[int, Features] = field(default_factory=dict)
    evaluations: int = 0
    residual: float = 0.0

    @property
    def top(self) -> Tensor:
        """`x_T^R` in variance-exploding form, `[1, C, H, W]`."""
        return self.latents[-1:]

    @property
    def bytes(self) -> int:
        """Memory that the chain holds, features included."""
        tensors = [self.latents, *(h for node in self.features.values() for h in node.values())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def below(self, noise_level: float) -> Chain:
        """The chain without its features up to a noise level, which becomes its highest node; all of it if higher."""
        noise_level = min(noise_level, float(self.noise_levels[-1]))
        lower = self.noise_levels < noise_level * (1 - SAME_LEVEL)
        levels = torch.cat([self.noise_levels[lower], self.noise_levels.new_tensor([noise_level])])
        return Chain(levels, torch.cat([self.latents[lower.to(self.latents.device)], self.latent(noise_level)]))

    def latent(self, noise_level: float) -> Tensor:
        """The exemplar `[1, C, H, W]` at any noise level: between two nodes the chain is linear in sigma."""
        upper = self._segment(noise_level)
        distance = noise_level - float(self.noise_levels[upper])
        return self.latents[upper : upper + 1] + distance * self._slope(upper)

    def slope(self, noise_level: float) -> Tensor:
        """`eps_R` `[1, C, H, W]` of the step that leaves `noise_level` downwards; it needs no evaluation."""
        return self._slope(self._segment(noise_level))

    def features_at(self, noise_level: float) -> Features | None:
        """The features recorded at this very noise level, or None if it was no node or was not kept."""
        return self.features.get(self._segment(noise_level)) if self.is_node(noise_level) else None

    def is_node(self, noise_level: float) -> bool:
        """Whether the inversion evaluated the exemplar at this noise level."""
        return math.isclose(noise_level, float(self.noise_levels[self._segment(noise_level)]), rel_tol=SAME_LEVEL)

    def _slope(self, upper: int) -> Tensor:
        rise = self.latents[upper : upper + 1] - self.latents[upper - 1 : upper]
        return rise / float(self.noise_levels[upper] - self.noise_levels[upper - 1])

    def _segment(self, noise_level: float) -> int:
        """Index of the node that ends the segment which holds the noise level; the outer ones reach on."""
        index = int(torch.searchsorted(self.noise_levels, noise_level * (1 - SAME_LEVEL)))
        return min(max(index, 1), len(self.noise_levels) - 1)
