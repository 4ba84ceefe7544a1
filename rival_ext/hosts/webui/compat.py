"""Compatibility with other extensions of the WebUI: they act on the generation, never on the exemplar.

Nothing of these extensions is imported. They are recognised by the marks that they leave on the UNet, by their titles
among the WebUI's scripts, and by their modules in `sys.modules` if they are loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from rival_ext.fields import DEFAULTS
from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.method.attention import suspended
from rival_ext.settings import Settings

T_EARLY_WITH_CONTROLNET = 400
"""The authors' `t_early` beside ControlNet."""

REPLACED_METHODS = {"_original_inner_forward_cn_hijack": "_forward", "original_forward_cn_hijack": "forward"}
"""ControlNet's marks on a block, and for each mark the method that ControlNet's reference units have replaced."""

FORWARD_TABLES = {"scripts.ipadapter.plugable_ipadapter": "all_hacks", "scripts.controlnet_lllite": "all_hack"}
"""ControlNet's modules that replace layers' forwards, and in each the name of its table: layer -> original forward."""

TILED_DIFFUSION_PACKAGE = "tile_methods."
"""The package of Tiled Diffusion's methods."""

DEMOFUSION_MODULE = "tileglobal.py"
"""The WebUI's name for the module of the script DemoFusion, which comes with Tiled Diffusion."""

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
    network = getattr(_controlnet_script(p), "latest_network", None)
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
    """Run the other extensions' cleanup if sampling raises, so that the next generation is unaffected.

    After an error the WebUI skips the callbacks in which ControlNet and Tiled Diffusion remove themselves from the
    model. ControlNet also marks the WebUI's cached prompts and unmarks them at the first evaluation. An error or an
    interrupt can come before it, so these prompts leave the cache after every run with ControlNet.

    Args:
        p: The host's processing.
    """
    script = _controlnet_script(p)
    network = getattr(script, "latest_network", None)
    try:
        yield
    except Exception:
        if network is not None:
            network.restore()
            script.latest_network = None
        for title in TILED_DIFFUSION_SCRIPTS:
            if script := _script(p, title):
                script.reset()
        raise
    finally:
        if network is not None:
            for name in PROMPT_CACHES & vars(p).keys():
                getattr(p, name)[:] = None, None


def apply_controlnet_default(p: Any, settings: Settings, given: Container[str]) -> Settings:
    """Replace the default of `t_early` by the authors' value beside ControlNet.

    Args:
        p: The host's processing.
        settings: The validated settings.
        given: The names of the fields that the request itself gives.

    Returns:
        Settings with `t_early` 400 if a ControlNet unit is enabled, the request does not give `t_early`, and `t_early`
        has its default. Else `settings`.
    """
    if "t_early" in given or settings.t_early != DEFAULTS["t_early"] or not controlnet_units(p):
        return settings
    return Settings(**{**dict(settings), "t_early": T_EARLY_WITH_CONTROLNET})


def controlnet_units(p: Any) -> list[str]:
    """List the enabled ControlNet units of a processing.

    Args:
        p: The host's processing.

    Returns:
        For each unit its model's name, or its preprocessor's name if it has no model.
    """
    script = _controlnet_script(p)
    if script is None:
        return []
    units = [arg for arg in p.script_args[script.args_from : script.args_to] if _unit_field(arg, "enabled")]
    return [
        str(model if (model := _unit_field(unit, "model")) not in (None, "None") else _unit_field(unit, "module"))
        for unit in units
    ]


def controlnet_reorders_rows(p: Any) -> bool:
    """Tell whether ControlNet gives the layers other rows than the host does: reference units, or a batch with style
    alignment."""
    network = getattr(_controlnet_script(p), "latest_network", None)
    return bool(getattr(network, "attn_module_list", ()))


def uses_tiled_diffusion(p: Any) -> bool:
    """Tell whether Tiled Diffusion evaluates the latent in tiles.

    Its marks are on the sampler's model (MultiDiffusion) or on the checkpoint (Mixture of Diffusers).
    """
    forward_owner = getattr(vars(p.sampler.model_wrap).get("forward"), "__self__", None)
    is_multidiffusion = type(forward_owner).__module__.startswith(TILED_DIFFUSION_PACKAGE)
    return is_multidiffusion or hasattr(p.sd_model, "apply_model_original_md")


def is_sampled_by_demofusion(p: Any) -> bool:
    """Tell whether DemoFusion has replaced the sampling of `p`. The WebUI then calls no script before the sampling."""
    return getattr(vars(p).get("sample"), "__module__", "") == DEMOFUSION_MODULE


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
        for layer, forward in forwards.items():
            yield layer, "forward", forward


def _controlnet_script(p: Any) -> Any:
    return _script(p, "ControlNet")


def _script(p: Any, title: str) -> Any:
    """Find an always-on script of a processing by its title. None if it is not installed."""
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    return next((script for script in scripts if script.title().lower() == title.lower()), None)


def _unit_field(unit: Any, name: str) -> Any:
    """A field of a ControlNet unit. The panel gives the unit as an object, the API as a mapping."""
    return unit.get(name) if isinstance(unit, Mapping) else getattr(unit, name, None)
