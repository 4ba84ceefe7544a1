"""What changes a prediction in the WebUI, beside the latent and the noise level: a chain's key in the store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modules import devices, sd_vae, shared
from torch import Tensor

from rival_ext.hosts.webui_platform import LoadedModel


def fingerprint(p: Any, model: LoadedModel, prompt_schedules: Any, networks: Any) -> Iterator[Tensor | object]:
    """Parts of the key; `prompt_schedules` are the host's conditionings that the exemplar is evaluated with.

    networks: what the prompt asks for in its <...> tags and takes part in the inversion.

    The conditioning itself stands for the prompt, its embeddings, clip skip and the text encoder's LoRAs.
    """
    checkpoint = p.sd_model.sd_checkpoint_info
    yield checkpoint.filename, checkpoint.sha256
    yield from model.fingerprint()
    yield sd_vae.get_loaded_vae_name(), sd_vae.get_loaded_vae_hash(), shared.opts.sd_vae_encode_method
    yield from (entry.cond for schedule in prompt_schedules for entry in schedule)
    yield [[entry.end_at_step for entry in schedule] for schedule in prompt_schedules]
    yield sorted((name, [param.items for param in params]) for name, params in networks.items())
    # as the sampler and the model have been set up, whatever the options say by now
    yield type(p.sampler.model_wrap).__name__, getattr(p.sampler.model_wrap, "quantize", None)
    yield p.tiling, devices.dtype_unet, devices.unet_needs_upcast, devices.fp8, shared.opts.upcast_attn
