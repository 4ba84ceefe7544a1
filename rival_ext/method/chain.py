"""The inversion chain: the exemplar at every noise level (paper section 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rival_ext.method.attention import Features
from rival_ext.method.noise import SAME_LEVEL


@dataclass(frozen=True)
class Chain:
    """The exemplar's latents at ascending noise levels, and what the self-attention layers saw there.

    Between two nodes the chain is linear in sigma.

    Attributes:
        noise_levels: The nodes, `[N + 1]`, float64 on the CPU, ascending. The clean latent lies at the lowest.
        latents: `[N + 1, C, H, W]`, variance-exploding, on the model's device.
        features: The features that were recorded at a node, by the node's index. A node may have none.
        evaluations: How many UNet evaluations made the chain.
        residual: The largest last fixed-point update of a step, relative to the latent.
    """

    noise_levels: Tensor
    latents: Tensor
    features: dict[int, Features] = field(default_factory=dict)
    evaluations: int = 0
    residual: float = 0.0

    @property
    def top(self) -> Tensor:
        """`x_T^R`, the latent at the highest noise level: `[1, C, H, W]`, variance-exploding."""
        return self.latents[-1:]

    @property
    def bytes(self) -> int:
        """The memory that the chain holds, features included, in bytes."""
        tensors = [self.latents, *(h for node in self.features.values() for h in node.values())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def below(self, noise_level: float) -> Chain:
        """Cut the chain off at a noise level.

        Args:
            noise_level: 0 or more.

        Returns:
            A chain without features whose highest node is at this level, or the whole chain if the level is higher.
        """
        noise_level = min(noise_level, float(self.noise_levels[-1]))
        lower = self.noise_levels < noise_level * (1 - SAME_LEVEL)
        levels = torch.cat([self.noise_levels[lower], self.noise_levels.new_tensor([noise_level])])
        return Chain(levels, torch.cat([self.latents[lower.to(self.latents.device)], self.latent(noise_level)]))

    def without_image(self) -> Chain:
        """Return the noise part alone, `z_R(sigma) - z_0`, as a chain without features."""
        return Chain(self.noise_levels, self.latents - self.latents[:1])

    def latent(self, noise_level: float) -> Tensor:
        """Interpolate the exemplar's latent.

        Args:
            noise_level: Any level. Outside the nodes the outer segments go on.

        Returns:
            `[1, C, H, W]`, variance-exploding.
        """
        upper = self.segment(noise_level)
        distance = noise_level - float(self.noise_levels[upper])
        return self.latents[upper : upper + 1] + distance * self._slope(upper)

    def slope(self, noise_level: float) -> Tensor:
        """Return `eps_R` of the step that leads downwards from a noise level. No evaluation is needed.

        Args:
            noise_level: Any level.

        Returns:
            `[1, C, H, W]`.
        """
        return self._slope(self.segment(noise_level))

    def features_at(self, noise_level: float) -> Features | None:
        """Look up the features that were recorded at a noise level.

        Args:
            noise_level: Any level.

        Returns:
            The features, or None if the level is no node or the node has none.
        """
        return self.features.get(self.segment(noise_level)) if self.is_node(noise_level) else None

    def is_node(self, noise_level: float) -> bool:
        """Tell whether the inversion evaluated the exemplar at this noise level."""
        return math.isclose(noise_level, float(self.noise_levels[self.segment(noise_level)]), rel_tol=SAME_LEVEL)

    def _slope(self, upper: int) -> Tensor:
        rise = self.latents[upper : upper + 1] - self.latents[upper - 1 : upper]
        return rise / float(self.noise_levels[upper] - self.noise_levels[upper - 1])

    def segment(self, noise_level: float) -> int:
        """Find the segment that holds a noise level.

        Args:
            noise_level: Any level.

        Returns:
            The index of the node at its upper end, from 1.
        """
        index = int(torch.searchsorted(self.noise_levels, noise_level * (1 - SAME_LEVEL)))
        return min(max(index, 1), len(self.noise_levels) - 1)
