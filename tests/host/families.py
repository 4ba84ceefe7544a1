"""A real WebUI with checkpoints of every family: Stable Diffusion 1, 2 and XL, their inpainting and editing forms.

Two small checkpoints are in the folder that RIVAL_FAMILIES names, and the repository has a trained one. The others are
made from these three: their first convolution is widened, or their description is changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.host.data_folder import ROOT, add_options, checkpoint_in
from tests.host.servers import RealServer

TRAINED, SD2, SDXL = "tiny-emoji", "tiny-sd2v", "tiny-sdxl"
"""The three checkpoints from which the families are made."""
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
ENCODER = re.compile(r"(.*text_model)\.embeddings\.position_embedding\.weight")
ENCODER_IN_DESCRIPTION = "version: local/clip-tiny"
FIRST_ENCODER = """\
        - is_trainable: false
          input_key: txt
          target: sgm.modules.encoders.modules.FrozenCLIPEmbedder
          params:
            version: local/clip-tiny
            layer: hidden
            layer_idx: 1
"""
NUMBER_TOLD = 256
"""Channels of SDXL's conditioning for one number."""
UNCLIP = """\
    embedder_config:
      target: ldm.modules.encoders.modules.FrozenOpenCLIPImageEmbedder
      params:
        arch: ViT-S-32-alt
"""
SETTINGS = {
    # the host restores an option that a request has overridden only if its settings file names it
    **{"sd_noise_schedule": "Default", "fp8_storage": "Disable", "sdxl_crop_top": 0, "sdxl_crop_left": 0},
    # all checkpoints stay loaded, so switching is quick, and an inversion outlives it
    "sd_checkpoints_limit": 10,
}


@dataclass(frozen=True)
class Family:
    """One checkpoint: from which one it is made and how, and the options with which a request loads it.

    Attributes:
        name: The name of the family.
        file: The checkpoint's file, without the suffix.
        source: The checkpoint from which it is made.
        channels: The channels of the first convolution.
        refines: Whether it is SDXL's refiner, which has only the second text encoder and takes an aesthetic score.
        changes: Text in the source's description, and its replacement.
        options: The WebUI's options that it needs.
    """

    name: str
    file: str
    source: str
    channels: int = 4
    refines: bool = False
    changes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def inpaints(self) -> bool:
        """Whether it sees a mask and the masked image."""
        return self.channels == 9

    @property
    def edits(self) -> bool:
        """Whether it sees the image that it changes."""
        return self.channels == 8

    @property
    def is_sdxl(self) -> bool:
        return self.source == SDXL

    def settings(self, **others: Any) -> dict[str, Any]:
        """Make the `override_settings` that load it. Options that the host reads while it loads come before its
        name."""
        return {**self.options, **others, "sd_model_checkpoint": f"{self.file}.safetensors"}


def _hybrid(target: str) -> dict[str, str]:
    """Make the changes for an SD 1.x description whose UNet takes an image beside the latent."""
    return {
        "ldm.models.diffusion.ddpm.LatentDiffusion": target,
        "conditioning_key: crossattn": "conditioning_key: hybrid",
    }


SD1 = Family("SD 1.x", TRAINED, TRAINED)
SD1_INPAINTING = Family(
    "SD 1.x inpainting",
    "emoji-inpainting",
    TRAINED,
    channels=9,
    changes={
        **_hybrid("ldm.models.diffusion.ddpm.LatentInpaintDiffusion"),
        "use_ema: False": "use_ema: False\n    finetune_keys: null",
    },
)
SD1_EDITING = Family(
    "SD 1.x instruct-pix2pix",
    "emoji-editing",
    TRAINED,
    channels=8,
    changes={
        **_hybrid("modules.models.diffusion.ddpm_edit.LatentDiffusion"),
        'cond_stage_key: "txt"': "cond_stage_key: edit",
    },
)
SD2_V = Family("SD 2.x v", SD2, SD2)
SD2_EPS = Family("SD 2.x eps", "sd2-eps", SD2, changes={"parameterization: v": "parameterization: eps"})
SDXL_BASE = Family("SDXL", SDXL, SDXL)
SDXL_INPAINTING = Family("SDXL inpainting", "sdxl-inpainting", SDXL, channels=9)
SDXL_V_ZERO = Family(
    "SDXL v-prediction, zero terminal SNR",
    "sdxl-v",
    SDXL,
    changes={"denoiser_scaling.EpsScaling": "denoiser_scaling.VScaling"},
    options={"sd_noise_schedule": "Zero Terminal SNR"},
)
SDXL_REFINER = Family(
    "SDXL refiner",
    "sdxl-refiner",
    SDXL,
    refines=True,
    changes={
        FIRST_ENCODER: "",
        "target_size_as_tuple": "aesthetic_score",
        "context_dim: 320": "context_dim: 256",
        "adm_in_channels: 1792": "adm_in_channels: 1536",
    },
)
FAMILIES = (SD1, SD1_INPAINTING, SD1_EDITING, SD2_V, SD2_EPS, SDXL_BASE, SDXL_INPAINTING, SDXL_V_ZERO, SDXL_REFINER)

