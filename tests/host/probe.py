"""Watches a host's UNet for the contract cases: counts its calls, acts at one of them, finds what is hooked.

Imported by the stand-in's process and by the real WebUI's own Python: torch and the standard library only.
"""

from __future__ import annotations

import sys
from weakref import WeakKeyDictionary

import torch


class Probe:
    """On the UNet that `loaded()` gives and the host's `state`; what is hooked when it is first seen is the host's own.

    hooked: what was there beside it at the first call since the plan.
    """

    def __init__(self, loaded, state):
        self.loaded = loaded
        self.state = state
        self.calls = 0
        self.at_call = self.action = None
        self.hooked = []
        self.baselines = WeakKeyDictionary()
        self.watch(loaded())

    def watch(self, unet):
        """Also this UNet, from now on."""
        if unet not in self.baselines:
            unet.register_forward_pre_hook(self._before_call)
            self.baselines[unet] = set(_hooked(unet))

    def plan(self, at_call=None, action=None, seed=0):
        """Counts from nought, does `action` (error, memory, interrupt, skip) at that call; pins the generator."""
        self.calls, self.at_call, self.action = 0, at_call, action
        self.hooked = []
        torch.manual_seed(seed)

    def leftovers(self):
        """Names of hooks and replaced methods that were not there at first."""
        return sorted(name for unet, own in self.baselines.items() for name in set(_hooked(unet)) - own)

    def layers(self):
        """How many self-attention layers the UNet has."""
        return sum(name.rpartition(".")[2] == "attn1" for name, _ in self.loaded().named_modules())

    def imported(self):
        """Names of the extension's modules that have been imported in this process."""
        return sorted(name for name in sys.modules if name.partition(".")[0] == "rival_ext")

    def _before_call(self, module, args):
        self.calls += 1
        if self.calls == 1:
            self.hooked = self.leftovers()
        if self.calls != self.at_call:
            return
        if self.action == "error":
            raise RuntimeError("planned fault in the UNet")
        if self.action == "memory":
            raise torch.cuda.OutOfMemoryError("planned lack of memory")
        if self.action == "interrupt":
            self.state.interrupted = True
        if self.action == "skip":
            self.state.skipped = True


def _hooked(unet):
    for name, module in unet.named_modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            for key in getattr(module, kind):
                yield f"{name}: {kind} {key}"
        for attribute in vars(module).keys() & {"forward", "__call__"}:
            yield f"{name}: replaced {attribute} {id(vars(module)[attribute])}"
