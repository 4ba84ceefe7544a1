"""A real WebUI with other extensions beside RIVAL, such as ControlNet, and small models for them.

ControlNet and its reference units expect the twelve encoder and twelve decoder blocks of SD 1.5. So the small
checkpoint is padded to that many blocks. The new blocks return their input, so its images do not change.
"""

from __future__ import annotations

import json
import os
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.host.data_folder import ROOT, checkpoint_in
from tests.host.servers import RealServer, python_of, real_folder

CONTROLNET, SHUFFLE, HYPERNETWORK = "tiny-control", "tiny-shuffle", "tiny-hypernetwork"
"""Names of the models that a server finds. ControlNet averages the residuals of a "shuffle" model."""

DETECTOR = "tiny-detector.pt"
"""The detector that adetailer finds. Its own models would have to be downloaded."""

UNET = "model.diffusion_model."
WIDTHS = (64, 128)
CONTEXT = 96
BLOCKS_A_LEVEL, LEVELS = 3, 3

Weights = dict[str, np.ndarray]


def extension_folder(variable: str) -> Path | None:
    """The folder of an extension that the environment names, or None if there is no extension in it."""
    folder = Path(os.environ.get(variable, ""))
    return folder if variable in os.environ and (folder / "scripts").is_dir() else None


def controlnet() -> Path | None:
    return extension_folder("RIVAL_CONTROLNET")


def dynamic_thresholding() -> Path | None:
    return extension_folder("RIVAL_DYNAMIC_THRESHOLDING")


def freeu() -> Path | None:
    return extension_folder("RIVAL_FREEU")


def tiled_diffusion() -> Path | None:
    return extension_folder("RIVAL_TILED_DIFFUSION")


def adetailer() -> Path | None:
    return extension_folder("RIVAL_ADETAILER")


class CompatServer(RealServer):
    """A real server with the other extensions that are there, beside RIVAL or without it."""

    @staticmethod
    def _fill(data: Path, with_extension: bool) -> None:
        RealServer._fill(data, with_extension)
        links = [controlnet(), dynamic_thresholding(), freeu(), tiled_diffusion(), adetailer()]
        links.append(ROOT / "tests" / "host" / "compat_extension")
        for folder in filter(None, links):
            (data / "extensions" / folder.name).symlink_to(folder)
        checkpoint = checkpoint_in(data)
        weights = padded(load_file(checkpoint))
        save_file(weights, checkpoint)
        description = checkpoint.with_suffix(".yaml")
        text, blocks = description.read_text(), "num_res_blocks: "
        # the first of two, which is the UNet's
        description.write_text(text.replace(f"{blocks}1", f"{blocks}{BLOCKS_A_LEVEL}", 1))
        # the host puts an overridden option back only if its settings name it
        settings = json.loads((data / "config.json").read_text())
        settings |= {"token_merging_ratio": 0, "sd_hypernetwork": "None", "rival_memory_mb": 2048}
        (data / "config.json").write_text(json.dumps(settings))
        for folder in ("ControlNet", "hypernetworks"):
            (data / "models" / folder).mkdir(parents=True)
        for name in (CONTROLNET, SHUFFLE):
            save_file(control(weights), data / "models" / "ControlNet" / f"{name}.safetensors")
        file = data / "models" / "hypernetworks" / f"{HYPERNETWORK}.pt"
        # the host cannot read torch's newer file format
        torch.save(hypernetwork(), file, _use_new_zipfile_serialization=False)
        if adetailer():
            make_detector(data / "models" / "adetailer")

    def watch(self) -> dict[str, Any]:
        """Return the evaluations by ControlNet's models, with ControlNet's patches, and of the exemplar, and the
        hooks."""
        return self.client.get("/compat/state").json()

    def folder(self, settings: dict[str, Any], folder: Path) -> list[str]:
        """Return the infotexts of "Batch from Directory", which the API does not offer."""
        response = self.client.post("/compat/folder", json={"rival": settings, "folder": str(folder)})
        return response.json()

    def forget(self) -> None:
        """Empty the store of inversions, and set the counts to 0."""
        self.client.post("/compat/forget").raise_for_status()