REFUSED = Family(
    "unCLIP",
    "unclip",
    SD2,
    changes={
        "ddpm.LatentDiffusion": "ddpm.ImageEmbeddingConditionedLatentDiffusion",
        "conditioning_key: crossattn": "conditioning_key: crossattn-adm",
        "    unet_config:\n": f"{UNCLIP}    unet_config:\n",
        "image_size: 32\n": "image_size: 32\n        num_classes: sequential\n        adm_in_channels: 256\n",
    },
)
"""A family that RIVAL refuses. It only makes variations of images."""


def given_folder() -> Path | None:
    """Return the folder of the small checkpoints that the environment names, or None if they are not there."""
    folder = Path(os.environ.get("RIVAL_FAMILIES", ""))
    return (
        folder
        if "RIVAL_FAMILIES" in os.environ and all((folder / f"{name}.safetensors").is_file() for name in (SD2, SDXL))
        else None
    )


class FamiliesServer(RealServer):
    """A real server with RIVAL and a checkpoint of each family. It starts with SD 1.x."""

    @staticmethod
    def _fill(data: Path, with_extension: bool) -> None:
        RealServer._fill(data, with_extension)
        add_options(data, SETTINGS)
        for family in (*FAMILIES, REFUSED):
            if family is not SD1:
                place(family, checkpoint_in(data).parent)

    def layers(self) -> int:
        """Return the number of self-attention layers of the loaded UNet."""
        return self._state()["layers"]


def place(family: Family, folder: Path) -> None:
    """Write a family's checkpoint and its description beside SD 1.x's."""
    given = given_folder() if family.source != TRAINED else folder
    assert given is not None
    weights = load_file(given / f"{family.source}.safetensors")
    description = (given / f"{family.source}.yaml").read_text()
    weights[FIRST] = _widened(weights[FIRST], family.channels)
    if family.refines:
        weights = _as_refiner(weights)
    for text, changed in {**family.changes, "in_channels: 4": f"in_channels: {family.channels}"}.items():
        assert description.count(text) == 1, (family.name, text)
        description = description.replace(text, changed)
    if ENCODER_IN_DESCRIPTION in description:
        encoder = _text_encoder(weights, folder.parent)
        description = description.replace(ENCODER_IN_DESCRIPTION, f"version: {encoder}")
    save_file(weights, folder / f"{family.file}.safetensors")
    (folder / f"{family.file}.yaml").write_text(description)


def _widened(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Widen a first convolution by more channels, with small weights, so that they change the image a little."""
    further = np.random.default_rng(0).normal(size=(len(kernel), channels - kernel.shape[1], *kernel.shape[2:]))
    return np.concatenate([kernel, further.astype(kernel.dtype) * kernel.std() / 10], axis=1)


def _as_refiner(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Make the refiner's weights from SDXL's: without the first text encoder, and with one number in place of a
    size."""
    first, second = "conditioner.embedders.0.", "conditioner.embedders.1."
    width = weights[f"{first}transformer.text_model.embeddings.token_embedding.weight"].shape[1]
    made = {}
    for name, value in weights.items():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            value = np.ascontiguousarray(value[:, width:])
        elif name.endswith("label_emb.0.0.weight"):
            value = np.ascontiguousarray(value[:, :-NUMBER_TOLD])
        if not name.startswith(first):
            made[name.replace(second, first)] = value
    return made


def _text_encoder(weights: dict[str, np.ndarray], folder: Path) -> Path:
    """Make a folder with the configuration of the CLIP text encoder in these weights, and the common tokenizer."""
    path = folder / "clip-tiny"
    prefix = next(found[1] for found in map(ENCODER.fullmatch, weights) if found)
    layers = {name[len(prefix) :].split(".")[3] for name in weights if name.startswith(f"{prefix}.encoder.layers.")}
    inside, width = weights[f"{prefix}.encoder.layers.0.mlp.fc1.weight"].shape
    sizes = {
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": inside,
        "num_hidden_layers": len(layers),
    }
    shutil.copytree(ROOT / "demo" / "tiny-clip", path, dirs_exist_ok=True)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | sizes))
    return path
