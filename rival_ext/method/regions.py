"""Where a mask counts on a latent: one rule for the regions of exemplars and for masks to fill."""

from __future__ import annotations

from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.settings import HALF, MASK_RULE

FEWEST_POSITIONS = 4
"""The statistics of fewer positions of a latent mean nothing."""


def positions_in(region: Tensor) -> Tensor:
    """Find the positions of a latent that belong to a region, or in which a mask counts: those covered by half or more.

    Args:
        region: `[1, 1, H, W]`, from 0 (outside) to 1 (inside).

    Returns:
        Row-major indices, `[n]`, on the CPU.
    """
    return (region.flatten() >= HALF).nonzero().flatten().cpu()


def region_of_mask(mask: Tensor, field_name: str) -> Tensor | None:
    """Make the region of an exemplar from its mask.

    Args:
        mask: `[1, 1, H, W]` at the latent's size, how far the mask covers each position, from 0 to 1.
        field_name: The field that the mask was given in.

    Returns:
        The mask, or None if it covers every position: an exemplar that is seen as a whole has no region.

    Raises:
        RivalError: The mask covers too few positions.
    """
    covered = len(positions_in(mask))
    if covered == mask.numel():
        return None
    if covered < FEWEST_POSITIONS:
        raise RivalError(f"{field_name} shows too little of the exemplar ({MASK_RULE}); paint a larger region white.")
    return mask
