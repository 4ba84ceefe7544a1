"""A sampling tried without the model: which noise levels a sampler visits, and where it starts.

The host's own method runs with its own schedule, options and sampler function; only the denoiser answers nought
without an evaluation, and no random number is drawn. So whatever the sampler does between its levels (midpoints,
ancestral steps, churn, restarts) is read from the sampler itself and not computed here a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from rival_ext.hosts.webui_neighbours import instance_attribute


@dataclass
class Rehearsal:
    """What was seen.

    clocks: what the denoiser is told as `sigma`, call by call. arguments: what the sampler's function is given by name.
    gains: of the latents that the host's method is given, each one's share in the latent where the function starts.
    adds_noise: whether fresh noise reaches the latent on the way.
    """

    clocks: list[float] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    gains: list[float] = field(default_factory=list)
    adds_noise: bool = False


SEEING = "sampler_post_cfg_function"
"""What the CFG++ samplers of reForge and Forge Neo hand their denoiser, to see what it predicts without the prompt."""

NOTHING: Mapping[str, Any] = {}

LOUD = 1e8
"""What is drawn in place of random numbers: wherever it reaches a latent, it is seen there."""


class Loud:
    """In place of the host's generators, which must not move; it answers on the device of the latents."""

    def __init__(self, device: torch.device):
        self._answer = torch.full((1,), LOUD, device=device)

    def next(self, *_: Any) -> Tensor:
        return self._answer


def rehearse(p: Any, sample: Callable[[Sequence[Tensor]], Tensor], latents: Sequence[Tensor]) -> Rehearsal:
    """Tries `sample`, which calls the method of `p.sampler` that starts from `latents`."""
    sampler, denoiser = p.sampler, p.sampler.model_wrap_cfg
    seen = Rehearsal()
    loud = Loud(latents[0].device)

    def denoise(x: Tensor, clock: Tensor, *_: Any, model_options: Mapping[str, Any] = NOTHING, **__: Any) -> Tensor:
        seen.clocks.append(float(clock.max()))
        seen.adds_noise |= bool(x.abs().max() > LOUD**0.5)
        nought = torch.zeros_like(x)
        # what CFG++ takes from its denoiser beside the answer
        denoiser.last_noise_uncond = torch.zeros_like(x)
        for see in model_options.get(SEEING, ()):
            see({"denoised": nought, "uncond_denoised": torch.zeros_like(x)})
        return nought

    function = sampler.func

    # the host looks up by name which arguments the function takes
    @wraps(function)
    def run_silently(model: Any, x: Tensor, **arguments: Any) -> Tensor:
        seen.arguments = arguments
        seen.gains = x.flatten()[: len(latents)].tolist()
        silently = {"disable": True, "callback": lambda _: None}
        if "noise_sampler" in arguments:
            silently["noise_sampler"] = loud.next
        return function(model, x, **{**arguments, **silently})

    with ExitStack() as stack:
        stack.enter_context(instance_attribute(denoiser, "forward", denoise))
        stack.enter_context(instance_attribute(sampler, "func", run_silently))
        stack.enter_context(instance_attribute(p, "rng", loud))
        # some noise samplers draw their seed from the global generator
        stack.enter_context(torch.random.fork_rng(devices=[]))
        sample([_marked(latent, index) for index, latent in enumerate(latents)])
    return seen


def _marked(latent: Tensor, index: int) -> Tensor:
    """Nought but for a one at `index`: where the function starts, that place holds this latent's share."""
    mark = torch.zeros(latent.numel(), dtype=latent.dtype, device=latent.device)
    mark[index] = 1
    return mark.view(latent.shape)
