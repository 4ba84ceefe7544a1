"""Both families of samplers, with the host's habits: which levels img2img visits, what a denoiser returns."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn

from tests.host.standin.state import opts, state


class InterruptedException(BaseException):
    """What the host raises inside its denoiser to end a sampling."""


def setup_img2img_steps(p, steps=None):
    steps = steps or p.steps
    return steps, int(min(p.denoising_strength, 0.999) * steps)


class CFGDenoiser(nn.Module):
    """The guided denoiser: rows of all prompts first, then those of the negative prompts, in one call."""

    def __init__(self, model_wrap, blends_before):
        super().__init__()
        self.model_wrap = model_wrap
        self.blends_before = blends_before
        self.init_latent = self.mask = self.nmask = None

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        if state.interrupted or state.skipped:
            raise InterruptedException
        if self.mask is not None and self.blends_before:
            x = self.blend(x)
        conditioning = {
            "c_crossattn": [torch.cat([*(parts[0] for parts in cond.batch), *uncond]).reshape(-1, *uncond.shape[1:])],
            "c_concat": [torch.cat([image_cond, image_cond])],
        }
        guided, unguided = self.model_wrap(torch.cat([x, x]), torch.cat([sigma, sigma]), cond=conditioning).chunk(2)
        denoised = unguided + cond_scale * (guided - unguided)
        return denoised if self.mask is None or self.blends_before else self.blend(denoised)

    def blend(self, latent):
        return latent * self.nmask + self.init_latent * self.mask


class Sampler:
    """What both families share."""

    def __init__(self, solver, model_wrap, blends_before):
        self.solver = solver
        self.model_wrap = model_wrap
        self.model_wrap_cfg = CFGDenoiser(model_wrap, blends_before)

    def launch_sampling(self, x, p, arguments, levels):
        state.sampling_steps = p.steps
        self.model_wrap_cfg.mask, self.model_wrap_cfg.nmask = getattr(p, "mask", None), getattr(p, "nmask", None)
        last = x

        def callback(index, latent):
            nonlocal last
            state.sampling_step, last = index, latent

        try:
            return self.solver(self.model_wrap_cfg, x, levels, arguments, callback, p.rng)
        except InterruptedException:
            return last


class SigmaDenoiser(nn.Module):
    """Noise prediction as a denoiser of variance-exploding latents."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        alphas = model.alphas_cumprod
        self.sigmas = ((1 - alphas) / alphas).sqrt()

    def forward(self, x, sigma, cond):
        log_sigmas = self.sigmas.log().numpy()
        clock = np.interp(sigma.log().numpy(), log_sigmas, np.arange(len(log_sigmas)))
        scale = (1 + sigma**2).sqrt()[:, None, None, None]
        noise = self.model.apply_model(x / scale, torch.from_numpy(clock).float(), cond)
        return x - noise * sigma[:, None, None, None]


class KDiffusionSampler(Sampler):
    def __init__(self, solver, model):
        super().__init__(solver, SigmaDenoiser(model), blends_before=False)

    def get_sigmas(self, p, steps):
        sigmas = self.model_wrap.sigmas
        if p.scheduler == "Karras" or (p.scheduler == "Automatic" and self.solver is dpmpp_2m):
            rho, low, high = 7, float(sigmas[0]) ** (1 / 7), float(sigmas[-1]) ** (1 / 7)
            levels = (high + torch.linspace(0, 1, steps) * (low - high)) ** rho
        else:
            clock = torch.linspace(len(sigmas) - 1, 0, steps).numpy()
            levels = torch.from_numpy(np.exp(np.interp(clock, np.arange(len(sigmas)), sigmas.log().numpy()))).float()
        return torch.cat([levels, torch.zeros(1)])

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        levels = self.get_sigmas(p, steps or p.steps)
        arguments = (unconditional_conditioning, conditioning, p.cfg_scale, 0, image_conditioning)
        return self.launch_sampling(x * levels[0], p, arguments, levels)

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None
    ):
        steps, t_enc = setup_img2img_steps(p, steps)
        self.model_wrap_cfg.init_latent = x
        levels = self.get_sigmas(p, steps)[steps - t_enc - 1 :]
        arguments = (unconditional_conditioning, conditioning, p.cfg_scale, 0, image_conditioning)
        return self.launch_sampling(x + noise * levels[0], p, arguments, levels)


def euler(denoiser, x, levels, arguments, callback, rng):
    for index, (sigma, lower) in enumerate(itertools.pairwise(levels)):
        denoised = denoiser(x, sigma * x.new_ones(len(x)), *arguments)
        x = x + (x - denoised) / sigma * (lower - sigma)
        callback(index, x)
    return x


def euler_ancestral(denoiser, x, levels, arguments, callback, rng):
    for index, (sigma, lower) in enumerate(itertools.pairwise(levels)):
        denoised = denoiser(x, sigma * x.new_ones(len(x)), *arguments)
        fresh = torch.minimum(lower, lower * (sigma**2 - lower**2).sqrt() / sigma)
        down = (lower**2 - fresh**2).sqrt()
        x = x + (x - denoised) / sigma * (down - sigma) + rng.next() * fresh
        callback(index, x)
    return x


def dpmpp_2m(denoiser, x, levels, arguments, callback, rng):
    previous = None
    for index, (sigma, lower) in enumerate(itertools.pairwise(levels)):
        denoised = denoiser(x, sigma * x.new_ones(len(x)), *arguments)
        correction = denoised
        if previous is not None and lower > 0:
            ratio = (levels[index - 1] / sigma).log() / (sigma / lower).log()
            correction = denoised + (denoised - previous) / (2 * ratio)
        x = lower / sigma * x + (1 - lower / sigma) * correction
        previous = denoised
        callback(index, x)
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
        arguments = (unconditional_conditioning, conditioning, p.cfg_scale, 0, image_conditioning)
        return self.launch_sampling(x, p, arguments, (self.get_timesteps(p, steps or p.steps), self.alphas))

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None
    ):
        steps, t_enc = setup_img2img_steps(p, steps)
        self.model_wrap_cfg.init_latent = x
        timesteps = self.get_timesteps(p, steps)
        noised_at = self.alphas[timesteps[t_enc]]
        arguments = (unconditional_conditioning, conditioning, p.cfg_scale, 0, image_conditioning)
        x = x * noised_at.sqrt() + noise * (1 - noised_at).sqrt()
        return self.launch_sampling(x, p, arguments, (timesteps[:t_enc], self.alphas))


def ddim(denoiser, x, levels, arguments, callback, rng):
    timesteps, alphas = levels
    for index in range(len(timesteps) - 1, 0, -1):
        a, lower = alphas[timesteps[index]], alphas[timesteps[index - 1]]
        noise = denoiser(x, float(timesteps[index]) * x.new_ones(len(x)), *arguments)
        rng.next()
        x = lower.sqrt() * (x - (1 - a).sqrt() * noise) / a.sqrt() + (1 - lower).sqrt() * noise
        callback(len(timesteps) - index, x)
    return x


SAMPLERS = {
    "DDIM": (CompVisSampler, ddim),
    "Euler": (KDiffusionSampler, euler),
    "Euler a": (KDiffusionSampler, euler_ancestral),
    "DPM++ 2M": (KDiffusionSampler, dpmpp_2m),
    "Heun": (KDiffusionSampler, euler),
}


def create_sampler(name, model):
    family, solver = SAMPLERS[name]
    return family(solver, model)


__all__ = ["SAMPLERS", "CompVisSampler", "KDiffusionSampler", "create_sampler", "opts", "setup_img2img_steps"]
