"""Registers the stand-in under the names that the extension imports, `modules.*` and `gradio`."""

from __future__ import annotations

import re
import sys
import threading
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageOps

from tests.host.standin import plot, samplers
from tests.host.standin.state import cmd_opts, opts, state

REGISTERED = {
    event: [] for event in ("after_component", "app_started", "model_loaded", "script_unloaded", "ui_settings")
}
"""The registered callbacks, by event."""


def nobody(*_, **__):
    """Do nothing, in place of what only the panel calls."""


class Control:
    """A gradio component. It keeps its arguments."""

    def __init__(self, *positional, value=None, label=None, elem_id=None, **others):
        self.value = value
        self.label = label
        self.elem_id = elem_id
        self.shown = positional

    def click(self, **others):
        """Do nothing: nobody clicks here."""
        return self

    input = change = upload = clear = focus = then = click

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


class EventListenerMethod:
    __call__ = nobody


class Request:
    """A request to the page, with its user."""

    def __init__(self, username=None):
        self.username = username


class InputAccordion(Control):
    def __init__(self, value, **others):
        super().__init__(value=value, **others)


class Script:
    tabname = "img2img"
    args_from = args_to = 0
    filename = None

    def title(self):
        """Do nothing: each script has its own."""

    def process(self, p, *args):
        """Do nothing."""

    process_batch = process_before_every_sampling = postprocess = process

    def on_after_component(self, callback, *, elem_id):
        """Do nothing: the host's own controls are not built here."""


class PasteField(tuple):
    def __new__(cls, component, target):
        return super().__new__(cls, (component, target))


class SdConditioning(list):
    def __init__(self, prompts, width=None, height=None):
        super().__init__(prompts)


def get_learned_conditioning(model, prompts, steps):
    return [[SimpleNamespace(end_at_step=steps, cond=cond)] for cond in model.get_learned_conditioning(prompts)]


def reconstruct_cond_batch(c, current_step):
    return torch.stack([schedule[0].cond for schedule in c])


def parse_prompt(prompt):
    networks = re.findall(r"<(\w+):([^>]+)>", prompt)
    return re.sub(r"<\w+:[^>]+>", "", prompt), dict(networks)


def flatten(img, bgcolor):
    return img.convert("RGB")


def resize_image(resize_mode, im, width, height):
    return im.resize((width, height))


def fill(image, mask):
    """Fill the masked part with the mean colour of the rest. The host blurs the rest into it, or leaves black."""
    pixels, masked = np.array(image.convert("RGB")), np.asarray(mask.convert("L")) > 127
    pixels[masked] = 0 if masked.all() else pixels[~masked].mean(0)
    return Image.fromarray(pixels)


class OptionInfo:
    def __init__(self, default, label, component, component_args, section):
        self.default = default

    def info(self, info):
        return self


def _keep(event):
    REGISTERED[event].clear()
    return lambda callback: REGISTERED[event].append(callback)


