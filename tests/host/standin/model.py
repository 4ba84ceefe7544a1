"""The loaded checkpoint: the small trained model behind the interface of the host's `sd_model`."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn


class DiffusionModel(nn.Module):
    """The wrapper through which the host calls the UNet, with the conditioning as its samplers build it."""

    conditioning_key = "crossattn"

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.diffusion_model = unet

    def forward(self, x, t, cond):
        return self.diffusion_model(x, t, cond["c_crossattn"][0], return_dict=False)[0]


class Checkpoint:
    """SD 1.x, as far as the extension and the samplers use it."""

    is_sd1 = True
    cond_stage_key = "txt"
    parameterization = "eps"

    def __init__(self, pipeline, device="cpu"):
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.to(device)
        self.device = torch.device(device)
        self.pipeline = pipeline
        self.model = DiffusionModel(pipeline.unet)
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod.to(device)
        self.first_stage_model = pipeline.vae
        self.sd_checkpoint_info = SimpleNamespace(filename="tiny-emoji.safetensors", sha256="0" * 64)

    def apply_model(self, x, t, cond):
        return self.model(x, t, cond)

    def get_learned_conditioning(self, prompts):
        return self.pipeline.encode_prompt(list(prompts), self.device, 1, False)[0]

    def encode_first_stage(self, pixels):
        return self.pipeline.vae.encode(pixels).latent_dist

    def get_first_stage_encoding(self, posterior):
        # like the host, a posterior is SAMPLED from the global generator
        latent = posterior if isinstance(posterior, torch.Tensor) else posterior.sample()
        return latent * self.pipeline.vae.config.scaling_factor

    def decode_first_stage(self, latents):
        return self.pipeline.vae.decode(latents / self.pipeline.vae.config.scaling_factor).sample
