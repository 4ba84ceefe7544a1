"""The guide: stands beside the host's denoiser at every call, injects and aligns (paper sections 3.2 and 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from rival_ext.method.alignment import align_statistics
from rival_ext.method.attention import Layers
from rival_ext.method.exemplars import Exemplar, InpaintCanvas, joint_statistics
from rival_ext.method.injection import Injection, concatenate, replace
from rival_ext.method.inversion import PredictNoise, refuse_unreached
from rival_ext.method.noise import NoiseSchedule, SamplerTimesteps, segment_of
from rival_ext.method.rows import JoinTokens, rows_that_see
from rival_ext.method.seen import SeenFeatures
from rival_ext.method.start import fresh_latents, start_latents
from rival_ext.method.store import FeatureLoader
from rival_ext.report import FeatureSource, GuidePart
from rival_ext.settings import Settings


class Guide:
    """The companion of one generation. It lets self-attention see the exemplars and aligns the prediction.

    Args:
        exemplars: One or more. Features that their chains recorded are used; without them an exemplar is evaluated
            live, which means beside the step.
        settings: The validated settings.
        schedule: The checkpoint's noise schedule.
        layers: The UNet's self-attention layers. The settings choose among them.
        predict_noise: Evaluates an exemplar, as in the inversion.
        levels: The levels that the sampler visits and below them the clean latent's, `[N + 1]`, ascending. Without
            them those of the first exemplar's chain.
        canvas: The image that is inpainted, if any.
        sources: The exemplars from which the start is drawn. Without them the start is drawn from `exemplars`.
        adds_noise: Whether the sampler adds fresh noise on the way. That noise has statistics of its own.
        features: Whether the chains are meant to hold features.
        loader: Brings kept features to the model's device. None if they are there.
    """

    def __init__(
        self,
        exemplars: Sequence[Exemplar],
        settings: Settings,
        schedule: NoiseSchedule,
        layers: Layers,
        predict_noise: PredictNoise,
        *,
        levels: Tensor | None = None,
        canvas: InpaintCanvas | None = None,
        sources: Sequence[Exemplar] = (),
        adds_noise: bool = False,
        features: FeatureSource = "recorded",
        loader: FeatureLoader | None = None,
    ):
        self.exemplars = exemplars
        self.settings = settings
        self.levels = exemplars[0].chain.noise_levels if levels is None else levels
        """The sampler's levels, with the clean latent's below them."""
        self.timesteps = SamplerTimesteps(schedule, self.levels)
        self.layers = layers
        # at strength 0 no layer is hooked
        self.injection = Injection(layers if settings.strength else {})
        """Lets the layers see the exemplars. A host may install it for all steps of a run."""
        self.canvas = canvas
        self.seen = SeenFeatures(exemplars, settings, layers, predict_noise, loader, features)
        """What the layers see of the exemplars."""
        self.aligned_to = [exemplar for exemplar in exemplars if not exemplar.attention_only]
        """The exemplars whose statistics count."""
        self.sources = sources or self.aligned_to
        """The exemplars from which the start is drawn. If there are none, the start is fresh noise."""
        # of a part nothing is aligned, and guidance would amplify its tokens without any hold
        self._uncond_share = settings.uncond_share if self.aligned_to else 1.0
        # a prediction can have the chain's statistics only if the noise in the latent has them too
        self._aligns_latent = settings.alignment == "latent" or (settings.alignment == "noise" and adds_noise)

    @property
    def counts(self) -> GuidePart:
        """What was really done since `begin`."""
        return self.seen.counts

    def begin(self) -> None:
        """Count from nothing again, for the next image."""
        self.seen.counts = GuidePart()

    def start(
        self, noise: Tensor, seeds: Sequence[int], noise_level: float = math.inf, image: Tensor | None = None
    ) -> Tensor:
        """Make the start latents of a batch.

        Args:
            noise: `[N, C, H, W]`, the host's fresh noise for the images, with deviation 1.
            seeds: One seed for each image.
            noise_level: The level at which the sampler starts. Levels above the highest that it visits count as this.
            image: `[1 or N, C, H, W]`, the clean latent that is kept below full denoising strength. None keeps nothing.

        Returns:
            `[N, C, H, W]`, variance-exploding.
        """
        noise_level = min(noise_level, float(self.levels[-1]))
        canvas = self.canvas and self.canvas.below(noise_level)
        sources = [source.below(noise_level) for source in self.sources]
        if sources:
            return start_latents(sources, noise, seeds, self.settings.start, self.settings.start_mix, image, canvas)
        return fresh_latents(noise.to(self.exemplars[0].chain.top), noise_level, image, canvas)

    def corrected_latent(self, latent: Tensor, noise_level: float) -> Tensor:
        """Correct the sampler's own latent before a call of the denoiser. The sampler has to go on from the result.

        Args:
            latent: `[N, C, H, W]`, variance-exploding.
            noise_level: The level of `latent`.

        Returns:
            `[N, C, H, W]`, the very object `latent` if nothing is corrected.
        """
        if self._aligns_latent and self._is_early(noise_level):
            self.counts.steps.aligned += self.settings.alignment == "latent"
            latents = [exemplar.chain.latent(noise_level) for exemplar in self.aligned_to]
            latent = align_statistics(latent, joint_statistics(self.aligned_to, latents))
        return self.canvas.keep_latent(latent, noise_level) if self.canvas else latent

    def guided_noise(
        self, noise_level: float, denoise: Callable[[], Tensor], cond_or_uncond: Sequence[int] = ()
    ) -> Tensor:
        """Call the host's denoiser with injection, and align what it predicts.

        Args:
            noise_level: The level of the call.
            denoise: The host's own call. It returns the guided `eps`, `[N, C, H, W]`.
            cond_or_uncond: `UNCOND` or `COND` for each UNet row that `denoise` evaluates, in its order. It matters if
                the exemplar is evaluated with both prompts.

        Returns:
            The guided `eps`, the very object that `denoise` returned if nothing is corrected.

        Raises:
            RivalError: No layer saw the exemplar, or a prediction for the exemplar holds NaN or infinity.
        """
        self.counts.steps.total += 1
        noise = self._aligned_noise(noise_level, denoise, cond_or_uncond)
        return self.canvas.keep_noise(noise, noise_level) if self.canvas else noise

    def _aligned_noise(
        self, noise_level: float, denoise: Callable[[], Tensor], cond_or_uncond: Sequence[int]
    ) -> Tensor:
        join = self._join_at(noise_level)
        is_aligned = self.settings.alignment == "noise" and self._is_early(noise_level)
        prediction = denoise() if join is None else self._with_injection(noise_level, join, denoise, cond_or_uncond)
        if not is_aligned:
            return prediction
        self.counts.steps.aligned += 1
        slopes = [exemplar.chain.slope(noise_level) for exemplar in self.aligned_to]
        return align_statistics(prediction, joint_statistics(self.aligned_to, slopes))

    def _join_at(self, noise_level: float) -> JoinTokens | None:
        """How the exemplars are seen at this noise level: alone above t_align, beside the own tokens below it."""
        timestep = self.timesteps.of(noise_level)
        if not self.layers or timestep > self.settings.early_steps or self.settings.strength == 0:
            return None
        return replace if timestep > self.settings.t_align else concatenate

    def _with_injection(
        self, noise_level: float, join: JoinTokens, denoise: Callable[[], Tensor], cond_or_uncond: Sequence[int]
    ) -> Tensor:
        exemplar = (self.seen.at if join is replace else self.seen.thinned_at)(noise_level)
        seeing = rows_that_see(self._uncond_share, segment_of(self.levels, noise_level))
        with self.injection.step(exemplar, join, cond_or_uncond, self.settings.strength, seeing) as seen:
            prediction = denoise()
        refuse_unreached(seen)
        self.counts.layers = max(self.counts.layers, len(seen))
        self.counts.steps.injected += 1
        return prediction

    def _is_early(self, noise_level: float) -> bool:
        return bool(self.aligned_to) and self.timesteps.of(noise_level) > self.settings.t_early
