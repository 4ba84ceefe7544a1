"""The data folder of a WebUI under test: the small checkpoint, a second one, a LoRA, a style, options."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    **{"show_progress_type": "Approx cheap", "samples_save": False},
    # the host restores an option that a request has overridden only if its settings file names it
    **{"overlay_inpaint": True, "CLIP_stop_at_last_layers": 1, "token_merging_ratio": 0.0, "rival_memory_mb": 2048},
}
LORA = "contract"
"""Name of the LoRA in the folder of models."""
REFINER = "refiner.ckpt"
"""File of the second checkpoint, which has the same shape. Forge names it without the suffix."""
STYLE = ("contract", "{prompt}, (yellow:1.3) [red:brown:0.5]", "a house, blue")
"""A style: its name, its prompt around the request's prompt, and its negative prompt."""


def fill(data: Path, with_extension: bool) -> None:
    """Fill a WebUI's empty data folder. Its options fetch nothing, and the extension is in it or not."""
    (data / "extensions").mkdir(parents=True)
    (data / "extensions" / "rival-probe").symlink_to(ROOT / "tests" / "host" / "probe_extension")
    if with_extension:
        (data / "extensions" / "sd-webui-rival").symlink_to(ROOT)
    checkpoint = checkpoint_in(data)
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(ROOT / "demo" / "tiny-emoji.safetensors", checkpoint)
    # the host cannot read torch's newer file format
    torch.save(_refiner(checkpoint), checkpoint.with_name(REFINER), _use_new_zipfile_serialization=False)
    description = (ROOT / "demo" / "tiny-emoji.yaml").read_text()
    description = description.replace("version: tiny-clip", f"version: {ROOT / 'demo' / 'tiny-clip'}")
    for described in (checkpoint, checkpoint.with_name(REFINER)):
        described.with_suffix(".yaml").write_text(description)
    (data / "styles.csv").write_text('name,prompt,negative_prompt\n"{}","{}","{}"\n'.format(*STYLE))
    (data / "models" / "Lora").mkdir()
    save_file(_lora(), data / "models" / "Lora" / f"{LORA}.safetensors")
    (data / "config.json").write_text(json.dumps(OPTIONS))


def add_options(data: Path, options: Mapping[str, Any]) -> None:
    """Set options of a WebUI that has not started."""
    settings = json.loads((data / "config.json").read_text())
    (data / "config.json").write_text(json.dumps({**settings, **options}))


def checkpoint_in(data: Path) -> Path:
    """Return the path of the small checkpoint in a data folder."""
    return data / "models" / "Stable-diffusion" / "tiny-emoji.safetensors"


def _refiner(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Make a checkpoint with other features: every weight of the small UNet is a tenth larger."""
    weights = {name: torch.from_numpy(value) for name, value in load_file(checkpoint).items()}
    return {
        name: value * 1.1 if name.startswith("model.diffusion_model.") else value for name, value in weights.items()
    }


def _lora() -> dict[str, np.ndarray]:
    """Make a small random LoRA on one self-attention layer of the small checkpoint, with the usual names."""
    random = np.random.default_rng(0)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    return {
        f"{layer}.lora_down.weight": random.normal(size=(4, 64)).astype(np.float32),
        f"{layer}.lora_up.weight": random.normal(size=(64, 4)).astype(np.float32),
        f"{layer}.alpha": np.array(4, dtype=np.float32),
    }
