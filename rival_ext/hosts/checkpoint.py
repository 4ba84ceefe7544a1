"""Loading an SD 1.x checkpoint with the `diffusers` library, for the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPTokenizer

from rival_ext.errors import RivalError, is_out_of_memory
from rival_ext.files import file_sha256, refuse_unreadable
from rival_ext.images.transforms import size_of_area

DEMO = Path(__file__).resolve().parents[2] / "demo"
DEMO_CHECKPOINT = DEMO / "tiny-emoji.safetensors"
SD15_CONFIG = DEMO / "sd15-config"
TOKENIZER = DEMO / "tiny-emoji-config" / "tokenizer"
"""CLIP's own vocabulary, the same for every SD 1.x checkpoint."""

FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
FIRST_CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"

PARTS = {"VAE": "first_stage_model.", "text encoder": "cond_stage_model."}
"""The parts of a checkpoint beside the UNet, and how the names of their tensors begin."""

LONGEST_REASON = 200
"""The most characters of a library's error that a sentence repeats."""

META = "meta tensor"
"""What torch says of a tensor that no file has filled."""

SCALED = "scaled_fp8"
"""A tensor of this name says that the others have scales of their own."""


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
    config = _config_of(checkpoint)
    _refuse_by_header(checkpoint, config)
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        pipeline = StableDiffusionPipeline.from_single_file(
            str(checkpoint),
            config=str(config),
            tokenizer=tokenizer,
            local_files_only=True,
            torch_dtype=torch.float32 if device == "cpu" else torch.float16,
        ).to(device)
    except Exception as error:  # diffusers and transformers raise nearly any exception for a damaged checkpoint
        if is_out_of_memory(error):
            raise
        reason = first_sentence(error)
        raise RivalError(
            f"the checkpoint {checkpoint} cannot be loaded ({reason}); give another one to --checkpoint."
        ) from error
    _refuse_not_finite(checkpoint, pipeline)
    return pipeline


def identify(checkpoint: Path) -> str:
    """Look into a checkpoint without loading it.

    Args:
        checkpoint: A `.safetensors`, as for `load_pipeline`.

    Returns:
        The SHA-256 of the file.

    Raises:
        RivalError: The file is missing, damaged, incomplete or of another family.
    """
    _refuse_by_header(checkpoint, _config_of(checkpoint))
    return file_sha256(checkpoint)


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


def first_sentence(error: Exception) -> str:
    """Shorten a library's error, which may go on for several lines, for a sentence that repeats it.

    Args:
        error: The error.

    Returns:
        Its first sentence without the full stop, or the name of its class if it says nothing.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    if META in text:
        return "some of its tensors are missing"
    return text.partition(". ")[0].rstrip(".")[:LONGEST_REASON]


def _config_of(checkpoint: Path) -> Path:
    """The folder that describes a checkpoint, which must be a file that can be read."""
    refuse_unreadable("the checkpoint", checkpoint, "a .safetensors file to --checkpoint")
    beside = checkpoint.with_name(checkpoint.stem + "-config")
    # false for a name that is too long, where `Path.is_dir` raises
    return beside if os.path.isdir(beside) else SD15_CONFIG


def _refuse_by_header(checkpoint: Path, config: Path) -> None:
    """Refuse what the names, shapes and types of a file's tensors show to be no whole SD 1.x checkpoint."""
    try:
        with safe_open(checkpoint, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118  it is no mapping
            shapes = {name: one.get_shape() for name, one in slices.items()}
            integers = [name for name, one in slices.items() if one.get_dtype()[0] in "IU" and len(shapes[name]) > 2]
    except (SafetensorError, OSError):
        raise RivalError(f"{checkpoint} is not a readable .safetensors file; give one to --checkpoint.") from None
    if not {FIRST_CONVOLUTION, FIRST_CROSS_ATTENTION} <= shapes.keys():
        raise RivalError(f"{checkpoint} is not a Stable Diffusion 1.x checkpoint; give one to --checkpoint.")
    found = (*shapes[FIRST_CONVOLUTION][:2], *shapes[FIRST_CROSS_ATTENTION][-1:])
    expected = _expected_shape(config)
    if found != expected:
        raise RivalError(
            f"{checkpoint} is not a Stable Diffusion 1.x text-to-image checkpoint: its UNet has "
            f"(width, channels, text width) {found}, not {expected}; give another one to --checkpoint."
        )
    for part, prefix in PARTS.items():
        if not any(name.startswith(prefix) for name in shapes):
            raise RivalError(
                f"the checkpoint {checkpoint} has no {part}; give one with UNet, VAE and text encoder to --checkpoint."
            )
    if integers or SCALED in shapes:
        raise RivalError(f"the checkpoint {checkpoint} holds quantised weights; give one in 16 bits to --checkpoint.")


def _expected_shape(config: Path) -> tuple[int, int, int]:
    try:
        unet = json.loads((config / "unet" / "config.json").read_text())
        return (unet["block_out_channels"][0], unet["in_channels"], unet["cross_attention_dim"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise RivalError(
            f"the folder {config} beside the checkpoint does not describe it; repair or remove it: unet/config.json is "
            "missing or damaged."
        ) from None


def _parameters(pipeline: StableDiffusionPipeline) -> Iterator[tuple[str, Tensor]]:
    for part in ("unet", "vae", "text_encoder"):
        for name, parameter in getattr(pipeline, part).named_parameters():
            yield f"{part}.{name}", parameter


def _refuse_not_finite(checkpoint: Path, pipeline: StableDiffusionPipeline) -> None:
    for name, parameter in _parameters(pipeline):
        if not parameter.isfinite().all():
            raise RivalError(
                f"the checkpoint {checkpoint} holds values that are not numbers (NaN or infinity) in {name}; give "
                "another one to --checkpoint."
            )
