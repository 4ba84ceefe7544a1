"""An extension for a real reForge under test: it detects a checkpoint by its shape, and knows the small one's now.

What loads and runs it is reForge's own, as for any Stable Diffusion 1.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).resolve().parents[4]
TEXT_ENCODER = ROOT / "demo" / "tiny-emoji-config" / "text_encoder" / "config.json"
AUTOENCODER = {
    **{"double_z": True, "z_channels": 4, "resolution": 128, "in_channels": 3, "out_ch": 3, "ch": 64},
    **{"ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0},
}
CHANNELS_AT_THE_BOTTOM = 128
"""Of its autoencoder; Stable Diffusion's has 512."""


def make_known():
    """Adds the small checkpoint to what reForge detects."""
    from ldm_patched.modules import sd1_clip, supported_models, supported_models_base
    from modules_forge import forge_loader

    class TinyTextEncoder(sd1_clip.SDClipModel):
        def __init__(self, **given):
            given |= {"textmodel_json_config": json.loads(TEXT_ENCODER.read_text())}
            super().__init__(**given, return_projected_pooled=False)

    class TinyTextEncoders(sd1_clip.SD1ClipModel):
        def __init__(self, **given):
            super().__init__(**given, clip_model=TinyTextEncoder)

    class Tiny(supported_models.SD15):
        unet_config: ClassVar = {**supported_models.SD15.unet_config, "context_dim": 96, "model_channels": 64}
        unet_extra_config: ClassVar = {"num_heads": 2, "num_head_channels": -1}

        def clip_target(self, state_dict=None):
            return supported_models_base.ClipTarget(sd1_clip.SD1Tokenizer, TinyTextEncoders)

    supported_models.models.insert(0, Tiny)
    autoencoder = forge_loader.VAE

    def tiny_or_not(sd, **given):
        weight = sd.get("decoder.conv_in.weight")
        if weight is not None and weight.shape[0] == CHANNELS_AT_THE_BOTTOM:
            given["config"] = {"params": {"ddconfig": AUTOENCODER, "embed_dim": 4}}
        return autoencoder(sd=sd, **given)

    forge_loader.VAE = tiny_or_not


# once more where the page is built anew, which changes nothing: the first that fits is taken
if find_spec("ldm_patched") is not None:
    make_known()
