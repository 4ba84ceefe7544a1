"""The forms in which features are kept: 16 bits a value, or 8 bits with a scale for each channel.

With a scale for each channel of a layer and node, 8 bits lose nothing that is seen: docs/cost.md has the figures.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rival_ext.method.attention import Features
from rival_ext.settings import Settings
from rival_ext.written import ALL

LARGEST = 127
"""The largest 8-bit value that is used."""

SCALES_OF = "scales of "
"""How the names of the scales begin where tensors have one list of names. The layer's name follows."""


class EightBits(dict[str, Tensor]):
    """The features of a node in 8 bits. The items are the values of each layer, `[rows, tokens, channels]`, int8.

    Args:
        values: The values by layer.
        scales: By layer what a value of 1 stands for in each channel, `[rows, 1, channels]`, float32.
        dtype: The type of the features that these values stand for.
    """

    def __init__(self, values: Mapping[str, Tensor], scales: Mapping[str, Tensor], dtype: torch.dtype):
        super().__init__(values)
        self.scales = scales
        self.dtype = dtype


def bits_of(settings: Settings) -> int:
    """Say how many bits a value is kept in: 16 where features are wanted at every node, which is the exact form, else
    8."""
    return 16 if settings.feature_nodes == ALL else 8


def kept_form(features: Features, bits: int) -> Features:
    """Bring features into the form in which they are kept, on their own device.

    Args:
        features: As recorded, `[rows, tokens, channels]` each.
        bits: 16 or 8.

    Returns:
        In 16 bits a type of 16 bits stays, and others become float16. In 8 bits a node is `EightBits`.
    """
    if bits == 16:
        return {name: h.to(_sixteen_bits(h)) for name, h in features.items()}
    scales = {name: h.abs().amax(dim=1, keepdim=True).float() / LARGEST for name, h in features.items()}
    values = {
        # a channel of zeros has the scale 0, and stays 0 whatever it is divided by
        name: (h / scales[name].where(scales[name] != 0, 1)).round().to(torch.int8)
        for name, h in features.items()
    }
    return EightBits(values, scales, _sixteen_bits(next(iter(features.values()))))


def read_features(kept: Features) -> Features:
    """Read features from the form in which they are kept, on the device where they are.

    Args:
        kept: What `kept_form` returned.

    Returns:
        In 16 bits; `kept` itself if it has them.
    """
    if not isinstance(kept, EightBits):
        return kept
    return {name: (values * kept.scales[name]).to(kept.dtype) for name, values in kept.items()}


def kept_bytes(features: Features, bits: int) -> int:
    """Say how many bytes features take in the form in which they are kept.

    Args:
        features: As recorded.
        bits: 16 or 8.
    """
    size = sum(bits // 8 * h.numel() for h in features.values())
    return size if bits == 16 else size + sum(4 * h.shape[0] * h.shape[2] for h in features.values())


def stored_tensors(kept: Features) -> dict[str, Tensor]:
    """List all tensors of a node, those of its scales after the others.

    Args:
        kept: A node in any form.
    """
    if not isinstance(kept, EightBits):
        return kept
    return {**kept, **{SCALES_OF + name: scales for name, scales in kept.scales.items()}}


def of_stored(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Features:
    """Make a node of the tensors that `stored_tensors` listed.

    Args:
        tensors: The tensors.
        dtype: The type of the features, `EightBits.dtype`. None if they have 16 bits.
    """
    if dtype is None:
        return dict(tensors)
    values = {name: tensor for name, tensor in tensors.items() if not name.startswith(SCALES_OF)}
    return EightBits(values, {name: tensors[SCALES_OF + name] for name in values}, dtype)


def dtype_of(kept: Features) -> torch.dtype | None:
    """Return the type of the features that a node of 8 bits stands for, or None for one of 16 bits."""
    return kept.dtype if isinstance(kept, EightBits) else None


def _sixteen_bits(h: Tensor) -> torch.dtype:
    return h.dtype if h.element_size() == 2 else torch.float16
