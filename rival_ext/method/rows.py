"""Which UNet rows see the exemplar (classifier-free guidance: each image has a row with the prompt and one without).

The authors let both rows see it, so guidance amplifies the prompt alone. If the row with the negative prompt sees the
exemplar less often, guidance amplifies the exemplar too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

JoinContext = Callable[[Tensor, Tensor], Tensor]
"""Joins the generation's tokens and the exemplar's into the context. The layer projects it to keys and values."""


class Attended(NamedTuple):
    """What a layer attends to in one call.

    Attributes:
        context: `[rows, context tokens, channels]`.
        share: The share of the layer's output that comes from this context: one number, or `[rows, 1, 1]`. The rest is
            the layer's usual output, for which the layer is evaluated a second time.
    """

    context: Tensor
    share: float | Tensor = 1.0

    @property
    def is_partial(self) -> bool:
        """Whether the layer's usual output is needed too."""
        return isinstance(self.share, Tensor) or self.share < 1


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


def attended_rows(
    usual: Tensor,
    exemplar: Tensor,
    join: JoinContext,
    marks: Sequence[int],
    seeing: frozenset[int] = BOTH,
    strength: float = 1.0,
) -> Attended | None:
    """Make the context of one call of a layer, in which not all rows need to see the exemplar.

    Args:
        usual: The usual context, `[rows, tokens, channels]`.
        exemplar: The exemplar's tokens, `[1 or 2, exemplar tokens, channels]`. Of two rows, row `UNCOND` is for the
            rows with the negative prompt, and row `COND` for those with the prompt.
        join: Makes the context of rows that see the exemplar from their usual one.
        marks: `UNCOND` or `COND` for each row. Empty if all rows see the exemplar's one row.
        seeing: The marks of the rows that see the exemplar.
        strength: From 0 to 1, the share of the output that comes from the joined context.

    Returns:
        What the layer attends to, or None if no row of this call sees the exemplar.
    """
    if not marks or (len(exemplar) == 1 and seeing == BOTH):
        return Attended(join(usual, exemplar.expand(len(usual), -1, -1)), strength)
    if seeing.isdisjoint(marks):
        return None
    runs = _runs(usual, exemplar, marks)
    joined = {index: join(run.usual, run.exemplar) for index, run in enumerate(runs) if run.mark in seeing}
    # attention to the usual context several times is attention to it once
    repeats, rest = divmod(next(iter(joined.values())).shape[1], usual.shape[1])
    contexts = [
        joined[index] if index in joined else join(run.usual, run.exemplar) if rest else run.usual.repeat(1, repeats, 1)
        for index, run in enumerate(runs)
    ]
    if not rest or len(joined) == len(runs):
        return Attended(torch.cat(contexts), strength)
    # the rows of one call have contexts of one length, so the others take all of their output from the usual one
    shares = (strength if run.mark in seeing else 0.0 for run in runs)
    return Attended(
        torch.cat(contexts),
        torch.cat([run.usual.new_full((len(run.usual), 1, 1), share) for run, share in zip(runs, shares, strict=True)]),
    )


def mixed_output(output: Tensor, usual: Tensor, share: float | Tensor) -> Tensor:
    """Mix a layer's output from another context with its usual one.

    Args:
        output: `[rows, tokens, channels]`, from the other context.
        usual: `[rows, tokens, channels]`.
        share: The share of `output`, as in `Attended`.

    Returns:
        `[rows, tokens, channels]`.
    """
    return torch.lerp(usual, output, share.to(output) if isinstance(share, Tensor) else share)


class _Run(NamedTuple):
    """Neighbouring rows of one call that have the same mark, and the exemplar's tokens for them."""

    mark: int
    usual: Tensor
    exemplar: Tensor


def _runs(usual: Tensor, exemplar: Tensor, marks: Sequence[int]) -> list[_Run]:
    runs = []
    start = 0
    for mark, group in groupby(marks):
        rows = usual[start : start + len(list(group))]
        start += len(rows)
        # slices and not an index, which would wait for the device
        seen = exemplar[mark : mark + 1] if len(exemplar) > 1 else exemplar
        runs.append(_Run(mark, rows, seen.expand(len(rows), -1, -1)))
    return runs
