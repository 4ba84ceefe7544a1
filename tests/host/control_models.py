"""Small random models for the forks' built-in ControlNet: a control model, an IP-Adapter and its CLIP."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

UNET = "model.diffusion_model."
COPIED = ("input_blocks.", "middle_block.", "time_embed.")
"""The parts of the UNet that a control model has."""
HINT = (3, 16, 16, 32, 32, 96, 96, 256)
"""Channels of the layers that read the image, before the UNet's channels."""
TEXT, LOOK, TOKENS = 96, 16, 4
"""Width of a prompt's tokens, width of CLIP, and the number of tokens that stand for an image."""
CROSS_ATTENTION = {0: 64, 3: 128, 6: 128, 7: 64, 8: 64, 15: 128}
"""Channels of the small UNet's layers, by the number that an IP-Adapter for SD 1.x gives a layer."""
LAYERS, PATCH, PLACES = 24, 14, 257
"""Sizes of CLIP's L/14, by which the host recognises it."""
CONTROL, ADAPTER = "control-small", "ip-adapter-small"


def place_models(models: Path, checkpoint: Path) -> None:
    """Write the models for the small checkpoint into a host's folder of models."""
    control, looking = models / "ControlNet", models / "ControlNetPreprocessor"
    control.mkdir(exist_ok=True)
    looking.mkdir(exist_ok=True)
    save_file(control_model(checkpoint), control / f"{CONTROL}.safetensors")
    save_file(ip_adapter(), control / f"{ADAPTER}.safetensors")
    save_file(clip(), looking / "CLIP-ViT-H-14.safetensors")


def control_model(checkpoint: Path) -> dict[str, np.ndarray]:
    """Make a control model: the UNet's first half, with random convolutions from the image and to the second half."""
    weights = {name.removeprefix(UNET): value for name, value in load_file(checkpoint).items()}
    model = {name: value for name, value in weights.items() if name.startswith(COPIED)}
    draw = _Random()
    channels = (*HINT, len(model["input_blocks.0.0.weight"]))
    for number, (before, after) in enumerate(pairwise(channels)):
        model |= draw.layer(f"input_hint_block.{2 * number}", after, before, 3, 3)
    blocks = 1 + max(int(name.split(".")[1]) for name in model if name.startswith("input_blocks."))
    for number in range(blocks):
        last = [name for name in model if name.startswith(f"input_blocks.{number}.") and name.endswith("bias")][-1]
        model |= draw.layer(f"zero_convs.{number}.0", len(model[last]), len(model[last]), 1, 1)
    middle = len(model["middle_block.2.out_layers.3.bias"])
    return model | draw.layer("middle_block_out.0", middle, middle, 1, 1)


def ip_adapter() -> dict[str, np.ndarray]:
    """Make an IP-Adapter: keys and values of an image's tokens for each cross-attention layer."""
    draw = _Random()
    model = draw.layer("image_proj.proj", TOKENS * TEXT, LOOK) | draw.norm("image_proj.norm", TEXT)
    for number in range(16):
        for kind in ("k", "v"):
            name = f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight"
            model[name] = draw.weights(CROSS_ATTENTION.get(number, TEXT), TEXT)
    return model


def clip() -> dict[str, np.ndarray]:
    """Make a CLIP with L/14's layers, but narrow ones."""
    draw = _Random()
    model = {
        "vision_model.embeddings.class_embedding": draw.weights(LOOK),
        "vision_model.embeddings.patch_embedding.weight": draw.weights(LOOK, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": draw.weights(PLACES, LOOK),
        "visual_projection.weight": draw.weights(LOOK, LOOK),
        **draw.norm("vision_model.pre_layrnorm", LOOK),
        **draw.norm("vision_model.post_layernorm", LOOK),
    }
    for number in range(LAYERS):
        layer = f"vision_model.encoder.layers.{number}"
        for part in ("q", "k", "v", "out"):
            model |= draw.layer(f"{layer}.self_attn.{part}_proj", LOOK, LOOK)
        model |= draw.norm(f"{layer}.layer_norm1", LOOK) | draw.norm(f"{layer}.layer_norm2", LOOK)
        model |= draw.layer(f"{layer}.mlp.fc1", 2 * LOOK, LOOK) | draw.layer(f"{layer}.mlp.fc2", LOOK, 2 * LOOK)
    return model


class _Random:
    def __init__(self):
        self._generator = np.random.default_rng(0)

    def weights(self, *shape: int) -> np.ndarray:
        scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 1
        return (self._generator.normal(size=shape) * scale).astype(np.float32)

    def layer(self, name: str, *shape: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": self.weights(*shape), f"{name}.bias": np.zeros(shape[0], dtype=np.float32)}

    def norm(self, name: str, width: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": np.ones(width, dtype=np.float32), f"{name}.bias": np.zeros(width, dtype=np.float32)}
