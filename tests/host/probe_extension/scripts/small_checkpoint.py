"""Lets Forge load the small checkpoints of these tests. It recognises checkpoints by the shapes of the published
ones."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from modules import paths

TRAINED = Path(__file__).resolve().parents[4] / "demo" / "tiny-emoji-config"
"""Describe the parts of the repository's checkpoint."""
SMALL_VAE = {"block_out_channels": [96, 96, 96, 96], "layers_per_block": 0}
SMALL_CLIP = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"projection_dim": 64, "hidden_act": "quick_gelu"},
}
SMALL_OPEN_CLIP = {
    **{"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 4},
    "projection_dim": 256,
}
SMALL_LOOK = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 16}
HEADS_OF_16 = {"num_heads": -1, "num_head_channels": 16}


def described(name, published, parts):
    """Make a folder with the description of a published checkpoint, with other sizes of its parts."""
    folder = Path(paths.data_path) / "descriptions" / name
    shutil.copytree(Path(paths.script_path) / "backend" / "huggingface" / published, folder, dirs_exist_ok=True)
    for part, sizes in parts.items():
        file = folder / part / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | sizes))
    return str(folder)


def smaller(published, description, unet, heads):
    """Make a class like one of the host's checkpoints, recognised by other sizes of its UNet."""
    settings = {
        "huggingface_repo": description,
        "unet_config": {**published.unet_config, **unet},
        "unet_extra_config": {**published.unet_extra_config, **heads},
    }
    return type(published.__name__, (published,), settings)


def small_ones():
    from huggingface_guess import model_list

    yield smaller(
        model_list.SD15,
        str(TRAINED),
        {"context_dim": 96, "model_channels": 64},
        {"num_heads": 2},
    )
    yield smaller(
        model_list.SD15,
        described("sd1", model_list.SD15.huggingface_repo, {"text_encoder": SMALL_CLIP, "vae": SMALL_VAE}),
        {"context_dim": 64, "model_channels": 32},
        {"num_heads": 8},
    )
    yield smaller(
        model_list.SD20,
        described("sd2", model_list.SD20.huggingface_repo, {"text_encoder": SMALL_OPEN_CLIP, "vae": SMALL_VAE}),
        {"context_dim": 256, "model_channels": 32, "adm_in_channels": None},
        HEADS_OF_16,
    )
    yield smaller(
        model_list.SDXLRefiner,
        described(
            "refiner", model_list.SDXLRefiner.huggingface_repo, {"text_encoder": SMALL_OPEN_CLIP, "vae": SMALL_VAE}
        ),
        {"context_dim": 256, "model_channels": 32, "adm_in_channels": 1536, "transformer_depth": [0, 0, 1, 1, 2, 2]},
        HEADS_OF_16,
    )
    encoders = {"text_encoder": SMALL_CLIP, "text_encoder_2": SMALL_OPEN_CLIP}
    yield smaller(
        model_list.SDXL,
        described("sdxl", model_list.SDXL.huggingface_repo, {**encoders, "vae": SMALL_VAE}),
        {"context_dim": 320, "model_channels": 32, "adm_in_channels": 1792, "transformer_depth": [0, 0, 1, 1, 2, 2]},
        HEADS_OF_16,
    )


if find_spec("huggingface_guess") is not None:
    from backend.patcher import clipvision
    from huggingface_guess import model_list

    model_list.models[:0] = small_ones()
    clipvision.CLIP_VISION_VITL.update(SMALL_LOOK)
