"""Watches a host's UNet for the contract cases: counts its calls, acts at one of them, finds what is hooked.

Imported by the stand-in's process and by the real WebUI's own Python: torch and the standard library only.
"""

from __future__ import annotations

import gc
import sys
from threading import Event
from weakref import WeakKeyDictionary

import torch

FAULTS = {"error": RuntimeError, "memory": torch.cuda.OutOfMemoryError, "python's memory": MemoryError}
"""What is raised, by action."""
NOT_NUMBERS = {"nan": ..., "one nan": (0, 0, 0, 0)}
"""Which of the UNet's answer is no number, by action."""
LONGEST_WAIT = 120
"""Seconds."""


class Probe:
    """On the UNet that `loaded()` gives and the host's `state`; what is hooked when it is first seen is the host's own.

    hooked: what was there beside it at the first call since the plan. waiting: whether a call stands still.
    """

    def __init__(self, loaded, state):
        self.loaded = loaded
        self.state = state
        self.calls = 0
        self.at_call = self.action = None
        self.inside = False
        self.hooked = []
        self.waiting, self.released = Event(), Event()
        self.baselines = WeakKeyDictionary()
        self.watch(loaded())

    def watch(self, unet):
        """Also this UNet, from now on."""
        if unet not in self.baselines:
            unet.register_forward_pre_hook(self._before_call)
            unet.register_forward_hook(self._after_call)
            layers = _self_attention(unet)
            layers[len(layers) // 2].to_q.register_forward_pre_hook(self._inside_layer)
            self.baselines[unet] = set(_hooked(unet))

    def plan(self, at_call=None, action=None, inside=False, seed=0):
        """Counts from nought; at that call does `action`, `inside` a self-attention layer; pins the generator.

        action: one of FAULTS, of NOT_NUMBERS, interrupt, skip, or wait, until somebody calls `release`.
        """
        self.calls, self.at_call, self.action, self.inside = 0, at_call, action, inside
        self.hooked = []
        self.waiting.clear()
        self.released.clear()
        torch.manual_seed(seed)

    def release(self):
        """Lets the call that waits go on."""
        self.released.set()

    def leftovers(self):
        """Names of hooks and replaced methods that were not there at first."""
        return sorted(name for unet, own in self.baselines.items() for name in set(_hooked(unet)) - own)

    def layers(self):
        """How many self-attention layers the UNet has."""
        return len(_self_attention(self.loaded()))

    def own_forwards(self):
        """How many of them run the forward of their class."""
        return sum("forward" not in vars(layer) for layer in _self_attention(self.loaded()))

    def tensor_bytes(self):
        """Memory of all live tensors of this process, each storage once."""
        gc.collect()
        storages = {}
        for candidate in gc.get_objects():
            if type(candidate) in (torch.Tensor, torch.nn.Parameter):
                storage = candidate.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def imported(self):
        """Names of the extension's modules that have been imported in this process."""
        return sorted(name for name in sys.modules if name.partition(".")[0] == "rival_ext")

    def _before_call(self, module, args):
        self.calls += 1
        if self.calls == 1:
            self.hooked = self.leftovers()
        if not self.inside:
            self._act()

    def _inside_layer(self, module, args):
        if self.inside:
            self._act()

    def _after_call(self, module, args, output):
        if self.calls == self.at_call and self.action in NOT_NUMBERS:
            # a tuple where the UNet is that of diffusers
            (output if isinstance(output, torch.Tensor) else output[0])[NOT_NUMBERS[self.action]] = torch.nan

    def _act(self):
        if self.calls != self.at_call:
            return
        if self.action in FAULTS:
            raise FAULTS[self.action]("planned fault in the UNet")
        if self.action == "interrupt":
            self.state.interrupted = True
        if self.action == "skip":
            self.state.skipped = True
        if self.action == "wait":
            self.waiting.set()
            self.released.wait(LONGEST_WAIT)


def _self_attention(unet):
    return [module for name, module in unet.named_modules() if name.rpartition(".")[2] == "attn1"]


def _hooked(unet):
    for name, module in unet.named_modules():
        for kind in ("_forward_pre_hooks", "_forward_hooks"):
            for key in getattr(module, kind):
                yield f"{name}: {kind} {key}"
        for attribute in vars(module).keys() & {"forward", "__call__"}:
            yield f"{name}: replaced {attribute} {id(vars(module)[attribute])}"
