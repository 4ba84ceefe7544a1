"""Small latents, chains and layers of known values, for tests that need no trained model."""

from __future__ import annotations

import torch

from rival_ext.method.chain import Chain
from rival_ext.method.layers import HookedLayer
from rival_ext.method.noise import levels_tensor

LEVELS = [0.03, 0.5, 2.0, 4.0, 14.0]
"""Noise levels of a chain of four steps."""


def noise(*shape, seed=0):
    """Random values, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chain(height=8, width=8, seed=0):
    """A chain of two steps without features."""
    return Chain(levels_tensor([0.1, 2.0, 9.0]), noise(3, 4, height, width, seed=seed))


def chain_of(size):
    """A chain of `size` times 8 bytes."""
    return Chain(levels_tensor([0.0, 1.0]), torch.zeros(2, size, 1, 1))


def anything(noise_levels, evaluated, visits):
    """Every chain serves."""
    return True


def left_half(height=8, width=8):
    """A region: 1 in the left half."""
    region = torch.zeros(1, 1, height, width)
    region[..., : width // 2] = 1
    return region


def columns(latent):
    """The values at each position, as a set."""
    return {tuple(values) for values in latent.flatten(2)[0].T.tolist()}


class LayeredModel:
    """One layer that is called once an evaluation, with the noise level as the value of all its tokens."""

    def __init__(self):
        self.layer = torch.nn.Module()
        self.layer.to_k = self.layer.to_v = torch.nn.Identity()
        self.layer.forward = lambda hidden_states, encoder_hidden_states=None: self.layer.to_k(hidden_states)
        self.layers = {"layer": HookedLayer(self.layer)}

    def predict_noise(self, latent, level):
        self.layer(torch.full((1, 2, 3), level))
        return latent * 0.1
