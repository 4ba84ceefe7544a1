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

from rival_ext.hosts.webui.backends.patched import FAMILIES, INPAINTING_CHANNELS, TEXT_CHANNELS, PatchedModel
from rival_ext.hosts.webui.patching import instance_attribute
from rival_ext.hosts.webui.samplers import SigmaConvention

SAMPLING = "model_sampling"
"""The part of the model that holds its noise schedule and its kind of prediction. The panel can replace it."""

SOLVERS = "sample_ode_"
"""The names of the sampler functions that let a solver choose the noise levels begin with this."""


class ReforgeSigmaConvention(SigmaConvention):
    """k-diffusion, which counts in the sigmas of the model's own schedule."""

    @staticmethod
    def is_adaptive(sampler: Any) -> bool:
        return SigmaConvention.is_adaptive(sampler) or sampler.func.__name__.startswith(SOLVERS)

    @staticmethod
    def alphas(sampler: Any) -> Tensor:
        sigmas = shared.sd_model.forge_objects.unet.get_model_object(SAMPLING).sigmas
        return 1 / (sigmas**2 + 1)


class ReforgeModel(PatchedModel):
    """reForge's loaded checkpoint (`LoadedModel`).

    Args:
        p: The host's processing.
    """

    sigma_convention = ReforgeSigmaConvention

    def __init__(self, p: Any):
        super().__init__(p)
        self._given_unet = self.engine.forge_objects.unet
        self._uncond_prediction: Tensor | None = None

    @staticmethod
    def errors_on_page() -> AbstractContextManager[None]:
        return _errors_on_page()

    def is_supported(self) -> bool:
        unet, sampling = self.unet, self._given_unet.get_model_object(SAMPLING)
        return (
            any(getattr(self.engine, family, False) for family in FAMILIES)
            and isinstance(unet, UNetModel)
            and unet.in_channels in (TEXT_CHANNELS, INPAINTING_CHANNELS)
            and not isinstance(self._given_unet.model, (SD21UNCLIP, SDXLRefiner))
            and isinstance(sampling, EPS)
            and isinstance(sampling, ModelSamplingDiscrete)
        )

    def is_instruct_pix2pix(self) -> bool:
        # the host's own guidance fails with such a checkpoint
        return False

    def is_inpainting(self) -> bool:
        return bool(self.unet.in_channels == INPAINTING_CHANNELS)

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)[None]
        approximation = sd_samplers_common.approximation_indexes[shared.opts.sd_vae_encode_method]
        # this host's encoding is the mean of the posterior already
        return sd_samplers_common.images_tensor_to_samples(pixels, approximation, self.engine).float()

    def _prepare(self, unet: Any, latent: Tensor) -> None:
        sampling_prepare(unet, x=latent)

    def _clean_up(self, unet: Any) -> None:
        sampling_cleanup(unet)

    def _predict_clean(self, unet: Any, latent: Tensor, sigma: Tensor, texts: Any, image: Tensor | None) -> Tensor:
        conditions = cond_from_a1111_to_patched_ldm(texts)
        if image is not None:
            conditions[0]["model_conds"]["c_concat"] = CONDRegular(image)
        clean: Tensor = sampling_function(unet.model, latent, sigma, None, conditions, 1.0, unet.model_options)
        return clean

    def _patched(self, unet: Any) -> Any:
        patched = super()._patched(unet)
        # the schedule and the kind of prediction that the panel chooses count as the checkpoint's own
        patched.object_patches.update(self._given_unet.object_patches)
        return patched

    def _track_prompt_pass(self, unet: Any) -> None:
        state, options = self.state, unet.model_options
        usual = options.get("sampler_calc_cond_batch_function", _evaluate)

        def evaluate(asked: dict[str, Any]) -> list[Tensor]:
            state.is_prompt_pass = True
            try:
                evaluated = usual(asked)
            finally:
                state.is_prompt_pass = False
            self._uncond_prediction = evaluated[1]
            return evaluated

        unet.set_model_sampler_calc_cond_batch_function(evaluate)

    def keeping_region(self, denoiser: Any, clean: Tensor, noisy: Tensor) -> AbstractContextManager[None]:
        return instance_attribute(denoiser, "init_latent", clean)

    def correct_uncond(self, denoiser: Any, correction: Tensor) -> None:
        # in place, because the sampler already holds this tensor
        if self._uncond_prediction is not None:
            self._uncond_prediction += correction

    def fingerprint(self) -> Iterator[object]:
        unet = self._exemplar_unet
        sampling = unet.get_model_object(SAMPLING)
        yield sampling.sigmas.tolist(), [base.__name__ for base in type(sampling).__mro__]
        yield unet.model_dtype(), unet.model.manual_cast_dtype, attention.optimized_attention.__name__
        yield sorted(unet.patches), self._lora_files()


def _evaluate(asked: dict[str, Any]) -> list[Tensor]:
    """Evaluate as the host does if no extension has replaced the evaluation."""
    evaluated: list[Tensor] = calc_cond_batch(
        asked["model"], asked["conds"], asked["input"], asked["sigma"], asked["model_options"]
    )
    return evaluated


@contextmanager
def _errors_on_page() -> Iterator[None]:
    """Give the page's task a result that shows what is raised. A run that the API asked for has no task."""
    try:
        yield
    except Exception as error:
        task = _task()
        if task is not None:
            # no images, no parameters, no infotext, and the sentence as other hosts show it
            shown = f"<div class='error'>{escape(f'{type(error).__name__}: {error}')}</div>"
            task.result = [None, "", "", shown]
        raise


def _task() -> Task | None:
    """The task on which this thread works. The host gives it to no callback, so the stack is searched."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        worker = frame.f_locals.get("self")
        if isinstance(worker, Task):
            return worker
        frame = frame.f_back
    return None