def make_detector(folder: Path) -> None:
    """Make a detector for adetailer with random weights. It detects objects everywhere, with little confidence."""
    folder.mkdir()
    code = "import sys, torch, ultralytics; torch.manual_seed(0); ultralytics.YOLO('yolov8n.yaml').save(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": os.environ.get("RIVAL_ADETAILER_PACKAGES", "")}
    environment |= {"YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(folder.parent)}
    python = python_of(real_folder())
    subprocess.run([str(python), "-c", code, str(folder / DETECTOR)], env=environment, check=True, capture_output=True)


def padded(weights: Weights) -> Weights:
    """Pad the small checkpoint to three blocks a level instead of one, and four in the decoder instead of two."""
    grown = {name: value for name, value in weights.items() if "put_blocks." not in name}
    trained = {name[len(UNET) :]: value for name, value in weights.items() if "put_blocks." in name}

    def place(kind: str, position: int, source: int, change=lambda name, value: value) -> None:
        prefix = f"{kind}_blocks.{source}."
        for name, value in trained.items():
            if name.startswith(prefix):
                changed = change(name, value)
                if changed is not None:
                    grown[f"{UNET}{kind}_blocks.{position}.{name[len(prefix) :]}"] = changed

    # the encoder: each level is a block, two blocks that add nothing, and the downsampling
    place("input", 0, 0)
    for level, source in enumerate((1, 3, 5)):
        first = 1 + level * (BLOCKS_A_LEVEL + 1)
        place("input", first, source)
        for position in (first + 1, first + 2):
            place("input", position, source, _adds_nothing)
            _square(grown, f"{UNET}input_blocks.{position}.0.")
        if level < LEVELS - 1:
            place("input", first + BLOCKS_A_LEVEL, source + 1)
    # the decoder: each level is a block, two blocks that return their input, and a block with upsampling
    for level, source in enumerate((0, 2, 4)):
        first = level * (BLOCKS_A_LEVEL + 1)
        place("output", first, source)
        for position in (first + 1, first + 2):
            place("output", position, source, _adds_nothing)
            _hands_on(grown, f"{UNET}output_blocks.{position}.0.")
        place("output", first + 3, source + 1)
    return grown


def _adds_nothing(name: str, value: np.ndarray) -> np.ndarray | None:
    """Make the branches of a block return zeros. Its shortcut is left out and made again by the caller."""
    if ".skip_connection." in name:
        return None
    return np.zeros_like(value) if ".out_layers.3." in name or ".proj_out." in name else value


def _square(weights: Weights, block: str) -> None:
    """Make the input of a copied block as wide as its output."""
    width = len(weights[f"{block}in_layers.2.weight"])
    _resize_front(weights, block, width)


def _hands_on(weights: Weights, block: str) -> None:
    """Make a decoder block return the first half of its input, without the encoder's half."""
    width = len(weights[f"{block}in_layers.2.weight"])
    _resize_front(weights, block, 2 * width)
    weights[f"{block}skip_connection.weight"] = np.eye(width, 2 * width, dtype=np.float16)[:, :, None, None]
    weights[f"{block}skip_connection.bias"] = np.zeros(width, np.float16)


def _resize_front(weights: Weights, block: str, width: int) -> None:
    weights[f"{block}in_layers.0.weight"] = np.ones(width, np.float16)
    weights[f"{block}in_layers.0.bias"] = np.zeros(width, np.float16)
    kernel = weights[f"{block}in_layers.2.weight"]
    weights[f"{block}in_layers.2.weight"] = np.zeros((len(kernel), width, *kernel.shape[2:]), np.float16)


def control(checkpoint: Weights) -> Weights:
    """Make a ControlNet for the padded checkpoint from its encoder's weights, with small random weights where training
    starts at 0."""
    random = np.random.default_rng(1)
    encoder = ("time_embed", "input_blocks", "middle_block")
    names = [name[len(UNET) :] for name in checkpoint if name.startswith(UNET)]
    weights = {name: checkpoint[UNET + name] for name in names if name.startswith(encoder)}

    def convolution(name: str, inside: int, outside: int, size: int, scale: float) -> None:
        kernel = random.normal(size=(outside, inside, size, size)) * scale / np.sqrt(inside * size * size)
        weights[f"{name}.weight"] = kernel.astype(np.float16)
        weights[f"{name}.bias"] = np.zeros(outside, np.float16)

    hint = (3, 16, 16, 32, 32, 96, 96, 256, WIDTHS[0])
    for layer, (inside, outside) in enumerate(pairwise(hint)):
        convolution(f"input_hint_block.{2 * layer}", inside, outside, 3, 2.0)
    widths = [WIDTHS[0]] * 5 + [WIDTHS[1]] * 7
    for position, width in enumerate(widths):
        convolution(f"zero_convs.{position}.0", width, width, 1, 0.3)
    convolution("middle_block_out.0", WIDTHS[1], WIDTHS[1], 1, 0.3)
    return weights


def hypernetwork() -> dict[Any, Any]:
    """Make a hypernetwork for the widths of the small checkpoint's layers: two linear layers each for keys and
    values."""
    generator = torch.Generator().manual_seed(2)

    def module(width: int) -> dict[str, torch.Tensor]:
        shapes = {"0.weight": (2 * width, width), "0.bias": (2 * width,), "1.weight": (width, 2 * width)}
        shapes["1.bias"] = (width,)
        return {f"linear.{name}": torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}

    layers = {width: (module(width), module(width)) for width in (*WIDTHS, CONTEXT)}
    description = {"step": 0, "name": HYPERNETWORK, "layer_structure": [1, 2, 1], "activation_func": "linear"}
    return {**layers, **description, "is_layer_norm": False, "weight_initialization": "Normal", "use_dropout": False}
