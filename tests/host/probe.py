"""Watches a host's UNet for the contract cases: counts its calls, acts at one of them, finds what is hooked.

Imported by the stand-in's process and by the real WebUI's own Python: torch and the standard library only.
"""

from __future__ import annotations

import gc
import sys
from threading import Event
from weakref import WeakKeyDictionary

import torch

PLANNED = "planned fault in the UNet"


def _raise(kind):
    raise kind(PLANNED)


FAULTS = {
    "error": lambda: _raise(RuntimeError),
    "memory": lambda: _raise(torch.cuda.OutOfMemoryError),
    "python's memory": lambda: bytearray(sys.maxsize),
    "torch's memory": lambda: torch.empty(2**50),
}
"""What raises, by action: the last two ask for what no machine has."""
PLACES = ("before the UNet", "inside a layer", "after a layer")
"""Where it acts in a call; the layer is a self-attention layer in the middle."""
BASELINE = "_rival_probe_baseline"
"""A UNet's attribute with what was hooked when it was first seen, for the probe of a page that is built anew."""
NOT_NUMBERS = {"nan": ..., "one nan": (0, 0, 0, 0)}
"""Which of the UNet's answer is no number, by action."""
LONGEST_WAIT = 120
"""Seconds."""


class Probe:
    """On the UNet that `loaded()` gives and the host's `state`; what is hooked when it is first seen is the host's own.

    around: gives the names of what is left around the UNet. hooked: what was there beside the host's own at the first
    call since the plan. waiting: whether a call stands still.
    """

    def __init__(self, loaded, state, around=tuple):
        self.loaded = loaded
        self.state = state
        self.around = around
        self.calls = 0
        self.at_call = self.action = None
        self.place = PLACES[0]
        self.hooked = []
        self.waiting, self.released = Event(), Event()
        self.baselines = WeakKeyDictionary()
        self.watch(loaded())

    def watch(self, unet):
        """Also this UNet, from now on."""
        if unet not in self.baselines:
            before = set(_hooked(unet))
            unet.register_forward_pre_hook(self._before_call)
            unet.register_forward_hook(self._after_call)
            layers = _self_attention(unet)
            layer = layers[len(layers) // 2]
            layer.to_q.register_forward_pre_hook(lambda *_: self._act("inside a layer"))
            layer.register_forward_hook(lambda *_: self._act("after a layer"))
            own = set(_hooked(unet)) - before
            self.baselines[unet] = vars(unet)[BASELINE] = vars(unet).get(BASELINE, before) | own

    def plan(self, at_call=None, action=None, place=PLACES[0], seed=0):
        """Counts from 0; at that call does `action` at that place; pins the generator.

        action: one of FAULTS, of NOT_NUMBERS, interrupt, skip, or wait, until somebody calls `release`.
        """
        self.calls, self.at_call, self.action, self.place = 0, at_call, action, place
        self.hooked = []
        self.waiting.clear()
        self.released.clear()
        torch.manual_seed(seed)

    def release(self):
        """Lets the call that waits go on."""
        self.released.set()

    def leftovers(self):
        """Names of hooks and replaced methods that were not there at first, and of what is left around the UNet."""
        hooked = (name for unet, own in self.baselines.items() for name in set(_hooked(unet)) - own)
        return sorted([*hooked, *self.around()])

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
        self._act(PLACES[0])

    def _after_call(self, module, args, output):
        if self.calls == self.at_call and self.action in NOT_NUMBERS:
            # a tuple where the UNet is that of diffusers
            (output if isinstance(output, torch.Tensor) else output[0])[NOT_NUMBERS[self.action]] = torch.nan

    def _act(self, place):
        if (self.calls, self.place) != (self.at_call, place):
            return
        if self.action in FAULTS:
            FAULTS[self.action]()
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
