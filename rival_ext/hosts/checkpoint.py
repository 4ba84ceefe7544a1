"""Loading an SD 1.x checkpoint with the `diffusers` library, for the command line."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import CLIPTokenizer

from rival_ext.errors import RivalError
from rival_ext.images.transforms import size_of_area

DEMO = Path(__file__).resolve().parents[2] / "demo"
DEMO_CHECKPOINT = DEMO / "tiny-emoji.safetensors"
SD15_CONFIG = DEMO / "sd15-config"
TOKENIZER = DEMO / "tiny-emoji-config" / "tokenizer"
"""CLIP's own vocabulary, the same for every SD 1.x checkpoint."""

FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
FIRST_CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def quieten_libraries() -> None:
    """Keep advice and progress bars of `diffusers` and `transformers` out of the command line's output."""
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def load_pipeline(checkpoint: Path) -> StableDiffusionPipeline:
    """Load an SD 1.x checkpoint onto the GPU, or onto the CPU if there is none.

    Args:
        checkpoint: A `.safetensors`. A folder `NAME-config` beside it describes a checkpoint of another shape.

    Returns:
        The pipeline.

    Raises:
        RivalError: The file is missing, damaged or of another family.
    """
    beside = checkpoint.with_name(checkpoint.stem + "-config")
    config = beside if beside.is_dir() else SD15_CONFIG
    _refuse_other_families(checkpoint, config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipeline = StableDiffusionPipeline.from_single_file(
        str(checkpoint),
        config=str(config),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        local_files_only=True,
        torch_dtype=torch.float32 if device == "cpu" else torch.float16,
    )
    return pipeline.to(device)


def native_size(pipeline: StableDiffusionPipeline, image: Image.Image) -> tuple[int, int]:
    """Choose a size for an image: its aspect, at the area on which the checkpoint was trained.

    Args:
        pipeline: The loaded checkpoint.
        image: The image.

    Returns:
        Width and height.
    """
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return size_of_area(image, side, size_unit(pipeline))


def size_unit(pipeline: StableDiffusionPipeline) -> int:
    """Return the unit of width and height in pixels. With its multiples every level of the UNet halves them evenly."""
    return pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)


def _refuse_other_families(checkpoint: Path, config: Path) -> None:
    if not checkpoint.is_file():
        raise RivalError(f"the checkpoint {checkpoint} does not exist.")
    try:
        with safe_open(checkpoint, framework="pt") as tensors:
            names = set(tensors.keys())
            shapes = {
                name: tensors.get_slice(name).get_shape()
                for name in (FIRST_CONVOLUTION, FIRST_CROSS_ATTENTION)
                if name in names
            }
    except (SafetensorError, OSError):
        raise RivalError(f"{checkpoint} is not a readable .safetensors file.") from None
    if len(shapes) < 2:
        raise RivalError(f"{checkpoint} is not a Stable Diffusion 1.x checkpoint; give one to --checkpoint.")
    found = (*shapes[FIRST_CONVOLUTION][:2], shapes[FIRST_CROSS_ATTENTION][1])
    unet = json.loads((config / "unet" / "config.json").read_text())
    expected = (unet["block_out_channels"][0], unet["in_channels"], unet["cross_attention_dim"])
    if found != expected:
        raise RivalError(
            f"{checkpoint} is not a Stable Diffusion 1.x text-to-image checkpoint: its UNet has "
            f"(width, channels, text width) {found}, not {expected}; give another one to --checkpoint."
        )
