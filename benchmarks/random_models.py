"""The models whose samplings are timed: the small demo model, and full-size UNets with random weights.

Imported before `rival_ext`, which Python finds from here on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = Path(__file__).resolve().parents[1]
# the project is run from its checkout and not installed, so Python finds only this file's own folder
sys.path.insert(0, str(ROOT))

from rival_ext.hosts.checkpoint import DEMO, DEMO_CHECKPOINT, SD15_CONFIG, load_pipeline  # noqa: E402

SIDES = {"tiny": 128, "sd15": 512, "sdxl": 1024}
"""The side of each model's images, in pixels."""

UNETS = {"sd15": SD15_CONFIG / "unet", "sdxl": DEMO / "sdxl-config" / "unet"}
"""The shapes of the full-size UNets."""


class SdxlUnet(nn.Module):
    """SDXL's UNet behind the interface of SD 1.x: sizes and pooled prompt are made up, the text is widened."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(UNETS["sdxl"]))
        self.config = self.unet.config
        self._added: dict[int, dict[str, Tensor]] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def forward(self, latent: Tensor, timestep: float, prompts: Tensor, return_dict: bool) -> Any:
        widened = nn.functional.pad(prompts, (0, self.config.cross_attention_dim - prompts.shape[-1]))
        rows = len(latent)
        if rows not in self._added:
            # made once, because a GPU would be waited for
            sizes = prompts.new_tensor([[1024, 1024, 0, 0, 1024, 1024]])
            self._added[rows] = {"text_embeds": prompts.new_zeros(rows, 1280), "time_ids": sizes.repeat(rows, 1)}
        added = self._added[rows]
        return self.unet(latent, timestep, widened.to(latent), added_cond_kwargs=added, return_dict=return_dict)


def pipeline_of(model: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    """A model on the GPU, or on the CPU if there is none."""
    pipeline = load_pipeline(DEMO_CHECKPOINT) if model == "tiny" else random_pipeline(model)
    pipeline.unet.to(dtype)
    return pipeline.to(device())


def random_pipeline(model: str) -> StableDiffusionPipeline:
    """A full-size UNet and text encoder with random weights; the small model's VAE, which is not timed."""
    small = load_pipeline(DEMO_CHECKPOINT)
    torch.manual_seed(0)
    with torch.device(device()):
        config = UNet2DConditionModel.load_config(UNETS["sd15"])
        unet = SdxlUnet() if model == "sdxl" else UNet2DConditionModel.from_config(config)
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(SD15_CONFIG / "text_encoder"))
    parts = {**small.components, "unet": unet.eval(), "text_encoder": text_encoder.eval()}
    return StableDiffusionPipeline(**parts, requires_safety_checker=False)


def compile_blocks(unet: nn.Module, backend: str) -> None:
    """Let torch compile what holds no attention: the residual blocks and the feed-forward layers.

    A UNet that is compiled as a whole falls into pieces around RIVAL's hooks, and is compiled anew for each run.
    """
    # each block counts as one more compilation of the same function
    torch._dynamo.config.cache_size_limit = 128
    for module in unet.modules():
        if isinstance(module, (ResnetBlock2D, FeedForward)):
            module.compile(backend=backend, dynamic=False)


def device() -> str:
    """The GPU, if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def best_dtype(model: str) -> torch.dtype:
    """The type in which the UNet runs: half precision on a GPU, else bf16 if the processor multiplies it itself."""
    if torch.cuda.is_available():
        return torch.float16
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    has_bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if model != "tiny" and has_bf16 else torch.float32
