"""The host's `shared.state` and `shared.opts`."""

from __future__ import annotations

from types import SimpleNamespace


class State:
    """What the user asked to stop, and how far the job is."""

    def __init__(self):
        self.begin()

    def begin(self, job=""):
        self.interrupted = self.skipped = self.stopping_generation = False
        self.sampling_step = self.sampling_steps = 0
        self.textinfo = None

    def end(self):
        """Nothing to let go."""


state = State()
cmd_opts = SimpleNamespace(api=True, nowebui=False, api_auth=None, no_prompt_history=False)
opts = SimpleNamespace(
    rival_memory_mb=512,
    img2img_background_color="#ffffff",
    sd_vae_encode_method="Full",
    upcast_attn=False,
    enable_quantization=False,
    save_init_img=False,
    img2img_color_correction=False,
    data={},
    data_labels={"rival_memory_mb": None},
)
