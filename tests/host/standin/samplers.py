"""Both families of samplers. Like the host's, they choose the levels of img2img and return from the denoiser."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import torch
from torch import nn

from tests.host.standin.state import opts, state


class InterruptedException(BaseException):
    """Raised by the host inside its denoiser to end a sampling."""


def setup_img2img_steps(p, steps=None):
    steps = steps or p.steps
    return steps, int(min(p.denoising_strength, 0.999) * steps)


class CFGDenoiser(nn.Module):
    """The guided denoiser. One call evaluates the prompts' rows first, then the negative prompts' rows."""

    def __init__(self, sampler, model_wrap, blends_before):
        super().__init__()
        self.sampler = sampler
        self.model_wrap = model_wrap
        self.blends_before = blends_before
        self.init_latent = self.mask = self.nmask = None
        self.need_last_noise_uncond = False
        self.last_noise_uncond = None

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        if state.interrupted or state.skipped:
            raise InterruptedException
        if self.mask is not None and self.blends_before:
            x = self.blend(x)
        conditioning = {
            "c_crossattn": [torch.cat([*(parts[0] for parts in cond.batch), *uncond]).reshape(-1, *uncond.shape[1:])],
            "c_concat": [torch.cat([image_cond, image_cond])],
        }
        of_cond, of_uncond = self.model_wrap(torch.cat([x, x]), torch.cat([sigma, sigma]), cond=conditioning).chunk(2)
        denoised = of_uncond + cond_scale * (of_cond - of_uncond)
        return denoised if self.mask is None or self.blends_before else self.blend(denoised)

    def blend(self, latent):
        return latent * self.nmask + self.init_latent * self.mask


class Randomness:
    """The global noise source of the host's samplers, which the host seeds for each sampling."""

    rng = None


class Config:
    """The host's description of a sampler."""

    def __init__(self, second_order):
        self.second_order = second_order

    def total_steps(self, steps):
        return steps * 2 if self.second_order else steps


class Sampler:
    """The common part of both families."""

    def __init__(self, solver, model_wrap, blends_before):
        self.func, self.funcname = solver, f"sample_{solver.__name__}"
        self.config = Config(solver in (heun, dpm_2))
        self.model_wrap = model_wrap
        self.model_wrap_cfg = CFGDenoiser(self, model_wrap, blends_before)

    def initialize(self, p):
        self.model_wrap_cfg.mask, self.model_wrap_cfg.nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
        Randomness.rng = p.rng

    def launch(self, p, x, conditioning, unconditional_conditioning, image_conditioning, **schedule):
        self.initialize(p)
        state.sampling_steps, state.sampling_step = p.steps, 0
        self.last_latent = x
        self.sampler_extra_args = {
            **{"uncond": unconditional_conditioning, "cond": conditioning, "cond_scale": p.cfg_scale},
            **{"s_min_uncond": 0, "image_cond": image_conditioning},
        }
        try:
            return self.func(
                self.model_wrap_cfg,
                x,
                extra_args=self.sampler_extra_args,
                disable=False,
                callback=self.callback_state,
                **self.known(schedule),
            )
        except InterruptedException:
            return self.last_latent

    def known(self, schedule):
        """Choose the arguments of the schedule that the function's signature has."""
        parameters = inspect.signature(self.func).parameters
        return {name: value for name, value in schedule.items() if name in parameters}

    def callback_state(self, d):
        state.sampling_step, self.last_latent = d["i"], d["x"]


