"""The host's `shared.state` and `shared.opts`."""

from __future__ import annotations

from types import SimpleNamespace


class State:
    """The user's interruptions and the job's progress. `shown` holds the latents of the live preview."""

    def __init__(self):
        self.begin()

    def begin(self, job=""):
        self.interrupted = self.skipped = self.stopping_generation = False
        self.sampling_step = self.sampling_steps = self.current_image_sampling_step = 0
        self.job_no, self.job_count = 0, -1
        self.textinfo = self.current_latent = None
        self.shown = []

    def nextjob(self):
        self.job_no += 1
        self.sampling_step = self.current_image_sampling_step = 0

    def store_latent(self, latent):
        self.current_latent = latent
        self.shown.append(latent)

    def end(self):
        """Do nothing."""


class Options:
    """The options. Their values are in `data`, which the host saves whole. Attributes of the instance come first."""

    def __init__(self, **data):
        vars(self).update(data=data, data_labels=dict.fromkeys(data))

    def __getattr__(self, name):
        try:
            return vars(self)["data"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        if hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            self.data[name] = value

    def add_option(self, key, info):
        """Do nothing: the settings page is not built here."""


state = State()
cmd_opts = SimpleNamespace(api=True, nowebui=False, api_auth=None, no_prompt_history=False)
opts = Options(
    rival_memory_mb=512,
    img2img_background_color="#ffffff",
    sd_vae_encode_method="Full",
    upcast_attn=False,
    enable_quantization=False,
    save_init_img=False,
    img2img_color_correction=False,
)