def install(checkpoint):
    """Put the stand-in where `import modules` finds it, with this checkpoint loaded."""
    from tests.host.standin import processing

    shared = {
        "opts": opts,
        "state": state,
        "cmd_opts": cmd_opts,
        "total_tqdm": SimpleNamespace(clear=lambda: None),
        "interrogator": SimpleNamespace(interrogate=nobody),
        "OptionInfo": OptionInfo,
        "device": checkpoint.device,
        "sd_model": checkpoint,
        "loaded_hypernetworks": [],
    }
    members = {
        "call_queue": {
            "queue_lock": threading.Lock(),
            "wrap_queued_call": lambda function: function,
            "wrap_gradio_gpu_call": lambda function, extra_outputs: function,
        },
        "deepbooru": {"model": SimpleNamespace(tag=nobody)},
        "devices": {
            **{"dtype_vae": torch.float32, "dtype_unet": torch.float32, "unet_needs_upcast": False, "fp8": False},
            "torch_gc": nobody,
        },
        "extra_networks": {"parse_prompt": parse_prompt, "activate": lambda p, data: None},
        "hypernetworks": {},
        "hypernetworks.hypernetwork": {"apply_hypernetworks": lambda hypernetworks, context: (context, context)},
        "images": {
            **{"flatten": flatten, "resize_image": resize_image, "fix_image": ImageOps.exif_transpose},
            "read_info_from_image": nobody,
        },
        "masking": {"fill": fill},
        "processing": {
            "StableDiffusionProcessingTxt2Img": processing.Txt2Img,
            "StableDiffusionProcessingImg2Img": processing.Img2Img,
            "process_images": processing.process_images,
            "DecodedSamples": processing.DecodedSamples,
        },
        "prompt_parser": {
            "SdConditioning": SdConditioning,
            "get_learned_conditioning": get_learned_conditioning,
            "reconstruct_cond_batch": reconstruct_cond_batch,
        },
        "sd_hijack": {"current_optimizer": None},
        "sd_samplers": {"all_samplers_map": samplers.SAMPLERS},
        "sd_schedulers": {
            "schedulers": [SimpleNamespace(label="Automatic")],
            "schedulers_map": {"Automatic": None, "Karras": None},
        },
        "sd_samplers_cfg_denoiser": {"CFGDenoiser": samplers.CFGDenoiser},
        "sd_samplers_common": {
            "apply_refiner": lambda denoiser, sigma: False,
            "approximation_indexes": {},
            "images_tensor_to_samples": nobody,
            "setup_img2img_steps": samplers.setup_img2img_steps,
            "store_latent": state.store_latent,
        },
        "sd_samplers_kdiffusion": {"KDiffusionSampler": samplers.KDiffusionSampler},
        "sd_samplers_timesteps": {
            "CompVisSampler": samplers.CompVisSampler,
            "samplers_timesteps": [("DDIM", None, [], {})],
        },
        "sd_vae": {"get_loaded_vae_name": lambda: None, "get_loaded_vae_hash": lambda: None},
        "shared": shared,
        "script_callbacks": {
            **{f"on_{event}": _keep(event) for event in REGISTERED},
            "on_before_ui": lambda callback: callback(),
        },
        "scripts": {
            "Script": Script,
            "ScriptRunner": processing.ScriptRunner,
            "AlwaysVisible": object(),
            "scripts_data": plot.loaded_scripts(),
        },
        "infotext_utils": {
            "PasteField": PasteField,
            **dict.fromkeys(("create_override_settings_dict", "image_from_url_text"), nobody),
            "parse_generation_parameters": nobody,
        },
        "ui_components": {"FormRow": Control, "InputAccordion": InputAccordion, "ToolButton": Control},
    }
    package = ModuleType("modules")
    sys.modules["modules"] = package
    for name, attributes in members.items():
        module = ModuleType(f"modules.{name}")
        # `find_spec` finds a module only with its spec
        module.__spec__ = ModuleSpec(module.__name__, None)
        vars(module).update(attributes)
        parent, _, last = module.__name__.rpartition(".")
        setattr(sys.modules[parent], last, module)
        sys.modules[f"modules.{name}"] = module
    gradio = ModuleType("gradio")
    # gradio 3 has this class
    gradio.components = SimpleNamespace(IOComponent=Control)
    gradio.update = lambda **changed: changed
    gradio.Request = Request
    gradio.events = SimpleNamespace(EventListenerMethod=EventListenerMethod)
    for name in (
        "HTML",
        "Textbox",
        "Slider",
        "Radio",
        "Image",
        "Accordion",
        "Checkbox",
        "Button",
        "Number",
        "Dropdown",
        "Gallery",
        "State",
        "TabItem",
        "Tabs",
    ):
        setattr(gradio, name, Control)
    sys.modules["gradio"] = gradio


@contextmanager
def uninstalled():
    """Remove the stand-in and the extension's modules that import it when the context manager closes.

    An earlier stand-in is put back.
    """
    before = _taken_out()
    try:
        yield
    finally:
        _taken_out()
        for name, module in before.items():
            sys.modules[name] = module
            _set_in_package(name, module)


def _taken_out():
    ours = ("modules", "gradio", "rival_ext.hosts.webui")
    taken = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(ours)}
    for name in taken:
        _set_in_package(name, None)
    return taken


def _set_in_package(name, module):
    """Set or delete a module as an attribute of its package, where `from package import name` looks first."""
    package, _, child = name.rpartition(".")
    if package not in sys.modules:
        return
    if module is None:
        vars(sys.modules[package]).pop(child, None)
    else:
        setattr(sys.modules[package], child, module)
