"""Compatibility with other extensions of the WebUI: they act on the generation, never on the exemplar.

Nothing of these extensions is imported. They are recognised by the marks that they leave on the UNet, by their titles
among the WebUI's scripts, and by their modules in `sys.modules` if they are loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.method.attention import suspended

REPLACED_METHODS = {"_original_inner_forward_cn_hijack": "_forward", "original_forward_cn_hijack": "forward"}
"""ControlNet's marks on a block, and for each mark the method that ControlNet's reference units have replaced."""

REFERENCE_UNITS = ("AttentionInjection", "ReVision")
"""ControlNet's names for the kinds of units that show the model an image and leave the layout alone."""

FORWARD_TABLES = {"scripts.ipadapter.plugable_ipadapter": "all_hacks", "scripts.controlnet_lllite": "all_hack"}
"""ControlNet's modules that replace layers' forwards, and in each the name of its table: layer -> original forward."""

TILED_DIFFUSION_PACKAGE = "tile_methods."
"""The package of Tiled Diffusion's methods."""

TILED_DIFFUSION_SCRIPTS = ("Tiled Diffusion", "DemoFusion")
"""The titles of Tiled Diffusion's scripts. Their `reset` removes them from the sampler and the checkpoint."""

PROMPT_CACHES = {"cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"}
"""The attributes of a processing that hold `[key, encoded prompts]`. The next processing gets the same lists."""


@contextmanager
def without_other_extensions(unet: nn.Module) -> Iterator[None]:
    """Put aside whatever would steer the exemplar, while the context manager is open: ControlNet's units and FreeU.

    Args:
        unet: The UNet of an ldm or sgm checkpoint.
    """
    with ExitStack() as stack:
        for module, name, own in [*_replaced_methods(unet), *_replaced_forwards()]:
            stack.enter_context(instance_attribute(module, name, own))
        freeu = getattr(sys.modules.get("lib_free_u.global_state"), "instance", None)
        if freeu is not None:
            stack.enter_context(instance_attribute(freeu, "enable", False))
        yield


@contextmanager
def references_without_exemplar(p: Any) -> Iterator[None]:
    """Keep the exemplar out of ControlNet's reference units, while the context manager is open.

    A reference unit evaluates its own image inside an evaluation of the generation. No layer injects there.

    Args:
        p: The host's processing.
    """
    network = _controlnet_network(p)
    if network is None:
        yield
        return
    evaluate = network.original_forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        with suspended():
            return evaluate(*args, **kwargs)

    with instance_attribute(network, "original_forward", forward):
        yield


@contextmanager
def extension_cleanup(p: Any) -> Iterator[None]:
    """Run the other extensions' cleanup if a batch's sampling raises, so that the next generation is unaffected.

    After an error the WebUI skips the callbacks in which ControlNet and Tiled Diffusion remove themselves from the
    model. ControlNet also marks the WebUI's cached prompts and unmarks them at the first evaluation. An error or an
    interrupt can come before it, so these prompts leave the cache after every run with ControlNet.

    Args:
        p: The host's processing.
    """
    try:
        yield
    except Exception:
        _forget_marked_prompts(p)
        _remove_controlnet(p)
        for title in TILED_DIFFUSION_SCRIPTS:
            if script := _script(p, title):
                script.reset()
        raise
    _forget_marked_prompts(p)


def controlnet_steers(p: Any) -> bool:
    """Tell whether a unit of ControlNet steers the sampling that is about to begin.

    An enabled unit that has failed does not, and a reference unit has its effect in the attention only.

    Args:
        p: The host's processing.
    """
    acting = getattr(_controlnet_network(p), "control_params", None) or ()
    return any(unit.control_model_type.name not in REFERENCE_UNITS for unit in acting)


def controlnet_reorders_rows(p: Any) -> bool:
    """Tell whether ControlNet gives the layers other rows than the host does: reference units, or a batch with style
    alignment."""
    return bool(getattr(_controlnet_network(p), "attn_module_list", ()))


def uses_tiled_diffusion(p: Any) -> bool:
    """Tell whether Tiled Diffusion evaluates the latent in tiles.

    Its marks are on the sampler's model (MultiDiffusion) or on the checkpoint (Mixture of Diffusers).
    """
    forward_owner = getattr(vars(p.sampler.model_wrap).get("forward"), "__self__", None)
    is_multidiffusion = type(forward_owner).__module__.startswith(TILED_DIFFUSION_PACKAGE)
    return is_multidiffusion or hasattr(p.sd_model, "apply_model_original_md")


def _replaced_methods(unet: nn.Module) -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    """Yield (module, name of a method that ControlNet has replaced on it, the module's own method)."""
    if "_original_forward" in vars(unet):
        yield unet, "forward", vars(unet)["_original_forward"]
    for module in unet.modules():
        for mark, name in REPLACED_METHODS.items():
            if mark in vars(module):
                # the class's method, not the one that ControlNet kept: token merging may have changed the class since
                yield module, name, getattr(type(module), name).__get__(module)


def _replaced_forwards() -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    """Yield (layer, "forward", original forward) for each layer in ControlNet's tables."""
    for module_name, table in FORWARD_TABLES.items():
        forwards: Mapping[nn.Module, Callable[..., Any]] = getattr(sys.modules.get(module_name), table, {})
        # a copy, because another thread may fill the table meanwhile
        for layer, forward in list(forwards.items()):
            yield layer, "forward", forward


def _controlnet_network(p: Any) -> Any:
    """ControlNet's hook on the UNet for this processing, or None if no unit acts."""
    return getattr(_script(p, "ControlNet"), "latest_network", None)


def _remove_controlnet(p: Any) -> None:
    network = _controlnet_network(p)
    if network is not None:
        network.restore()
        _script(p, "ControlNet").latest_network = None


def _forget_marked_prompts(p: Any) -> None:
    if _controlnet_network(p) is not None:
        for name in PROMPT_CACHES & vars(p).keys():
            getattr(p, name)[:] = None, None


def _script(p: Any, title: str) -> Any:
    """Find an always-on script of a processing by its title. None if it is not installed."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    return next((script for script in scripts if script.title().lower() == title.lower()), None)
