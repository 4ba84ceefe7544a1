"""Lets Forge load the small checkpoint of these tests: it knows checkpoints by the shapes of the published ones."""

from importlib.util import find_spec
from pathlib import Path

CONFIGURATION = Path(__file__).resolve().parents[4] / "demo" / "tiny-emoji-config"
WIDTH = {"context_dim": 96, "model_channels": 64}

if find_spec("huggingface_guess") is not None:
    from huggingface_guess import model_list

    class SmallCheckpoint(model_list.SD15):
        """Stable Diffusion 1, only smaller; its components are described in the checkout."""

        huggingface_repo = str(CONFIGURATION)
        unet_config = model_list.SD15.unet_config | WIDTH
        unet_extra_config = {"num_heads": 2, "num_head_channels": -1}  # noqa: RUF012

    model_list.models.insert(0, SmallCheckpoint)
