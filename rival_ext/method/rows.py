"""Which UNet rows see the exemplar (classifier-free guidance: each image has a row with the prompt and one without).

The authors let both rows see it, so guidance amplifies the prompt alone. If the row with the negative prompt sees the
exemplar less often, guidance amplifies the exemplar too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

UNCOND, COND = 0, 1
"""Marks of a UNet row: with the negative prompt, or with the prompt. They are also the indices of the exemplar's rows
where it is evaluated with both prompts."""

BOTH = frozenset({UNCOND, COND})
"""All rows see the exemplar."""

COND_ALONE = frozenset({COND})
"""The rows with the negative prompt attend to their own tokens."""

GOLDEN_RATIO = 0.6180339887498949

JoinTokens = Callable[[Tensor, Tensor], Tensor]
"""(the generation's keys or values, the exemplar's), `[rows, tokens, channels]` each -> those that are attended to."""


class KeysValues(NamedTuple):
    """A layer's projections of some tokens, `[rows, tokens, channels]` each."""

    keys: Tensor
    values: Tensor


def rows_that_see(uncond_share: float, node: int) -> frozenset[int]:
    """Choose the rows that see the exemplar at one node of its chain.

    The share is dithered over the nodes, so it costs nothing. Multiples of the golden ratio spread the choice evenly,
    and never in step with a sampler that calls the model twice in each of its steps.

    Args:
        uncond_share: From 0 to 1, the share of the nodes at which the rows with the negative prompt see the exemplar.
        node: The index of the node.

    Returns:
        The marks of these rows.
    """
    return BOTH if uncond_share == 1 or (node * GOLDEN_RATIO) % 1 < uncond_share else COND_ALONE


class Attended:
    """What a layer attends to in one call: its own keys and values joined with the exemplar's.

    Args:
        exemplar: The exemplar's keys and values, `[1 or 2, exemplar tokens, channels]`. Of two rows, row `UNCOND` is
            for the rows with the negative prompt, and row `COND` for those with the prompt.
        join: Makes what a row that sees the exemplar attends to from its own tokens and the exemplar's.
        own_tokens: How many of the usual tokens are the layer's own. What another extension has appended to these
            stays beside the exemplar.
        marks: `UNCOND` or `COND` for each row. Empty if all rows see the exemplar's one row.
        seeing: The marks of the rows that see the exemplar.
        strength: From 0 to 1, the share of the output that comes from the joined tokens.
        saw: Called when the layer has really asked for its values.

    Attributes:
        share: The share of the layer's output that comes from the joined tokens: one number, or `[rows, 1, 1]`. It is
            known once the keys are joined. The rest is the layer's usual output, for which the layer is evaluated a
            second time.
    """

    def __init__(
        self,
        exemplar: KeysValues,
        join: JoinTokens,
        own_tokens: int,
        marks: Sequence[int] = (),
        seeing: frozenset[int] = BOTH,
        strength: float = 1.0,
        saw: Callable[[], None] = lambda: None,
    ):
        self.share: float | Tensor = strength
        self._exemplar = exemplar
        self._join = join
        self._own_tokens = own_tokens
        sees_all = seeing == BOTH and len(exemplar.keys) == 1
        self._marks = () if sees_all else tuple(marks)
        self._seeing = seeing
        self._strength = strength
        self._saw = saw

    @property
    def is_partial(self) -> bool:
        """Whether the layer's usual output is needed too."""
        return isinstance(self.share, Tensor) or self.share < 1

    def keys(self, usual: Tensor) -> Tensor:
        """Join the exemplar's keys to the layer's usual ones, `[rows, tokens, channels]`."""
        return self._joined_rows(usual, self._exemplar.keys.to(usual))

    def values(self, usual: Tensor) -> Tensor:
        """Join the exemplar's values to the layer's usual ones, `[rows, tokens, channels]`."""
        self._saw()
        return self._joined_rows(usual, self._exemplar.values.to(usual))

    def _joined_rows(self, usual: Tensor, exemplar: Tensor) -> Tensor:
        if not self._marks:
            return self._joined(usual, exemplar.expand(len(usual), -1, -1))
        runs = _runs(self._marks, len(usual))
        joined = {run: self._joined(*run.of(usual, exemplar)) for run in runs if run.mark in self._seeing}
        # attention to the usual tokens several times is attention to them once
        repeats, rest = divmod(next(iter(joined.values())).shape[1], usual.shape[1])
        if rest and len(joined) < len(runs):
            # the rows of one call have tokens of one number, so the others take all of their output from the usual ones
            # filled on the device, because it would be waited for if it had to be brought there
            shares = ((run.rows, self._strength if run.mark in self._seeing else 0.0) for run in runs)
            self.share = torch.cat([usual.new_full((rows, 1, 1), share) for rows, share in shares])
        return torch.cat(
            [
                joined[run]
                if run in joined
                else self._joined(*run.of(usual, exemplar))
                if rest
                else usual[run.start : run.stop].repeat(1, repeats, 1)
                for run in runs
            ]
        )

    def _joined(self, usual: Tensor, exemplar: Tensor) -> Tensor:
        own, appended = usual[:, : self._own_tokens], usual[:, self._own_tokens :]
        tokens = self._join(own, exemplar)
        return torch.cat([tokens, appended], dim=1) if appended.shape[1] else tokens


def mixed_output(output: Tensor, usual: Tensor, share: float | Tensor) -> Tensor:
    """Mix a layer's output from the joined tokens with its usual one.

    Args:
        output: `[rows, tokens, channels]`, from the joined tokens.
        usual: `[rows, tokens, channels]`.
        share: The share of `output`, as in `Attended`.

    Returns:
        `[rows, tokens, channels]`.
    """
    return torch.lerp(usual, output, share.to(output) if isinstance(share, Tensor) else share)


class _Run(NamedTuple):
    """Neighbouring rows of one call that have the same mark: those from `start` on, below `stop`."""

    mark: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def of(self, usual: Tensor, exemplar: Tensor) -> tuple[Tensor, Tensor]:
        # slices and not an index, which would wait for the device
        seen = exemplar[self.mark : self.mark + 1] if len(exemplar) > 1 else exemplar
        return usual[self.start : self.stop], seen.expand(self.rows, -1, -1)


@lru_cache
def _runs(marks: tuple[int, ...], rows: int) -> tuple[_Run, ...]:
    """The runs of a call. A layer that splits each row into tiles has several neighbouring rows for each mark."""
    tiles = rows // len(marks)
    runs = []
    start = 0
    for mark, group in groupby(marks):
        stop = start + len(list(group)) * tiles
        runs.append(_Run(mark, start, stop))
        start = stop
    return tuple(runs)
