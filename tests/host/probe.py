"""Watches a host's UNet: counts its calls, acts at one of them, and lists its hooks.

Imported by the stand-in's process and by the real WebUI's Python, so it imports torch and the standard library only.
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
"""What raises the error, by action. The last two ask for more memory than any machine has."""
PLACES = ("before the UNet", "inside a layer", "after a layer")
"""Where in a call the probe acts. The layer is a self-attention layer in the middle of the UNet."""
BASELINE = "_rival_probe_baseline"
"""The attribute of a UNet that holds its hooks of the beginning, for the next probe after "Reload UI"."""
NOT_NUMBERS = {"nan": ..., "one nan": (0, 0, 0, 0)}
"""Which values of the UNet's output become NaN, by action."""
LONGEST_WAIT = 120
"""In seconds."""


class Probe:
    """Watches the UNet that `loaded()` returns. Hooks that are there at the beginning are the host's own.

    Args:
        loaded: Returns the loaded UNet.
        state: The host's `shared.state`.
        around: Returns the names of leftovers around the UNet.

    Attributes:
        hooked: The hooks besides the host's own at the first call since the plan.
        waiting: Set while a call stands still.
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
        """Watch this UNet too."""
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
        """Count the calls from 0 again, plan one action, and seed the global generator.

        Args:
            at_call: The number of the call at which the probe acts, from 1.
            action: One of FAULTS or of NOT_NUMBERS, "interrupt", "skip", or "wait" until `release` is called.
            place: One of PLACES.
            seed: The seed.
        """
        self.calls, self.at_call, self.action, self.place = 0, at_call, action, place
        self.hooked = []
        self.waiting.clear()
        self.released.clear()
        torch.manual_seed(seed)

    def release(self):
        """Let the call that stands still go on."""
        self.released.set()

    def leftovers(self):
        """Return the names of new hooks and replaced methods, and of leftovers around the UNet."""
        hooked = (name for unet, own in self.baselines.items() for name in set(_hooked(unet)) - own)
        return sorted([*hooked, *self.around()])

    def layers(self):
        """Return the number of self-attention layers."""
        return len(_self_attention(self.loaded()))

    def own_forwards(self):
        """Return the number of self-attention layers that run their class's forward."""
        return sum("forward" not in vars(layer) for layer in _self_attention(self.loaded()))

    def tensor_bytes(self):
        """Return the bytes of all live tensors of this process, each storage once."""
        gc.collect()
        storages = {}
        for candidate in gc.get_objects():
            if type(candidate) in (torch.Tensor, torch.nn.Parameter):
                storage = candidate.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def imported(self):
        """Return the names of the extension's modules that this process has imported."""
        return sorted(name for name in sys.modules if name.partition(".")[0] == "rival_ext")

    def _before_call(self, module, args):
        self.calls += 1
        if self.calls == 1:
            self.hooked = self.leftovers()
        self._act(PLACES[0])

    def _after_call(self, module, args, output):
        if self.calls == self.at_call and self.action in NOT_NUMBERS:
            # the UNet of diffusers returns a tuple
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
