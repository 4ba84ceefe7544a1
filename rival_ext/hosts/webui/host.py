"""What the method asks of a WebUI, for one batch (`rival_ext.method.host.Host`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from modules import sd_samplers_common, sd_samplers_kdiffusion, sd_samplers_timesteps
from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.hosts.webui.backends.protocol import LoadedModel
from rival_ext.hosts.webui.compat import controlnet_reorders_rows
from rival_ext.hosts.webui.fingerprint import fingerprint
from rival_ext.hosts.webui.inputs import LATENT_FILLS, ExemplarConditioning, RequestImages
from rival_ext.hosts.webui.options import memory_budget
from rival_ext.hosts.webui.progress import SharedJob
from rival_ext.hosts.webui.samplers import SamplerConvention, SamplerTrace, levels_of
from rival_ext.hosts.webui.validation import no_step_sentence
from rival_ext.method.guide import Guide
from rival_ext.method.host import EncodedExemplar, InpaintInput
from rival_ext.method.noise import SAME_LEVEL, levels_tensor
from rival_ext.settings import Settings

SHARE_BESIDE_REFERENCES = "uncond_share had no effect beside ControlNet's reference units"
"""The note in the report of a run in which the rows with the negative prompt cannot be told from the others."""


class WebuiHost:
    """The loaded checkpoint, one batch of a processing, and its exemplars.

    Args:
        p: The host's processing.
        settings: The validated settings.
        model: The loaded checkpoint.
        trace: What the dry run of the sampler has seen.
        steps: The sampling steps of this pass.
    """

    def __init__(self, p: Any, settings: Settings, model: LoadedModel, trace: SamplerTrace, steps: int):
        self.p = p
        self.settings = settings
        self.model = model
        self.trace = trace
        self.steps = steps
        self.unet, self.layers = model.unet, model.layers
        self.convention = _convention_of(p, model, trace)
        self.schedule = self.convention.schedule
        self.images = RequestImages(p, settings, model)
        self.conditioning = ExemplarConditioning(p, settings, p.sampler.config.total_steps(steps), model)
        # for each image a step evaluates the prompts' row and the negative prompts' row
        rows = len(self.convention.sigmas_visited) * 2 * len(p.seeds)
        self.job = SharedJob(p.sampler, rows // self.conditioning.rows)
        self._levels = levels_of(self.convention)
        self._prompt_schedules: list[Any] = []

    def open(self) -> None:
        """Encode the request's images and prompts, while `inversion_networks` is open.

        Raises:
            RivalError: The request leaves no step, has no exemplar, or has prompts that do not fit into one batch.
        """
        self._refuse_no_step()
        self.images.encode()
        # for all exemplars, because what is evaluated beside a step must not encode its prompt with the LoRAs
        schedules = [self.conditioning.schedules(exemplar.latent.shape) for exemplar in self.images.exemplars]
        self._prompt_schedules = schedules[0]

    def noise_levels(self) -> Tensor:
        return levels_tensor(self._levels)

    def levels_are_known(self) -> bool:
        return self.convention.levels_are_known

    def adds_noise(self) -> bool:
        return self.trace.adds_noise

    def encoded_exemplars(self) -> Sequence[EncodedExemplar]:
        return self.images.exemplars

    def inpaint_input(self) -> InpaintInput | None:
        return self.images.inpaint_input

    def predict_noise(self, latent: Tensor, noise_level: float) -> Tensor:
        texts, image = self.conditioning.at(latent, self._call_at(noise_level))
        rows = self.conditioning.rows
        latent = latent.expand(rows, -1, -1, -1)
        # the last row's prompt is the exemplar's own
        return self.model.predict_noise(self.convention, latent, [noise_level] * rows, texts, image)[-1:]

    def predict_noises(self, latents: Tensor, noise_levels: Sequence[float]) -> Tensor:
        calls = [self._call_at(level) for level in noise_levels]
        texts, image = self.conditioning.at_calls(latents[:1], calls)
        return self.model.predict_noise(self.convention, latents, noise_levels, texts, image)

    def _call_at(self, noise_level: float) -> int:
        """The call of the denoiser, from 0, in which the sampler has come down to a noise level."""
        visited = self.convention.sigmas_visited
        reached = (call for call, level in enumerate(visited) if level <= noise_level * (1 + SAME_LEVEL))
        return next(reached, len(visited))

    def start(self, guide: Guide, noise: Tensor, image: Tensor | None = None) -> Tensor:
        """Make the latent from which the sampler's function has to start.

        Args:
            guide: The guide of this sampling.
            noise: `[N, C, H, W]`, the host's own noise for the batch, with deviation 1.
            image: `[N, C, H, W]`, the clean latent that is kept, if any.

        Returns:
            `[N, C, H, W]`, in the form of the sampler's family.
        """
        level = self.convention.start_level
        return (guide.start(noise, self.p.seeds, level, image) * self.convention.scale(level)).to(noise)

    def clean_latent(self, x: Tensor) -> Tensor:
        """Return the mean latent of the init image, used instead of `x`.

        Args:
            x: `[N, C, H, W]`, which the host sampled from the VAE's posterior.

        Returns:
            `[N, C, H, W]`, or `x` itself if the image has another size, or if the host has changed its masked part.
        """
        latent = self.images.own_latent
        is_changed = self.images.mask is not None and self.p.inpainting_fill in LATENT_FILLS
        if latent is None or latent.shape[2:] != x.shape[2:] or is_changed:
            return x
        return latent.expand_as(x).to(x)

    def progress(self, done: int, total: int) -> None:
        self.job.show_inversion(done, total)

    def is_guided(self) -> bool:
        return bool(self.p.cfg_scale != 1)

    def notes(self) -> Sequence[str]:
        has_no_marks = self.settings.uncond_share < 1 and controlnet_reorders_rows(self.p)
        return [*self.images.notes(), *[SHARE_BESIDE_REFERENCES] * has_no_marks]

    def preview(self, latent: Tensor) -> None:
        sd_samplers_common.store_latent(latent)

    def fingerprint(self) -> Iterable[Tensor | object]:
        networks = {} if self.model.networks_are_aside else self.networks
        return fingerprint(self.p, self.model, self._prompt_schedules, networks)

    def sampler_fingerprint(self) -> Iterable[object]:
        # as the sampler has been set up, whatever the options say by now
        wrap = self.p.sampler.model_wrap
        return type(wrap).__name__, getattr(wrap, "quantize", None)

    def memory_budget(self) -> float:
        return memory_budget()

    @contextmanager
    def inversion_networks(self) -> Iterator[None]:
        """Let the prompt's LoRAs act in the inversions, or put them aside meanwhile, as the settings say.

        They are put aside for all inversions of a run together. An exemplar that is evaluated beside a step is
        evaluated with them, because the host would have to merge them into the weights again at every step.
        """
        if not self.settings.plain_inversion:
            yield
            return
        with self.model.without_networks():
            yield

    @property
    def networks(self) -> Any:
        """The LoRAs and other networks that the prompt of this pass names in its <...> tags."""
        p = self.p
        return (p.hr_extra_network_data if getattr(p, "is_hr_pass", False) else p.extra_network_data) or {}

    def _refuse_no_step(self) -> None:
        if len(self._levels) < 2:
            if not hasattr(self.p, "init_images") and not self.p.is_hr_pass:
                raise RivalError(f"sampling steps must be more than {self.p.steps} for this sampler.")
            raise RivalError(no_step_sentence(self.p, self.steps))


def _convention_of(p: Any, model: LoadedModel, trace: SamplerTrace) -> SamplerConvention:
    if isinstance(p.sampler, sd_samplers_timesteps.CompVisSampler):
        return model.timestep_convention(p.sampler, trace)
    if isinstance(p.sampler, sd_samplers_kdiffusion.KDiffusionSampler):
        return model.sigma_convention(p.sampler, p, trace)
    raise RivalError(f"sampler {p.sampler_name} is of a kind that RIVAL does not know; choose one of the WebUI's own.")
