"""Where a layer's tokens lie on the latent, and which layers and tokens are used. Each choice is made once a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.method.attention import Features
from rival_ext.settings import PIXELS_PER_POSITION, Settings

SUBSAMPLE_SEED = 32
"""Seed chosen so that 25 % of the tokens cover every column of square latents of side 8 to 39 and of the common
sizes."""


class TokenSubset:
    """A fixed fraction of a layer's tokens. The positions are worked out once for each number of tokens.

    Args:
        fraction: Above 0, at most 1.
    """

    def __init__(self, fraction: float):
        self.fraction = fraction
        self._positions: dict[tuple[int, torch.device], Tensor] = {}

    def of(self, tokens: Tensor) -> Tensor:
        """Take the subset of a layer's tokens.

        Args:
            tokens: `[rows, tokens, channels]`.

        Returns:
            `[rows, round(tokens * fraction), channels]`, one token at least, in the same order.
        """
        if self.fraction == 1:
            return tokens
        key = (tokens.shape[1], tokens.device)
        if key not in self._positions:
            self._positions[key] = subsample_positions(tokens.shape[1], self.fraction).to(tokens.device)
        return tokens[:, self._positions[key]]


class LayerChoice:
    """The layers that see each exemplar, as the field `layers` of the settings names them.

    Args:
        settings: The validated settings.
        latents: For each exemplar a latent of its size, `[..., H, W]`.
    """

    def __init__(self, settings: Settings, latents: Sequence[Tensor]):
        self._settings = settings
        self._latents = latents
        self._names: dict[int, frozenset[str]] = {}

    def of(self, exemplar_index: int, features: Features) -> Features:
        """Choose features by their layer.

        Args:
            exemplar_index: Which of the exemplars the features belong to.
            features: Its features of all layers.

        Returns:
            A part of `features`, at least one layer.

        Raises:
            RivalError: The settings name none of the layers.
        """
        if self._settings.layers == "all":
            return features
        if exemplar_index not in self._names:
            latent = self._latents[exemplar_index]
            pixels = {name: PIXELS_PER_POSITION * token_grid(latent, h.shape[1])[2] for name, h in features.items()}
            sizes = self._settings.token_pixels(set(pixels.values()))
            self._names[exemplar_index] = frozenset(name for name in features if pixels[name] in sizes)
        return {name: h for name, h in features.items() if name in self._names[exemplar_index]}


def finest_layers(features: Features) -> frozenset[str]:
    """Return the names of the layers with the most tokens."""
    most = max(h.shape[1] for h in features.values())
    return frozenset(name for name, h in features.items() if h.shape[1] == most)


def subsample_positions(number: int, fraction: float) -> Tensor:
    """Choose a fraction of a layer's tokens: one token at random out of each group of neighbours.

    The choice is always the same. A regular pattern would leave out whole columns at some widths.

    Args:
        number: How many tokens there are.
        fraction: Above 0, at most 1.

    Returns:
        Ascending positions, `[round(number * fraction)]`, one at least, on the CPU.
    """
    kept = max(1, round(number * fraction))
    edges = (torch.arange(kept + 1) / fraction).long().clamp(max=number)
    within_group = torch.rand(kept, generator=torch.Generator().manual_seed(SUBSAMPLE_SEED))
    positions = edges[:-1] + (within_group * edges.diff()).long()
    return positions.clamp(max=number - 1)


def token_grid(latent: Tensor, tokens: int) -> tuple[int, int, int]:
    """Work out how a layer's tokens lie over a latent.

    Args:
        latent: `[..., H, W]`.
        tokens: The number of the layer's tokens.

    Returns:
        Rows, columns, and the side of a token in positions of the latent.

    Raises:
        RivalError: The tokens lie on no grid, because token merging has taken some away.
    """
    height, width, side = *latent.shape[-2:], 1
    while height * width > tokens:
        # each level of the UNet halves the latent, rounding up
        height, width, side = -(-height // 2), -(-width // 2), 2 * side
    if height * width != tokens:
        raise RivalError(
            "token merging needs layers set to all, no exemplar_mask, and with a mask Masked content set to original; "
            "change these, or set the token merging ratio to 0."
        )
    return height, width, side
