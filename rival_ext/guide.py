"""The guide: what stands beside the host's denoiser at every call (paper sections 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from rival_ext.alignment import align_statistics
from rival_ext.attention import Context, Features, Layers, concatenate, concatenate_part, inject, record, replace
from rival_ext.chain import Chain
from rival_ext.errors import RivalError
from rival_ext.inversion import PredictNoise
from rival_ext.noise import NoiseSchedule
from rival_ext.report import Report
from rival_ext.settings import Settings
from rival_ext.transfer import Ahead

UNGUIDED, GUIDED = 0, 1
"""The halves of a guided prediction, and the exemplar's rows in them where it has two."""


class Guide:
    """One generation's companion: lets self-attention see the exemplar and aligns the prediction's statistics.

    chain: the exemplar's; its features are used where it recorded some, else the exemplar is evaluated live.
    layers: the self-attention layers that shall see the exemplar.
    predict_noise: evaluates the exemplar, as in the inversion.
    report: counts what is really done.
    """

    def __init__(
        self,
        chain: Chain,
        settings: Settings,
        schedule: NoiseSchedule,
        layers: Layers,
        predict_noise: PredictNoise,
        report: Report,
    ):
        self.chain = chain
        self.settings = settings
        self.schedule = schedule
        self.layers = layers
        self.predict_noise = predict_noise
        self.report = report

    def align_latent(self, latent: Tensor, noise_level: float) -> Tensor:
        """The sampler's own latent `[N, C, H, W]`, variance-exploding, to go on from; the same object if untouched."""
        if self.settings.alignment != "latent" or not self._is_early(noise_level):
            return latent
        self.report.steps.aligned += 1
        return align_statistics(latent, self.chain.latent(noise_level))

    def guided_noise(self, noise_level: float, denoise: Callable[[], Tensor], halves: Sequence[int] = ()) -> Tensor:
        """The guided `eps` `[N, C, H, W]` of `denoise()`, the host's own call, injected and aligned where due.

        halves: for each UNet row that `denoise` evaluates, in its order, `UNGUIDED` or `GUIDED`; they matter where the
        exemplar is evaluated with both prompts. The same object as `denoise` gave where no alignment is due.
        """
        self.report.steps.total += 1
        context = self._context(noise_level)
        aligned = self.settings.alignment == "noise" and self._is_early(noise_level)
        if context is None and not aligned:
            return denoise()
        features, exemplar_noise = self._exemplar(noise_level)
        prediction = self._with_injection(features, context, denoise, halves) if context else denoise()
        if not aligned:
            return prediction
        self.report.steps.aligned += 1
        return align_statistics(prediction, exemplar_noise)

    def _exemplar(self, noise_level: float) -> tuple[Features, Tensor]:
        """`h_R` and `eps_R` at this noise level: as recorded in the inversion, or evaluated now."""
        recorded = self.chain.features_at(noise_level)
        if recorded is not None:
            return recorded, self.chain.slope(noise_level)
        self.report.features = "live"
        self.report.note(
            "the memory budget has no room for all recorded features"
            if self.chain.is_node(noise_level)
            else "the sampler visits noise levels between the inversion's"
        )
        with record(self.layers) as features:
            exemplar_noise = self.predict_noise(self.chain.latent(noise_level), noise_level)
        return features, exemplar_noise

    def _context(self, noise_level: float) -> Context | None:
        """How the exemplar is seen at this noise level: alone above t_align, beside the own tokens from there on."""
        timestep = self.schedule.timestep(noise_level)
        if not self.layers or timestep > self.settings.early_steps:
            return None
        if timestep > self.settings.t_align:
            return replace
        fraction = self.settings.exemplar_tokens
        return concatenate if fraction == 1 else concatenate_part(fraction)

    def _with_injection(
        self, features: Features, context: Context, denoise: Callable[[], Tensor], halves: Sequence[int]
    ) -> Tensor:
        with inject(self.layers, Ahead(features, self.chain.latents.device), context, halves) as seen:
            prediction = denoise()
        if not seen:
            raise RivalError(
                "no self-attention layer saw the exemplar; another extension may have replaced the UNet's forward: "
                "disable it and try again."
            )
        self.report.layers = max(self.report.layers, len(seen))
        self.report.steps.injected += 1
        return prediction

    def _is_early(self, noise_level: float) -> bool:
        return self.schedule.timestep(noise_level) > self.settings.t_early
