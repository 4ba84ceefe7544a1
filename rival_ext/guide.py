"""The guide: what stands beside the host's denoiser at every call (paper sections 3.2 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from rival_ext.alignment import align_statistics
from rival_ext.attention import (
    Context,
    Features,
    Layers,
    concatenate,
    concatenate_part,
    inject,
    record,
    replace,
    token_grid,
)
from rival_ext.errors import RivalError
from rival_ext.exemplar import Canvas, Exemplar, JointFeatures, joint_statistics
from rival_ext.inversion import PredictNoise, require_numbers
from rival_ext.noise import NoiseSchedule
from rival_ext.report import Report
from rival_ext.settings import PIXELS_PER_POSITION, Settings
from rival_ext.start import noise_latents, start_latents
from rival_ext.transfer import Ahead

UNGUIDED, GUIDED = 0, 1
"""The halves of a guided prediction, and the exemplar's rows in them where it has two."""


class Guide:
    """One generation's companion: lets self-attention see the exemplars and aligns the prediction's statistics.

    exemplars: one or more; the features that their chains recorded are used, else they are evaluated live.
    layers: the UNet's self-attention layers, of which the settings choose.
    predict_noise: evaluates an exemplar, as in the inversion.
    report: counts what is really done.
    canvas: what is kept of a picture that is inpainted.
    sources: the exemplars that the start is drawn from, where these are others than those seen whole.
    adds_noise: whether the sampler draws fresh noise on the way, which has statistics of its own.
    """

    def __init__(
        self,
        exemplars: Sequence[Exemplar],
        settings: Settings,
        schedule: NoiseSchedule,
        layers: Layers,
        predict_noise: PredictNoise,
        report: Report,
        canvas: Canvas | None = None,
        sources: Sequence[Exemplar] = (),
        adds_noise: bool = False,
    ):
        self.exemplars = exemplars
        self.settings = settings
        self.schedule = schedule
        self.layers = layers
        self.predict_noise = predict_noise
        self.report = report
        self.canvas = canvas
        self.whole = [exemplar for exemplar in exemplars if not exemplar.is_part]
        self.sources = sources or self.whole
        self.adds_noise = adds_noise

    def start(self, seeds: Sequence[int], size: tuple[int, int], noise_level: float = math.inf) -> Tensor:
        """Start latents `[len(seeds), C, *size]`, variance-exploding, at a level of the chains, or at their top."""
        canvas = self.canvas and self.canvas.below(noise_level)
        sources = [source.below(noise_level) for source in self.sources]
        if sources:
            return start_latents(sources, seeds, self.settings.start_mix, size, canvas)
        return noise_latents(self.exemplars[0].chain.below(noise_level), seeds, size, canvas)

    def corrected_latent(self, latent: Tensor, noise_level: float) -> Tensor:
        """The sampler's own latent `[N, C, H, W]`, variance-exploding, to go on from; the same object if untouched."""
        if self._aligns_latent() and self._is_early(noise_level):
            self.report.steps.aligned += self.settings.alignment == "latent"
            latents = [exemplar.chain.latent(noise_level) for exemplar in self.whole]
            latent = align_statistics(latent, joint_statistics(self.whole, latents))
        return self.canvas.keep_latent(latent, noise_level) if self.canvas else latent

    def guided_noise(self, noise_level: float, denoise: Callable[[], Tensor], halves: Sequence[int] = ()) -> Tensor:
        """The guided `eps` `[N, C, H, W]` of `denoise()`, the host's own call, injected and aligned where due.

        halves: for each UNet row that `denoise` evaluates, in its order, `UNGUIDED` or `GUIDED`; they matter where the
        exemplar is evaluated with both prompts. The same object as `denoise` gave where nothing is to be corrected.
        """
        self.report.steps.total += 1
        noise = self._aligned_noise(noise_level, denoise, halves)
        return self.canvas.keep_noise(noise, noise_level) if self.canvas else noise

    def visible(self, exemplar: Exemplar, features: Features) -> Features:
        """Of an exemplar's features those of the layers that shall see it; raises RivalError if there are none."""
        if self.settings.layers == "all":
            return features
        latent = exemplar.chain.latents
        pixels = {name: PIXELS_PER_POSITION * token_grid(latent, h.shape[1])[2] for name, h in features.items()}
        wanted = self.settings.token_pixels(set(pixels.values()))
        return {name: h for name, h in features.items() if pixels[name] in wanted}

    def _aligned_noise(self, noise_level: float, denoise: Callable[[], Tensor], halves: Sequence[int]) -> Tensor:
        context = self._context(noise_level)
        aligned = self.settings.alignment == "noise" and self._is_early(noise_level)
        if context is None and not aligned:
            return denoise()
        features, noises = zip(*(self._exemplar(exemplar, noise_level) for exemplar in self.exemplars), strict=True)
        prediction = self._with_injection(features, context, denoise, halves) if context else denoise()
        if not aligned:
            return prediction
        self.report.steps.aligned += 1
        paired = zip(self.exemplars, noises, strict=True)
        of_whole = [noise for exemplar, noise in paired if not exemplar.is_part]
        return align_statistics(prediction, joint_statistics(self.whole, of_whole))

    def _exemplar(self, exemplar: Exemplar, noise_level: float) -> tuple[Features, Tensor]:
        """`h_R` and `eps_R` at this noise level: as recorded in the inversion, or evaluated now."""
        chain = exemplar.chain
        recorded = chain.features_at(noise_level)
        if recorded is not None:
            return recorded, chain.slope(noise_level)
        if self.report.features != "live":
            self.report.features = "live"
            self.report.note(
                "the memory budget has no room for all recorded features"
                if chain.is_node(noise_level)
                else "the sampler visits noise levels between the inversion's"
            )
        with record(self.layers) as features:
            exemplar_noise = self.predict_noise(chain.latent(noise_level), noise_level)
        require_numbers(bool(exemplar_noise.isfinite().all()))
        return features, exemplar_noise

    def _context(self, noise_level: float) -> Context | None:
        """How the exemplars are seen at this noise level: alone above t_align, beside the own tokens from there on."""
        timestep = self.schedule.timestep(noise_level)
        if not self.layers or timestep > self.settings.early_steps or self.settings.strength == 0:
            return None
        if timestep > self.settings.t_align:
            return replace
        fraction = self.settings.exemplar_tokens
        return concatenate if fraction == 1 else concatenate_part(fraction)

    def _with_injection(
        self, features: Sequence[Features], context: Context, denoise: Callable[[], Tensor], halves: Sequence[int]
    ) -> Tensor:
        ahead = [
            Ahead(self.visible(exemplar, recorded), exemplar.chain.latents.device)
            for exemplar, recorded in zip(self.exemplars, features, strict=True)
        ]
        joined = JointFeatures(self.exemplars, ahead)
        with inject(self.layers, joined, context, halves, self.settings.strength) as seen:
            prediction = denoise()
        if not seen:
            raise RivalError(
                "no self-attention layer saw the exemplar; another extension may have replaced the UNet's forward: "
                "disable it and try again."
            )
        self.report.layers = max(self.report.layers, len(seen))
        self.report.steps.injected += 1
        return prediction

    def _aligns_latent(self) -> bool:
        """As asked for, or since a prediction can have the chain's statistics only if the noise in the latent has."""
        return self.settings.alignment == "latent" or (self.settings.alignment == "noise" and self.adds_noise)

    def _is_early(self, noise_level: float) -> bool:
        return bool(self.whole) and self.schedule.timestep(noise_level) > self.settings.t_early
