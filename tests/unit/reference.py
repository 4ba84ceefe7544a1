"""A naive implementation of METHOD.md, sections 1 to 4, in variance-preserving form. It uses no code of RIVAL.

The exemplar is evaluated beside the generation in every step, in one batch of four:
[exemplar and generation without the prompt, exemplar and generation with it].
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch

BETA_START, BETA_END, TRAINING_STEPS = 0.00085, 0.012, 1000
LATENT_SCALE = 0.18215


def alphas_cumprod():
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAINING_STEPS) ** 2
    return (1 - betas).cumprod(0).tolist()


def ddim_timesteps(steps):
    """Ascending: 1, 51, 101 ... for 20 steps; the clean latent lies at timestep 0."""
    return [step * (TRAINING_STEPS // steps) + 1 for step in range(steps)]


def sigma(alpha):
    return ((1 - alpha) / alpha) ** 0.5


def ddim_step(x, eps, alpha, to_alpha):
    clean = (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    return to_alpha**0.5 * clean + (1 - to_alpha) ** 0.5 * eps


def embed(pipeline, text):
    tokens = pipeline.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return pipeline.text_encoder(tokens)[0]


def encode(pipeline, image):
    # the memory order stays channels last: in another order the VAE rounds differently, by 1e-4
    pixels = torch.from_numpy(np.array(image, np.float32)[None]).permute(0, 3, 1, 2) / 255 * 2 - 1
    return pipeline.vae.encode(pixels).latent_dist.mean * LATENT_SCALE


def invert(pipeline, latent, prompt, steps, iterations=1):
    """Section 1: the exemplar's latents from the clean one up, one for each timestep and one below."""
    text, alphas = embed(pipeline, prompt), alphas_cumprod()
    path = [alphas[t] for t in [0, *ddim_timesteps(steps)]]
    chain, seen = [latent], []
    for i, t in enumerate(ddim_timesteps(steps)):
        lower, upper = path[i], path[i + 1]
        if not seen:
            guess = chain[-1]
        elif len(seen) == 1:
            guess = ddim_step(chain[-1], seen[-1], lower, upper)
        else:
            ahead = (sigma(upper) - sigma(lower)) / (sigma(lower) - sigma(path[i - 1]))
            guess = ddim_step(chain[-1], seen[-1] + ahead * (seen[-1] - seen[-2]), lower, upper)
        for _ in range(iterations):
            eps = pipeline.unet(guess, t, text).sample
            guess = ddim_step(chain[-1], eps, lower, upper)
        chain.append(guess)
        seen.append(eps)
    return chain


def permute(latent, seed):
    """Section 2: one order of the positions for all channels."""
    order = torch.randperm(latent.shape[2] * latent.shape[3], generator=torch.Generator().manual_seed(seed))
    return latent.flatten(2)[:, :, order].view_as(latent)


def slope(chain, steps, i):
    """Section 4: `eps_R` of step i, which leads from `chain[i + 1]` down to `chain[i]`, in variance-exploding form."""
    alphas, timesteps = alphas_cumprod(), ddim_timesteps(steps)
    upper, lower = alphas[timesteps[i]], alphas[timesteps[i - 1] if i else 0]
    rise = chain[i + 1] / upper**0.5 - chain[i] / lower**0.5
    return rise / (((1 - upper) / upper) ** 0.5 - ((1 - lower) / lower) ** 0.5)


def matched(noise, top):
    """What breaks shapes, remedy 1: fresh noise with the top's mean and standard deviation, exactly."""
    return normalised(noise, top)


def attention(layer, tokens, context):
    queries, keys, values = (
        projected.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for projected in (layer.to_q(tokens), layer.to_k(context), layer.to_v(context))
    )
    weights = (queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5).softmax(-1)
    return layer.to_out[0]((weights @ values).transpose(1, 2).flatten(2))


def injected_forward(layer, concatenated, uncond_sees):
    def forward(tokens, *_, **__):
        exemplar, generation = tokens[0::2], tokens[1::2]
        context = torch.cat([generation, exemplar], 1) if concatenated else exemplar
        if not uncond_sees:
            # remedy 2: the row without the prompt attends to its own tokens
            own = generation[:1].repeat(1, 2, 1) if concatenated else generation[:1]
            context = torch.cat([own, context[1:]])
        pairs = zip(attention(layer, exemplar, exemplar), attention(layer, generation, context), strict=True)
        return torch.stack([row for pair in pairs for row in pair])

    return forward


@contextmanager
def injection(unet, concatenated, uncond_sees=True):
    """Section 3: replace the forward of every self-attention layer while the context manager is open."""
    layers = [module for name, module in unet.named_modules() if name.endswith("attn1")]
    for layer in layers:
        layer.forward = injected_forward(layer, concatenated, uncond_sees)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def normalised(own, exemplar):
    """Section 4."""
    own_mean, mean = own.mean((2, 3), keepdim=True), exemplar.mean((2, 3), keepdim=True)
    squares = [((x - x.mean((2, 3), keepdim=True)) ** 2).sum((2, 3), keepdim=True) for x in (own, exemplar)]
    own_std, std = ((square / (own[0, 0].numel() - 1) + 1e-5) ** 0.5 for square in squares)
    return (own - own_mean) / own_std * std + mean


@torch.no_grad()
def vary(
    pipeline,
    image,
    prompt,
    exemplar_prompt,
    guidance,
    steps,
    iterations,
    seed,
    t_align,
    t_early,
    early_steps,
    alignment,
    exact=False,
    start="permuted",
    uncond_share=1.0,
):
    """Final latent of one variation and the exemplar's chain, both variance-preserving.

    exact: the exemplar's row without the prompt has the empty prompt, as the generation's row has, not the exemplar's
    prompt.
    """
    chain = invert(pipeline, encode(pipeline, image), exemplar_prompt, steps, iterations)
    alphas, timesteps = alphas_cumprod(), ddim_timesteps(steps)
    own, exemplar, empty = (embed(pipeline, words) for words in (prompt, exemplar_prompt, ""))
    text = torch.cat([empty if exact else exemplar, empty, exemplar, own])
    fresh = torch.randn(chain[-1].shape, generator=torch.Generator().manual_seed(seed))
    x = permute(chain[-1], seed) if start == "permuted" else matched(fresh, chain[-1])
    for i in reversed(range(steps)):
        t, x_exemplar = timesteps[i], chain[i + 1]
        if alignment == "latent" and t > t_early:
            x = normalised(x, x_exemplar)
        batch = torch.cat([x_exemplar, x, x_exemplar, x])
        if t > early_steps:
            predictions = pipeline.unet(batch, t, text).sample
        else:
            # the golden ratio spreads the share over the chain's nodes, which count from the clean latent's, 0
            uncond_sees = uncond_share == 1 or (i + 1) * (5**0.5 - 1) / 2 % 1 < uncond_share
            with injection(pipeline.unet, concatenated=t <= t_align, uncond_sees=uncond_sees):
                predictions = pipeline.unet(batch, t, text).sample
        _, uncond, _, cond = predictions.chunk(4)
        eps = uncond + guidance * (cond - uncond)
        if alignment == "noise" and t > t_early:
            eps = normalised(eps, slope(chain, steps, i))
        x = ddim_step(x, eps, alphas[t], alphas[timesteps[i - 1] if i else 0])
    return x, chain
