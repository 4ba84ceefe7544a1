"""reForge's loaded checkpoint: a module of ComfyUI's UNet inside A1111's model, behind patchers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from html import escape
from types import FrameType
from typing import Any

import numpy as np
import torch
from ldm_patched.ldm.modules import attention
from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetModel
from ldm_patched.modules.conds import CONDRegular
from ldm_patched.modules.model_base import SD21UNCLIP, SDXLRefiner
from ldm_patched.modules.model_sampling import EPS, ModelSamplingDiscrete
from ldm_patched.modules.samplers import calc_cond_batch, sampling_function
from modules import sd_samplers_common, shared
from modules_forge.forge_sampler import cond_from_a1111_to_patched_ldm, sampling_cleanup, sampling_prepare
from modules_forge.main_thread import Task
from PIL import Image
from torch import Tensor

from rival_ext.hosts.webui.backends.patched import FAMILIES, PatchedModel
from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.hosts.webui.samplers import SigmaConvention

SAMPLING = "model_sampling"
"""The model's part that holds its noise schedule and its kind of prediction; an option of the host replaces it."""

TEXT, INPAINTING = 4, 9
"""Channels that a UNet sees."""

SOLVERS = "sample_ode_"
"""What the samplers' functions are called that leave the levels to a solver."""


class ReforgeSigmaConvention(SigmaConvention):
    """k-diffusion counts in the sigmas of the model's own schedule."""

    @staticmethod
    def is_adaptive(sampler: Any) -> bool:
        return SigmaConvention.is_adaptive(sampler) or sampler.func.__name__.startswith(SOLVERS)

    @staticmethod
    def alphas(sampler: Any) -> Tensor:
        sigmas = shared.sd_model.forge_objects.unet.get_model_object(SAMPLING).sigmas
        return 1 / (sigmas**2 + 1)


class ReforgeModel(PatchedModel):
    """See `LoadedModel`."""

    sigma_convention = ReforgeSigmaConvention

    def __init__(self, p: Any):
        super().__init__(p)
        self._asked = self.engine.forge_objects.unet
        self._uncond_prediction: Tensor | None = None

    @staticmethod
    def errors_on_page() -> AbstractContextManager[None]:
        return _errors_on_page()

    def is_supported(self) -> bool:
        unet, sampling = self.unet, self._asked.get_model_object(SAMPLING)
        return (
            any(getattr(self.engine, family, False) for family in FAMILIES)
            and isinstance(unet, UNetModel)
            and unet.in_channels in (TEXT, INPAINTING)
            and not isinstance(self._asked.model, (SD21UNCLIP, SDXLRefiner))
            and isinstance(sampling, EPS)
            and isinstance(sampling, ModelSamplingDiscrete)
        )

    def is_instruct_pix2pix(self) -> bool:
        # the host's own guidance fails with these
        return False

    def is_inpainting(self) -> bool:
        return bool(self.unet.in_channels == INPAINTING)

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)[None]
        approximation = sd_samplers_common.approximation_indexes[shared.opts.sd_vae_encode_method]
        # the host's encoding is the posterior's mean
        return sd_samplers_common.images_tensor_to_samples(pixels, approximation, self.engine).float()

    def _prepare(self, unet: Any, latent: Tensor) -> None:
        sampling_prepare(unet, x=latent)

    def _clean_up(self, unet: Any) -> None:
        sampling_cleanup(unet)

    def _denoised(self, unet: Any, latent: Tensor, sigma: Tensor, texts: Any, image: Tensor | None) -> Tensor:
        conditions = cond_from_a1111_to_patched_ldm(texts)
        if image is not None:
            conditions[0]["model_conds"]["c_concat"] = CONDRegular(image)
        clean: Tensor = sampling_function(unet.model, latent, sigma, None, conditions, 1.0, unet.model_options)
        return clean

    def _patched(self, unet: Any) -> Any:
        patched = super()._patched(unet)
        # the schedule and the kind of prediction that are chosen in the panel are the checkpoint's, not a neighbour's
        patched.object_patches.update(self._asked.object_patches)
        return patched

    def _mark_own_pass(self, unet: Any) -> None:
        state, options = self.state, unet.model_options
        usual = options.get("sampler_calc_cond_batch_function", _evaluate)

        def evaluate(asked: dict[str, Any]) -> list[Tensor]:
            state.is_own_pass = True
            try:
                evaluated = usual(asked)
            finally:
                state.is_own_pass = False
            self._uncond_prediction = evaluated[1]
            return evaluated

        unet.set_model_sampler_calc_cond_batch_function(evaluate)

    def keeping_region(self, denoiser: Any, clean: Tensor, noisy: Tensor) -> AbstractContextManager[None]:
        return instance_attribute(denoiser, "init_latent", clean)

    def correct_uncond(self, denoiser: Any, correction: Tensor) -> None:
        # in key: the sampler has looked at it already
        if self._uncond_prediction is not None:
            self._uncond_prediction += correction

    def fingerprint(self) -> Iterator[object]:
        unet = self._exemplars_unet
        sampling = unet.get_model_object(SAMPLING)
        yield sampling.sigmas.tolist(), [base.__name__ for base in type(sampling).__mro__]
        yield unet.model_dtype(), unet.model.manual_cast_dtype, attention.optimized_attention.__name__
        yield sorted(unet.patches), self._lora_files()


def _evaluate(asked: dict[str, Any]) -> list[Tensor]:
    """What the host does where nobody stands in for it."""
    evaluated: list[Tensor] = calc_cond_batch(
        asked["model"], asked["conds"], asked["input"], asked["sigma"], asked["model_options"]
    )
    return evaluated


@contextmanager
def _errors_on_page() -> Iterator[None]:
    """Gives the run's task, if the page has asked for the run, a result that shows what is raised."""
    try:
        yield
    except Exception as error:
        task = _task()
        if task is not None:
            # no images, their parameters, their infotext; then what other hosts show
            shown = f"<div class='error'>{escape(f'{type(error).__name__}: {error}')}</div>"
            task.result = [None, "", "", shown]
        raise


def _task() -> Task | None:
    """The one that this thread is at work on: the host hands it to nobody."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        worker = frame.f_locals.get("self")
        if isinstance(worker, Task):
            return worker
        frame = frame.f_back
    return None
