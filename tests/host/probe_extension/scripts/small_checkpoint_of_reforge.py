"""Lets reForge load the small checkpoints of these tests. It recognises checkpoints by the shapes of the published
ones.

reForge's own code loads and runs them, as any checkpoint of their family.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

TRAINED = Path(__file__).resolve().parents[4] / "demo" / "tiny-emoji-config" / "text_encoder" / "config.json"
OF_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
SMALL_CLIP = {
    **OF_CLIP,
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"projection_dim": 64, "hidden_act": "quick_gelu"},
}
SMALL_OPEN_CLIP = {
    **OF_CLIP,
    **{"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 4},
    **{"projection_dim": 256, "hidden_act": "gelu"},
}
HEADS_OF_16 = {"num_heads": -1, "num_head_channels": 16}
DEPTHS = {"transformer_depth": [0, 0, 1, 1, 2, 2]}
SMALL_VAE = {
    **{"double_z": True, "z_channels": 4, "resolution": 128, "in_channels": 3, "out_ch": 3},
    **{"attn_resolutions": [], "dropout": 0.0},
}
VAES = {
    128: {**SMALL_VAE, "ch": 64, "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1},
    96: {**SMALL_VAE, "ch": 96, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 0},
}
"""By the channels of the lowest level. Stable Diffusion's has 512."""


def make_known():
    """Add the small checkpoints to those that reForge detects."""
    from ldm_patched.modules import sd1_clip, sdxl_clip, supported_models
    from ldm_patched.modules.text_encoders import sd2_clip
    from modules_forge import forge_loader

    open_clip = {"layer": "hidden", "layer_idx": -2, "special_tokens": {"start": 49406, "end": 49407, "pad": 0}}

    def encoders(**configs):
        """Make a text encoder for each: its sizes, and how the host reads it."""

        def make(device="cpu", dtype=None, model_options=None):
            made = {
                name: sd1_clip.SDClipModel(device=device, dtype=dtype, textmodel_json_config=sizes, **reading)
                for name, (sizes, reading) in configs.items()
            }
            model = torch_module(made)
            model.dtypes = {dtype} - {None}
            return model

        return make

    def smaller(published, tokenizer, clip, unet, heads):
        """Make a class like one of the host's checkpoints, recognised by other sizes of its UNet."""
        target = SimpleNamespace(tokenizer=tokenizer, clip=clip, params={})
        settings = {
            "unet_config": {**published.unet_config, **unet},
            "unet_extra_config": {**published.unet_extra_config, **heads},
            "clip_target": lambda self, state_dict=None: target,
        }
        return type(published.__name__, (published,), settings)

    trained = {"return_projected_pooled": False}
    first = {"layer_norm_hidden_state": False}
    second = {**open_clip, "layer_norm_hidden_state": False}
    supported_models.models[:0] = [
        smaller(
            supported_models.SD15,
            sd1_clip.SD1Tokenizer,
            encoders(clip_l=(json.loads(TRAINED.read_text()), trained)),
            {"context_dim": 96, "model_channels": 64},
            {"num_heads": 2},
        ),
        smaller(
            supported_models.SD20,
            sd2_clip.SD2Tokenizer,
            encoders(clip_h=(SMALL_OPEN_CLIP, open_clip)),
            {"context_dim": 256, "model_channels": 32},
            HEADS_OF_16,
        ),
        smaller(
            supported_models.SDXLRefiner,
            sdxl_clip.SDXLTokenizer,
            encoders(clip_g=(SMALL_OPEN_CLIP, second)),
            {
                "context_dim": 256,
                "model_channels": 32,
                "adm_in_channels": 1536,
                "transformer_depth": [0, 0, 1, 1, 2, 2],
            },
            HEADS_OF_16,
        ),
        smaller(
            supported_models.SDXL,
            sdxl_clip.SDXLTokenizer,
            encoders(clip_l=(SMALL_CLIP, first), clip_g=(SMALL_OPEN_CLIP, second)),
            {
                "context_dim": 320,
                "model_channels": 32,
                "adm_in_channels": 1792,
                "transformer_depth": [0, 0, 1, 1, 2, 2],
            },
            HEADS_OF_16,
        ),
    ]
    autoencoder = forge_loader.VAE

    def small_or_not(sd, **given):
        weight = sd.get("decoder.conv_in.weight")
        if weight is not None and weight.shape[0] in VAES:
            given["config"] = {"params": {"ddconfig": VAES[weight.shape[0]], "embed_dim": 4}}
        return autoencoder(sd=sd, **given)

    forge_loader.VAE = small_or_not


def torch_module(parts):
    """Make a module with these attributes."""
    import torch

    module = torch.nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


# "Reload UI" adds them once more, which changes nothing: the first that fits is taken
if find_spec("ldm_patched") is not None:
    make_known()
