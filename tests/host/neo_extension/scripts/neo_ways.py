"""Make a Forge behave as Forge Neo's files show, wherever the two differ for RIVAL. Loaded before RIVAL."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType

import torch
from backend.nn.vae import IntegratedAutoencoderKL
from modules import sd_samplers, sd_samplers_cfg_denoiser, sd_samplers_common, sd_samplers_kdiffusion, shared

SEEING = "sampler_post_cfg_function"

# Neo's presets instead of Forge's; Neo has none of the interrogators, but Forge's page needs one of them
presets = ModuleType("modules_forge.presets")
presets.__spec__ = ModuleSpec("modules_forge.presets", None)
sys.modules["modules_forge.presets"] = presets
sys.modules["modules.deepbooru"] = None

# Neo's encoder draws a sample, whatever a patcher asks for
forges_encode = IntegratedAutoencoderKL.encode
IntegratedAutoencoderKL.encode = lambda self, x, regulation=None: forges_encode(self, x)

# Neo switches to the refiner by the noise level as well
forges_refiner = sd_samplers_common.apply_refiner


def apply_refiner(cfg_denoiser, x, sigma):
    assert 0 < float(sigma) < 20, f"{sigma} is a timestep"
    return forges_refiner(cfg_denoiser, x)


sd_samplers_common.apply_refiner = apply_refiner


class Common:
    """Forge's denoiser gets this in place of the module, because it gives no noise level."""

    apply_refiner = staticmethod(forges_refiner)

    def __getattr__(self, name):
        return getattr(sd_samplers_common, name)


sd_samplers_cfg_denoiser.sd_samplers_common = Common()

# Neo's denoiser takes options for one call; through them CFG++ sees the prediction without the prompt
CFGDenoiser = sd_samplers_cfg_denoiser.CFGDenoiser
forges_forward = CFGDenoiser.forward


def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond, **kwargs):
    options = shared.sd_model.forge_objects.unet.model_options
    usual = options.get(SEEING, [])
    options[SEEING] = [*usual, *kwargs.get("model_options", {}).get(SEEING, [])]
    try:
        return forges_forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond)
    finally:
        options[SEEING] = usual


CFGDenoiser.forward = forward


def euler_cfg_pp(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Take Euler's steps from the guided prediction along the direction without the prompt.

    The change of the one prediction must be the change of the other. The log says in how many steps it is.
    """
    seen, corrected = {}, 0

    def see(done):
        seen.update(done, guided=done["denoised"].clone(), uncond=done["uncond_denoised"].clone())
        return done["denoised"]

    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        clean = model(x, sigma.expand(len(x)), **extra_args, model_options={SEEING: [see]})
        change, of_uncond = clean - seen["guided"], seen["uncond_denoised"] - seen["uncond"]
        assert torch.allclose(change, of_uncond, atol=1e-4), "the direction is another one"
        corrected += bool(change.abs().max() > 1e-3)
        callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": clean})
        with torch.no_grad():
            x = clean + (x - seen["uncond_denoised"]) * after / sigma
    print(f"corrected in {corrected} steps.")
    return x


data = sd_samplers_common.SamplerData(
    "Euler CFG++", lambda model: sd_samplers_kdiffusion.KDiffusionSampler(euler_cfg_pp, model), ["euler_cfg_pp"], {}
)
sd_samplers.all_samplers.append(data)
sd_samplers.all_samplers_map[data.name] = data
sd_samplers.set_samplers()