class SigmaDenoiser(nn.Module):
    """A noise prediction wrapped as a denoiser of variance-exploding latents."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        alphas = model.alphas_cumprod
        self.sigmas = ((1 - alphas) / alphas).sqrt().cpu()

    def forward(self, x, sigma, cond):
        log_sigmas = self.sigmas.log().numpy()
        timestep = np.interp(sigma.log().cpu().numpy(), log_sigmas, np.arange(len(log_sigmas)))
        scale = (1 + sigma**2).sqrt()[:, None, None, None]
        noise = self.model.apply_model(x / scale, torch.from_numpy(timestep).float().to(x), cond)
        return x - noise * sigma[:, None, None, None]


class KDiffusionSampler(Sampler):
    def __init__(self, solver, model):
        super().__init__(solver, SigmaDenoiser(model), blends_before=False)

    def get_sigmas(self, p, steps):
        sigmas = self.model_wrap.sigmas
        if p.scheduler == "Karras" or (p.scheduler == "Automatic" and self.funcname == "sample_dpmpp_2m"):
            rho, low, high = 7, float(sigmas[0]) ** (1 / 7), float(sigmas[-1]) ** (1 / 7)
            levels = (high + torch.linspace(0, 1, steps) * (low - high)) ** rho
        else:
            timestep = torch.linspace(len(sigmas) - 1, 0, steps).numpy()
            levels = torch.from_numpy(np.exp(np.interp(timestep, np.arange(len(sigmas)), sigmas.log().numpy()))).float()
        return torch.cat([levels, torch.zeros(1)])

    def schedule(self, sigmas):
        # the adaptive one must not go down to 0
        return {"sigmas": sigmas, "sigma_max": sigmas[0], "sigma_min": sigmas[-2]}

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        sigmas = self.get_sigmas(p, steps or p.steps)
        conditioning = (conditioning, unconditional_conditioning, image_conditioning)
        return self.launch(p, x * sigmas[0], *conditioning, **self.schedule(sigmas))

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None
    ):
        steps, t_enc = setup_img2img_steps(p, steps)
        self.model_wrap_cfg.init_latent = x
        sigmas = self.get_sigmas(p, steps)[steps - t_enc - 1 :]
        conditioning = (conditioning, unconditional_conditioning, image_conditioning)
        return self.launch(p, x + noise * sigmas[0], *conditioning, **self.schedule(sigmas))


def evaluate(model, x, sigma, extra_args):
    """Return the denoised latent and the slope at this level."""
    denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
    return denoised, (x - denoised) / sigma


def euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for index, (sigma, lower) in enumerate(itertools.pairwise(sigmas)):
        x = x + evaluate(model, x, sigma, extra_args)[1] * (lower - sigma)
        callback({"x": x, "i": index})
    return x


def heun(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for index, (sigma, lower) in enumerate(itertools.pairwise(sigmas)):
        _, slope = evaluate(model, x, sigma, extra_args)
        if lower > 0:
            _, below = evaluate(model, x + slope * (lower - sigma), lower, extra_args)
            slope = (slope + below) / 2
        x = x + slope * (lower - sigma)
        callback({"x": x, "i": index})
    return x


def dpm_2(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for index, (sigma, lower) in enumerate(itertools.pairwise(sigmas)):
        _, slope = evaluate(model, x, sigma, extra_args)
        if lower > 0:
            middle = (sigma * lower).sqrt()
            _, slope = evaluate(model, x + slope * (middle - sigma), middle, extra_args)
        x = x + slope * (lower - sigma)
        callback({"x": x, "i": index})
    return x


def dpm_adaptive(model, x, sigma_min, sigma_max, extra_args=None, callback=None, disable=None):
    """A sampler whose steps depend on the latent."""
    sigma, index = sigma_max, 0
    while sigma > sigma_min:
        denoised, slope = evaluate(model, x, sigma, extra_args)
        lower = torch.maximum(sigma * (0.5 + 0.1 * denoised.std().clamp(max=1)), sigma_min)
        x, sigma, index = x + slope * (lower - sigma), lower, index + 1
        callback({"x": x, "i": index})
    return x


def euler_ancestral(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for index, (sigma, lower) in enumerate(itertools.pairwise(sigmas)):
        _, slope = evaluate(model, x, sigma, extra_args)
        fresh = torch.minimum(lower, lower * (sigma**2 - lower**2).sqrt() / sigma)
        down = (lower**2 - fresh**2).sqrt()
        x = x + slope * (down - sigma) + Randomness.rng.next() * fresh
        callback({"x": x, "i": index})
    return x


def dpmpp_2m(model, x, sigmas, extra_args=None, callback=None, disable=None):
    previous = None
    for index, (sigma, lower) in enumerate(itertools.pairwise(sigmas)):
        denoised, _ = evaluate(model, x, sigma, extra_args)
        correction = denoised
        if previous is not None and lower > 0:
            ratio = (sigmas[index - 1] / sigma).log() / (sigma / lower).log()
            correction = denoised + (denoised - previous) / (2 * ratio)
        x = lower / sigma * x + (1 - lower / sigma) * correction
        previous = denoised
        callback({"x": x, "i": index})
    return x


class TimestepDenoiser(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, timesteps, cond):
        return self.model.apply_model(x, timesteps, cond)


class CompVisSampler(Sampler):
    def __init__(self, solver, model):
        super().__init__(solver, TimestepDenoiser(model), blends_before=True)
        self.alphas = model.alphas_cumprod

    def get_timesteps(self, p, steps):
        return torch.arange(0, 1000, 1000 // steps) + 1

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        conditioning = (conditioning, unconditional_conditioning, image_conditioning)
        return self.launch(p, x, *conditioning, timesteps=self.get_timesteps(p, steps or p.steps))

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None
    ):
        steps, t_enc = setup_img2img_steps(p, steps)
        self.model_wrap_cfg.init_latent = x
        timesteps = self.get_timesteps(p, steps)
        noised_at = self.alphas[timesteps[t_enc]]
        x = x * noised_at.sqrt() + noise * (1 - noised_at).sqrt()
        conditioning = (conditioning, unconditional_conditioning, image_conditioning)
        return self.launch(p, x, *conditioning, timesteps=timesteps[:t_enc])


def ddim(model, x, timesteps, extra_args=None, callback=None, disable=None):
    alphas = model.model_wrap.model.alphas_cumprod
    for index in range(len(timesteps) - 1, 0, -1):
        a, lower = alphas[timesteps[index]], alphas[timesteps[index - 1]]
        noise = model(x, float(timesteps[index]) * x.new_ones(len(x)), **extra_args)
        # the host draws it even if eta is 0
        Randomness.rng.next()
        x = lower.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - lower).sqrt() * noise
        callback({"x": x, "i": len(timesteps) - index})
    return x


SAMPLERS = {
    "DDIM": (CompVisSampler, ddim),
    "Euler": (KDiffusionSampler, euler),
    "Euler a": (KDiffusionSampler, euler_ancestral),
    "Heun": (KDiffusionSampler, heun),
    "DPM2": (KDiffusionSampler, dpm_2),
    "DPM++ 2M": (KDiffusionSampler, dpmpp_2m),
    "DPM adaptive": (KDiffusionSampler, dpm_adaptive),
}


def create_sampler(name, model):
    family, solver = SAMPLERS[name]
    return family(solver, model)


__all__ = ["SAMPLERS", "CompVisSampler", "KDiffusionSampler", "create_sampler", "opts", "setup_img2img_steps"]
