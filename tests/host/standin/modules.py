"""Registers the stand-in under the names that the extension imports: `modules.*` and `gradio`."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from PIL import Image

from tests.host.standin import plot, samplers
from tests.host.standin.state import opts, state


class Control:
    """A gradio component: what it was made with."""

    def __init__(self, *positional, value=None, label=None, **others):
        self.value = value
        self.label = label

    def click(self, **others):
        """Nobody clicks here."""

    input = click

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


class InputAccordion(Control):
    def __init__(self, value, **others):
        super().__init__(value=value, **others)


class Script:
    tabname = "img2img"

    def on_after_component(self, callback, *, elem_id):
        """The host's own controls are not built here."""


class PasteField(tuple):
    def __new__(cls, component, target):
        return super().__new__(cls, (component, target))


class SdConditioning(list):
    def __init__(self, prompts, width=None, height=None):
        super().__init__(prompts)


def get_learned_conditioning(model, prompts, steps):
    return [[SimpleNamespace(end_at_step=steps, cond=cond)] for cond in model.get_learned_conditioning(prompts)]


def reconstruct_cond_batch(schedules, step):
    return torch.stack([schedule[0].cond for schedule in schedules])


def parse_prompt(prompt):
    networks = re.findall(r"<(\w+):([^>]+)>", prompt)
    return re.sub(r"<\w+:[^>]+>", "", prompt), dict(networks)


def flatten(image, background):
    return image.convert("RGB")


def resize_image(mode, image, width, height):
    return image.resize((width, height))


def fill(image, mask):
    """The masked part in the mean colour of the rest, where the host blurs the rest into it."""
    pixels, masked = np.array(image.convert("RGB")), np.asarray(mask.convert("L")) > 127
    pixels[masked] = pixels[~masked].mean(0)
    return Image.fromarray(pixels)


def install(checkpoint):
    """Puts the stand-in where `import modules` finds it, with this checkpoint loaded."""
    shared = {
        "opts": opts,
        "state": state,
        "device": torch.device("cpu"),
        "sd_model": checkpoint,
        "loaded_hypernetworks": [],
    }
    members = {
        "devices": {"dtype_vae": torch.float32, "dtype_unet": torch.float32, "unet_needs_upcast": False, "fp8": False},
        "extra_networks": {"parse_prompt": parse_prompt, "activate": lambda p, data: None},
        "images": {"flatten": flatten, "resize_image": resize_image},
        "masking": {"fill": fill},
        "prompt_parser": {
            "SdConditioning": SdConditioning,
            "get_learned_conditioning": get_learned_conditioning,
            "reconstruct_cond_batch": reconstruct_cond_batch,
        },
        "sd_hijack": {"current_optimizer": None},
        "sd_samplers_common": {
            "apply_refiner": lambda denoiser, sigma: False,
            "approximation_indexes": {},
            "images_tensor_to_samples": None,
            "store_latent": state.store_latent,
        },
        "sd_samplers_kdiffusion": {"KDiffusionSampler": samplers.KDiffusionSampler},
        "sd_samplers_timesteps": {"CompVisSampler": samplers.CompVisSampler},
        "sd_vae": {"get_loaded_vae_name": lambda: None, "get_loaded_vae_hash": lambda: None},
        "shared": shared,
        "script_callbacks": {
            "on_model_loaded": lambda callback: None,
            "on_script_unloaded": lambda callback: None,
            "on_ui_settings": lambda callback: None,
            "on_before_ui": lambda callback: callback(),
        },
        "scripts": {"Script": Script, "AlwaysVisible": object(), "scripts_data": plot.loaded_scripts()},
        "infotext_utils": {"PasteField": PasteField},
        "ui_components": {"FormRow": Control, "InputAccordion": InputAccordion},
    }
    package = ModuleType("modules")
    sys.modules["modules"] = package
    for name, attributes in members.items():
        module = ModuleType(f"modules.{name}")
        vars(module).update(attributes)
        setattr(package, name, module)
        sys.modules[f"modules.{name}"] = module
    gradio = ModuleType("gradio")
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
    ):
        setattr(gradio, name, Control)
    sys.modules["gradio"] = gradio


@contextmanager
def uninstalled():
    """Takes the stand-in away again, with whatever of the extension has imported it."""
    try:
        yield
    finally:
        ours = ("modules", "gradio", "rival_ext.hosts.webui", "rival_ext.ui.panel", "rival_ext.ui.sampler_note")
        for name in [name for name in sys.modules if name.startswith(ours)]:
            del sys.modules[name]
