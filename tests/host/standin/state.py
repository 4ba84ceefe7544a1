"""The host's `shared.state` and `shared.opts`."""

from __future__ import annotations

from types import SimpleNamespace


class State:
    """What the user asked to stop, and how far the job is."""

    def __init__(self):
        self.begin()

    def begin(self):
        self.interrupted = self.skipped = self.stopping_generation = False
        self.sampling_step = self.sampling_steps = 0
        self.textinfo = None


state = State()
opts = SimpleNamespace(
    rival_memory_mb=512,
    img2img_background_color="#ffffff",
    sd_vae_encode_method="Full",
    upcast_attn=False,
    enable_quantization=False,
    data={},
)
