"""Other extensions of the WebUI: they steer the generation, never the exemplar.

Nothing of theirs is imported: they are known by the marks they leave on the UNet, by their title among the host's
scripts, and by their modules where they are loaded anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.method.attention import suspended
from rival_ext.settings import Settings

T_EARLY_WITH_CONTROLNET = 400
"""The authors' `t_early` where ControlNet steers the generation."""

REPLACED_METHODS = {"_original_inner_forward_cn_hijack": "_forward", "original_forward_cn_hijack": "forward"}
"""ControlNet's mark on a block that its reference units have replaced a method of -> the method."""

TABLES_OF_FORWARDS = {"scripts.ipadapter.plugable_ipadapter": "all_hacks", "scripts.controlnet_lllite": "all_hack"}
"""ControlNet's modules that keep a table of layers they replaced the forward of -> its name; layer -> forward."""

TILED = "tile_methods."
"""Package of Tiled Diffusion's methods."""

DEMOFUSION = "tileglobal.py"
"""The WebUI's name for the module of its script DemoFusion."""

TILED_SCRIPTS = ("Tiled Diffusion", "DemoFusion")
"""Titles of its scripts whose `reset` takes them off the sampler and the checkpoint."""

PROMPT_CACHES = {"cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"}
"""The host's (key, encoded prompts) in a processing, each shared with the next one."""


@contextmanager
def without_other_extensions(unet: nn.Module) -> Iterator[None]:
    """Puts aside, while it runs, whatever would steer the exemplar: ControlNet's units of all kinds, and FreeU."""
    with ExitStack() as stack:
        for module, name, own in [*_own_methods(unet), *_listed_forwards()]:
            stack.enter_context(instance_attribute(module, name, own))
        freeu = getattr(sys.modules.get("lib_free_u.global_state"), "instance", None)
        if freeu is not None:
            stack.enter_context(instance_attribute(freeu, "enable", False))
        yield


@contextmanager
def references_without_exemplar(p: Any) -> Iterator[None]:
    """A reference unit evaluates its own picture inside the generation's evaluation: there no exemplar is let in."""
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
    """Nothing of theirs stays behind where their own end is not reached: it would go on steering what comes next.

    The host skips after an error what takes ControlNet and Tiled Diffusion off the model. The marks that ControlNet
    puts on the host's stored prompts it takes off at the first evaluation, which an error or an interrupt may come
    before.
    """
    script = _controlnet_script(p)
    network = getattr(script, "latest_network", None)
    try:
        yield
    except Exception:
        if network is not None:
            network.restore()
            script.latest_network = None
        for tiled in TILED_SCRIPTS:
            if script := _script(p, tiled):
                script.reset()
        raise
    finally:
        if network is not None:
            for name in PROMPT_CACHES & vars(p).keys():
                getattr(p, name)[:] = None, None


def controlnet_units(p: Any) -> list[str]:
    """The enabled units of a processing, each by its model's name, or by its preprocessor's where it has no model."""
    script = _controlnet_script(p)
    if script is None:
        return []
    units = [arg for arg in p.script_args[script.args_from : script.args_to] if _of_unit(arg, "enabled")]
    return [
        str(model if (model := _of_unit(unit, "model")) not in (None, "None") else _of_unit(unit, "module"))
        for unit in units
    ]


def apply_controlnet_default(p: Any, settings: Settings, asked: Container[str]) -> Settings:
    """The settings with ControlNet's own default of `t_early`, if a unit is on and it is not among `asked`."""
    if "t_early" in asked or settings.t_early != Settings().t_early or not controlnet_units(p):
        return settings
    return Settings(**{**dict(settings), "t_early": T_EARLY_WITH_CONTROLNET})


def uses_tiled_diffusion(p: Any) -> bool:
    """Whether Tiled Diffusion cuts up what the sampler evaluates: its marks are on the sampler's model (MultiDiffusion)
    or on the checkpoint (Mixture of Diffusers).
    """
    of = getattr(vars(p.sampler.model_wrap).get("forward"), "__self__", None)
    return type(of).__module__.startswith(TILED) or hasattr(p.sd_model, "apply_model_original_md")


def is_sampled_by_demofusion(p: Any) -> bool:
    """Whether DemoFusion stands in for the sampling of `p`, which the WebUI then tells no script of."""
    return getattr(vars(p).get("sample"), "__module__", "") == DEMOFUSION


def controlnet_reorders_rows(p: Any) -> bool:
    """Whether ControlNet hands the layers other rows than the host does: reference units, aligned style in a batch."""
    network = getattr(_controlnet_script(p), "latest_network", None)
    return bool(getattr(network, "attn_module_list", ()))


def _own_methods(unet: nn.Module) -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    """(module, method's name, the module's own method) wherever ControlNet has replaced one."""
    if "_original_forward" in vars(unet):
        yield unet, "forward", vars(unet)["_original_forward"]
    for module in unet.modules():
        for mark, name in REPLACED_METHODS.items():
            if mark in vars(module):
                # the class's, not the one ControlNet kept: token merging may have changed the class since
                yield module, name, getattr(type(module), name).__get__(module)


def _listed_forwards() -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    for module_name, table in TABLES_OF_FORWARDS.items():
        forwards: Mapping[nn.Module, Callable[..., Any]] = getattr(sys.modules.get(module_name), table, {})
        for layer, forward in forwards.items():
            yield layer, "forward", forward


def _controlnet_script(p: Any) -> Any:
    return _script(p, "ControlNet")


def _script(p: Any, title: str) -> Any:
    scripts = getattr(getattr(p, "scripts", None), "alwayson_scripts", ())
    return next((script for script in scripts if script.title().lower() == title.lower()), None)


def _of_unit(unit: Any, name: str) -> Any:
    """A field of a unit, which the panel gives as an object and the API as a mapping."""
    return unit.get(name) if isinstance(unit, Mapping) else getattr(unit, name, None)
