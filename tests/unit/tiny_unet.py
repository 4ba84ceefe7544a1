"""A UNet of two blocks whose attention is written out, in the forms of ldm and of diffusers."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 6


class Attention(nn.Module):
    """Attention in its plainest form. It raises `fault`, if one is set, after its projections.

    Its keys are its context itself, so `contexts` shows what each call attended to.
    """

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        nn.init.eye_(self.to_k.weight)
        nn.init.zeros_(self.to_k.bias)
        self.fault = None
        self.contexts = []

    def attend(self, tokens, context):
        context = tokens if context is None else context
        queries, keys, values = self.to_q(tokens), self.to_k(context), self.to_v(context)
        self.contexts.append(keys)
        if self.fault is not None:
            raise self.fault
        return (queries @ keys.transpose(1, 2)).softmax(-1) @ values


class LdmAttention(Attention):
    def forward(self, x, context=None, mask=None):
        return self.attend(x, context)


class DiffusersAttention(Attention):
    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None):
        return self.attend(hidden_states, encoder_hidden_states)


class Block(nn.Module):
    """Calls its layers as ldm and diffusers do: the tokens by position, the rest by name."""

    def __init__(self, attention):
        super().__init__()
        self.attn1, self.attn2 = attention(), attention()
        self.name_of_context = "context" if attention is LdmAttention else "encoder_hidden_states"

    def forward(self, tokens, text):
        tokens = tokens + self.attn1(tokens, **{self.name_of_context: None})
        return tokens + self.attn2(tokens, **{self.name_of_context: text})


class TinyUNet(nn.Module):
    """Two blocks, each with self-attention (`attn1`) and cross-attention to a text (`attn2`)."""

    def __init__(self, attention):
        super().__init__()
        self.blocks = nn.ModuleList([Block(attention), Block(attention)])

    def forward(self, tokens, text):
        for block in self.blocks:
            tokens = block(tokens, text)
        return tokens


def tokens(rows, count=4, seed=0):
    return torch.randn(rows, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def hooks(root):
    """The names of the modules that have a hook of any kind."""
    kinds = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_backward_hooks")
    return [name for name, module in root.named_modules() if any(getattr(module, kind) for kind in kinds)]
