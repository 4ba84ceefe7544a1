"""The inversion chain: the exemplar at every noise level (paper section 3.1)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rival_ext.method.attention import Features
from rival_ext.method.noise import SAME_LEVEL, segment_of
from rival_ext.method.precision import stored_tensors


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
        bend: How far the nodes between the evaluated ones may be off, relative to the latent (`Path.bend`).
        evaluated: At how many nodes the exemplar was evaluated.
        visits: Identifies the sampler and its levels, if the exemplar was evaluated at each of these. Else empty.
    """

    noise_levels: Tensor
    latents: Tensor
    features: dict[int, Features] = field(default_factory=dict)
    evaluations: int = 0
    residual: float = 0.0
    bend: float = 0.0
    evaluated: int = 0
    visits: str = ""

    @property
    def top(self) -> Tensor:
        """`x_T^R`, the latent at the highest noise level: `[1, C, H, W]`, variance-exploding."""
        return self.latents[-1:]

    @property
    def bytes(self) -> int:
        """The memory that the chain holds, features included, in bytes."""
        tensors = [self.latents, *(h for node in self.features.values() for h in stored_tensors(node).values())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def below(self, noise_level: float) -> Chain:
        """Cut the chain off at a noise level.

        Args:
            noise_level: 0 or more.

        Returns:
            A chain without features whose highest node is at this level. Above the nodes the outer segment goes on.
        """
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

    def features_around(self, noise_level: float) -> tuple[int, int, float] | None:
        """Find the nodes with features between which a noise level lies.

        Args:
            noise_level: Any level.

        Returns:
            The lower node, the upper one, and the place between them from 0 to 1, counted in nodes. Beyond the
            outermost nodes with features, and where the level is such a node, both are the same. None if no node has
            features.
        """
        if not self.features:
            return None
        upper = self.segment(noise_level)
        below, above = self.noise_levels[upper - 1 : upper + 1].tolist()
        place = upper - (above - noise_level) / (above - below)
        if math.isclose(noise_level, above, rel_tol=SAME_LEVEL):
            place = upper
        nodes = sorted(self.features)
        lower = max((node for node in nodes if node <= place), default=nodes[0])
        higher = min((node for node in nodes if node >= place), default=nodes[-1])
        return lower, higher, (place - lower) / (higher - lower) if higher > lower else 0.0

    def features_below(self, node: int) -> Features | None:
        """Return the features that a sampler needs after those of a node: of the next lower node that has some."""
        lower = [one for one in self.features if one < node]
        return self.features[max(lower)] if lower else None

    def _slope(self, upper: int) -> Tensor:
        rise = self.latents[upper : upper + 1] - self.latents[upper - 1 : upper]
        return rise / float(self.noise_levels[upper] - self.noise_levels[upper - 1])

    def segment(self, noise_level: float) -> int:
        """Find the segment that holds a noise level: the index of the node at its upper end, from 1."""
        return segment_of(self.noise_levels, noise_level)


def chain_key(parts: Iterable[Tensor | object]) -> str:
    """Make one key of tensors, by their values, and of other objects, by their `repr`.

    Args:
        parts: Whatever tells one chain from another.

    Returns:
        64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().flatten().double().numpy().tobytes())
        else:
            sha.update(repr(part).encode())
        sha.update(b"\x00")
    return sha.hexdigest()
