"""Watches what Forge and reForge use beside the UNet: patchers, samplers, the noise schedule, the VAE.

Imported only by their own Python.
"""

from __future__ import annotations

from modules import sd_samplers_cfg_denoiser, sd_samplers_common, sd_samplers_kdiffusion, sd_samplers_timesteps

SAMPLERS = (
    *(sd_samplers_common.Sampler, sd_samplers_cfg_denoiser.CFGDenoiser),
    *(sd_samplers_kdiffusion.KDiffusionSampler, sd_samplers_kdiffusion.CFGDenoiserKDiffusion),
    *(sd_samplers_timesteps.CompVisSampler, sd_samplers_timesteps.CFGDenoiserTimesteps),
)
KEPT = ("forge_objects", "forge_objects_original", "forge_objects_after_applying_lora")
"""The sets of patchers that a loaded checkpoint keeps between requests."""
SCHEDULES = ("predictor", "model_sampling")
"""Attributes of a patcher's model."""
WEIGHTS = ("lora_patches", "patches")
"""Attributes that hold a patcher's changes of weights."""
HOSTS_OWN = ("backend.", "ldm_patched.", "modules_forge.")
"""Modules of the hosts that leave changes themselves: token merging stays in the options until the next request, and
reForge replaces methods."""


def leftovers(checkpoint):
    """List what a request has left in a checkpoint's patchers, or in place of methods."""
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
    """List the paths to all values in nested containers. A new patcher has none."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _left(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _left(inner, (*path, number))
    elif not _is_hosts(value):
        yield f"{path} {value}"


def _replaced(part):
    """List the methods of an object that are replaced by attributes of the instance."""
    methods = {name: value for name, value in vars(part).items() if callable(getattr(type(part), name, None))}
    return [name for name, value in methods.items() if not _is_hosts(value)]


def _is_hosts(value):
    return (getattr(value, "__module__", None) or "").startswith(HOSTS_OWN)


def _foreign(kind):
    """List the methods of a class that are defined in another module than the class."""
    return [
        name for name, method in vars(kind).items() if getattr(method, "__module__", kind.__module__) != kind.__module__
    ]
