"""The exemplar's way up the noise levels while it is inverted (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Path:
    """The nodes that an inversion has reached, and the predictions at those of them where it evaluated.

    Attributes:
        latents: `[1, C, H, W]` each, variance-exploding.
        levels: The noise level of each.
        predictions: `eps` at each evaluated node, `[1, C, H, W]`.
        evaluated_levels: The noise level of each prediction.
    """

    latents: list[Tensor]
    levels: list[float]
    predictions: list[Tensor] = field(default_factory=list)
    evaluated_levels: list[float] = field(default_factory=list)

    def extrapolated_prediction(self, level: float) -> Tensor:
        """Extrapolate the last two predictions linearly in sigma, or take the only one.

        Args:
            level: A noise level above the last node.

        Returns:
            `[1, C, H, W]`.
        """
        if len(self.predictions) < 2:
            return self.predictions[-1]
        return _line(self.predictions[-2:], self.evaluated_levels[-2:], level)

    def guess(self, ahead: Sequence[float], first_guess: Callable[[Path, float], Tensor]) -> Tensor:
        """Guess the latent at the next evaluated node.

        Args:
            ahead: The noise levels of the next nodes. The exemplar will be evaluated at the last of them.
            first_guess: Makes the guess if there is one such node.

        Returns:
            `[1, C, H, W]`.
        """
        if len(ahead) == 1 or not self.predictions:
            return first_guess(self, ahead[-1])
        return self._walked(ahead, self.extrapolated_prediction)[-1]

    def walk(self, ahead: Sequence[float], prediction: Tensor) -> list[Tensor]:
        """Walk up to the next evaluated node by implicit Euler steps.

        Args:
            ahead: The noise levels of the next nodes.
            prediction: `eps` at the last of them. Between it and the prediction before, the prediction is linear in
                sigma.

        Returns:
            The latent at each level.
        """
        if len(ahead) == 1 or not self.predictions:
            return self._walked(ahead, lambda level: prediction)
        ends, levels = [self.predictions[-1], prediction], [self.evaluated_levels[-1], ahead[-1]]
        return self._walked(ahead, lambda level: _line(ends, levels, level))

    def extend(self, latents: Sequence[Tensor], levels: Sequence[float], prediction: Tensor) -> None:
        """Add the nodes of a walk, with the prediction at the last of them."""
        self.latents += latents
        self.levels += levels
        self.predictions.append(prediction)
        self.evaluated_levels.append(levels[-1])

    @property
    def bend(self) -> float:
        """How far the nodes between the evaluated ones may be off, relative to the latent.

        Each prediction is compared with the line through its neighbours. If the prediction is a parabola in sigma, the
        walk over one of the two gaps is off by a sixth of that difference times the gap.
        """
        off = [0.0]
        for index in range(1, len(self.predictions) - 1):
            lower, level, higher = self.evaluated_levels[index - 1 : index + 2]
            ends = [self.predictions[index - 1], self.predictions[index + 1]]
            difference = self.predictions[index] - _line(ends, [lower, higher], level)
            latent = self.latents[self.levels.index(level)]
            off.append(float(difference.norm() / latent.norm()) * (higher - lower) / 12)
        return max(off)

    def _walked(self, ahead: Sequence[float], prediction_at: Callable[[float], Tensor]) -> list[Tensor]:
        latents, latent, reached = [], self.latents[-1], self.levels[-1]
        for level in ahead:
            latent = latent + (level - reached) * prediction_at(level)
            reached = level
            latents.append(latent)
        return latents


def _line(ends: Sequence[Tensor], levels: Sequence[float], level: float) -> Tensor:
    lower, upper = ends
    return upper + (upper - lower) * ((level - levels[1]) / (levels[1] - levels[0]))
