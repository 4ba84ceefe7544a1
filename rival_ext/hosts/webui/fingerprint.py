"""The two keys of an inversion: its key in the store, and the key by which the panel's preview of a run finds it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from modules import devices, sd_vae, shared
from torch import Tensor

from rival_ext.fields import INVERSION_FIELDS
from rival_ext.hosts.webui.backends.protocol import LoadedModel
from rival_ext.images.decoding import pixel_digest
from rival_ext.settings import Settings
from rival_ext.written import ALL, needs_each_level

REQUEST_FIELDS = ("sampler_name", "scheduler", "steps", "width", "height", "denoising_strength", "resize_mode")
"""The fields of a request that decide on an inversion, besides its prompt's networks and its images."""

NETWORK_TAG = re.compile(r"<[^<>]+:[^<>]*>")
"""A LoRA or another network in a prompt."""


def fingerprint(p: Any, model: LoadedModel, prompt_schedules: Any, networks: Any) -> Iterator[Tensor | object]:
    """List what changes a prediction, besides the latent, the noise level and the sampler: parts of the store's key.

    The conditioning itself stands for the prompt, its embeddings, clip skip and the text encoder's LoRAs.

    Args:
        p: The host's processing.
        model: The loaded checkpoint.
        prompt_schedules: The host's conditionings with which the exemplar is evaluated.
        networks: The networks that the prompt names in its <...> tags and that act in the inversion.

    Yields:
        Tensors, and other values whose `repr` tells them apart.
    """
    checkpoint = p.sd_model.sd_checkpoint_info
    yield checkpoint.filename, checkpoint.sha256
    yield from model.fingerprint()
    yield sd_vae.get_loaded_vae_name(), sd_vae.get_loaded_vae_hash(), shared.opts.sd_vae_encode_method
    yield from (entry.cond for schedule in prompt_schedules for entry in schedule)
    # as shares of the run, because the same prompt has the same inversion for any number of steps
    yield [[entry.end_at_step / schedule[-1].end_at_step for entry in schedule] for schedule in prompt_schedules]
    yield sorted((name, [param.items for param in params]) for name, params in networks.items())
    # as the model has been set up, whatever the options say by now
    yield p.tiling, devices.dtype_unet, devices.unet_needs_upcast, devices.fp8, shared.opts.upcast_attn


def preview_key(
    user: str | None,
    request: Mapping[str, Any],
    prompt: str,
    settings: Mapping[str, Any],
    image_digests: Iterable[str],
) -> str:
    """Make one key of all that decides on the inversions of a request, as far as the panel can see it.

    The WebUI's options and the loaded checkpoint are part of the key. Any changed option makes another key.

    Args:
        user: Whose request it is. Nobody finds another user's inversions.
        request: Values of `REQUEST_FIELDS`.
        prompt: The prompt. Only its <...> tags count.
        settings: Values of RIVAL's fields.
        image_digests: Digests of the exemplars' pixels, in order.

    Returns:
        64 hexadecimal digits.
    """
    nodes = settings["inversion_nodes"]
    # Forge has no checkpoint before the first run
    checkpoint = getattr(shared.sd_model, "sd_checkpoint_info", None)
    parts = [
        user,
        [request.get(name) for name in REQUEST_FIELDS],
        sorted(NETWORK_TAG.findall(prompt)),
        [settings[name] for name in sorted(INVERSION_FIELDS - {"inversion_nodes"})],
        ALL if needs_each_level(settings["mode"], settings["start_mix"], nodes) else nodes,
        list(image_digests),
        sorted(shared.opts.data.items(), key=str),
        checkpoint and checkpoint.filename,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def preview_keys(
    user: str | None,
    request: Mapping[str, Any],
    prompt: str,
    settings: Mapping[str, Any],
    image_digests: Sequence[str],
) -> list[str]:
    """Make the keys of the runs after which this one finds its inversions stored.

    Returns:
        The key of such a run itself (see `preview_key`), and of one that inverts at each level, as a check does.
    """
    each_level = {**settings, "inversion_nodes": ALL}
    return [preview_key(user, request, prompt, values, image_digests) for values in (settings, each_level)]


def preview_key_of_run(p: Any, settings: Settings) -> str | None:
    """Make the preview's key of a batch that runs.

    Args:
        p: The host's processing.
        settings: The validated settings.

    Returns:
        The key, or None for a run that the panel cannot foresee: with a mask, in the second pass of hires fix, or
        with the many prompts of a script.
    """
    if getattr(p, "mask", None) is not None or getattr(p, "is_hr_pass", False) or not isinstance(p.prompt, str):
        return None
    own = (getattr(p, "init_images", None) or [None])[0]
    images = [one.image or own for one in settings.exemplar_inputs if one.image or own]
    request = {name: getattr(p, name, None) for name in REQUEST_FIELDS}
    if own is None:
        request |= {"denoising_strength": None, "resize_mode": None}
    return preview_key(p.user, request, p.prompt, dict(settings), map(pixel_digest, images))
