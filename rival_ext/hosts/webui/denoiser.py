"""The guided denoiser: the host's own denoiser with the guide around each of its calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from modules import shared
from torch import Tensor

from rival_ext.hosts.webui.compat import controlnet_reorders_rows
from rival_ext.hosts.webui.host import WebuiHost
from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.method.guide import Guide
from rival_ext.method.rows import COND, UNCOND

REFINER_SWITCH = (
    "injection ended with the switch to the refiner because the exemplar's features belong to the first checkpoint"
)
"""The note in the report of a run with a refiner."""


@contextmanager
def guided_denoiser(host: WebuiHost, guide: Guide, size: Sequence[int]) -> Iterator[None]:
    """Put the guide around every call of the host's denoiser while the context manager is open.

    Args:
        host: The host of this sampling.
        guide: The guide of this sampling.
        size: Height and width of the latents. Calls for other sizes are left alone.
    """
    denoiser = host.p.sampler.model_wrap_cfg
    with instance_attribute(denoiser, "forward", GuidedForward(host, guide, size, denoiser)):
        yield


class GuidedForward:
    """Stands in for the `forward` of the host's denoiser.

    Args:
        host: The host of this sampling.
        guide: The guide of this sampling.
        size: Height and width of the latents.
        denoiser: The host's denoiser.
    """

    def __init__(self, host: WebuiHost, guide: Guide, size: Sequence[int], denoiser: Any):
        self.host = host
        self.guide = guide
        self.size = size
        self.denoiser = denoiser
        self._forward = denoiser.forward
        self._checkpoint = shared.sd_model.sd_checkpoint_info
        self._has_switched = False
        self._marks_are_known = not controlnet_reorders_rows(host.p)

    def __call__(self, x: Tensor, sigma: Tensor, uncond: Any, cond: Any, *args: Any, **kwargs: Any) -> Tensor:
        host, guide, convention = self.host, self.guide, self.host.convention
        level = convention.noise_level(float(sigma.max()))
        if host.model.switch_to_refiner(self.denoiser, x, sigma, level):
            self._has_switched = True
            # as the host itself does where it switches, but before anything is injected
            cond, uncond = (self.denoiser.sampler.sampler_extra_args[name] for name in ("cond", "uncond"))
        if self._has_switched or shared.sd_model.sd_checkpoint_info is not self._checkpoint:
            guide.counts.note(REFINER_SWITCH)
            return self._forward(x, sigma, uncond, cond, *args, **kwargs)
        if x.shape[2:] != self.size:
            # some of reForge's samplers evaluate parts of the image, or a larger one, which the chain does not know
            return self._forward(x, sigma, uncond, cond, *args, **kwargs)
        latent = x / convention.scale(level)
        corrected = guide.corrected_latent(latent, level)
        if corrected is not latent:
            # in place: the sampler itself goes on from the corrected latent
            x.copy_(corrected * convention.scale(level))
        output = predicted = x

        def denoise() -> Tensor:
            nonlocal output, predicted
            with self._keeping_chain(x, level):
                output = self._forward(x, sigma, uncond, cond, *args, **kwargs)
            predicted = convention.noise_of(output, x, level)
            return predicted

        cond_or_uncond = _cond_or_uncond(cond, len(x)) if self._marks_are_known else ()
        noise = guide.guided_noise(level, denoise, cond_or_uncond)
        if noise is predicted:
            return output
        corrected_output = convention.output_of(noise, x, level).to(x)
        host.model.correct_uncond(self.denoiser, corrected_output - output)
        return corrected_output

    @contextmanager
    def _keeping_chain(self, x: Tensor, level: float) -> Iterator[None]:
        """What the host blends into the kept region is the chain's, so its own masks and soft inpainting keep it."""
        with ExitStack() as stack:
            if self.guide.canvas:
                chain = self.guide.canvas.chain
                kept = (self.host.convention.kept_latent(chain, level), chain.latent(level))
                clean, noisy = (latent.expand_as(x).to(x) for latent in kept)
                stack.enter_context(self.host.model.keeping_region(self.denoiser, clean, noisy))
            yield


def _cond_or_uncond(cond: Any, images: int) -> list[int]:
    """Which prompt each row of the UNet has, in the host's order.

    The prompts' rows come first, one for each part of an AND, then the negative prompts' rows. instruct-pix2pix
    evaluates the latter twice: with the image and without.
    """
    return [COND for parts in cond.batch for _ in parts] + [UNCOND] * 2 * images
