"""Watches what Forge and reForge sample with beside the UNet: patchers, samplers, the noise schedule, the VAE.

Imported by their own Python alone.
"""

from __future__ import annotations

from modules import sd_samplers_cfg_denoiser, sd_samplers_common, sd_samplers_kdiffusion, sd_samplers_timesteps

SAMPLERS = (
    *(sd_samplers_common.Sampler, sd_samplers_cfg_denoiser.CFGDenoiser),
    *(sd_samplers_kdiffusion.KDiffusionSampler, sd_samplers_kdiffusion.CFGDenoiserKDiffusion),
    *(sd_samplers_timesteps.CompVisSampler, sd_samplers_timesteps.CFGDenoiserTimesteps),
)
KEPT = ("forge_objects", "forge_objects_original", "forge_objects_after_applying_lora")
"""A loaded checkpoint's, between requests."""
SCHEDULES = ("predictor", "model_sampling")
"""What Forge and reForge call a model's."""
WEIGHTS = ("lora_patches", "patches")
"""What they call a patcher's changes of weights."""
HOSTS_OWN = ("backend.", "ldm_patched.", "modules_forge.")
"""Modules of the hosts: token merging stays in the options until the next request, reForge replaces methods itself."""


def leftovers(checkpoint):
    """What a request has left in a checkpoint's patchers, or in place of methods."""
    for kept in KEPT:
        objects = getattr(checkpoint, kept)
        for name in ("unet", "clip", "vae"):
            yield from _in_patcher(f"{kept}.{name}", getattr(objects, name))
    objects = checkpoint.forge_objects
    yield from _in_patcher("the original unet", checkpoint.forge_objects_original.unet, WEIGHTS)
    model = objects.unet.model
    schedules = [getattr(model, name) for name in SCHEDULES if hasattr(model, name)]
    for part in (checkpoint, objects.unet, model, *schedules, objects.vae, objects.vae.first_stage_model):
        yield from (f"{type(part).__name__}: replaced {name}" for name in _replaced(part))
    for kind in SAMPLERS:
        yield from (f"{kind.__name__}: replaced {name}" for name in _foreign(kind))


def _in_patcher(where, holder, kinds=("model_options", "object_patches")):
    patcher = getattr(holder, "patcher", holder)
    for kind in kinds:
        yield from (f"{where}: {kind} {path}" for path in _left(getattr(patcher, kind, {})))


def _left(value, path=()):
    """Paths to whatever is not a container in nested ones; a new patcher's have nothing."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _left(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _left(inner, (*path, number))
    elif not _is_hosts(value):
        yield f"{path} {value}"


def _replaced(part):
    """Methods of its class that an object's own attributes stand in for."""
    methods = {name: value for name, value in vars(part).items() if callable(getattr(type(part), name, None))}
    return [name for name, value in methods.items() if not _is_hosts(value)]


def _is_hosts(value):
    return (getattr(value, "__module__", None) or "").startswith(HOSTS_OWN)


def _foreign(kind):
    """Methods of a class that were not written where it was."""
    return [
        name for name, method in vars(kind).items() if getattr(method, "__module__", kind.__module__) != kind.__module__
    ]
