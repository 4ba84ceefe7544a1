"""What the self-attention layers see of the exemplars at each noise level of a run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rival_ext.method.attention import Features, Layers, record
from rival_ext.method.exemplars import Exemplar, SeenTokens, weight_subsets
from rival_ext.method.inversion import PredictNoise, refuse_not_finite
from rival_ext.method.precision import read_features
from rival_ext.method.projected import (
    BetweenNodes,
    JoinedExemplars,
    KeysValuesByLayer,
    ProjectedFeatures,
    ThinnedTokens,
)
from rival_ext.method.store import FeatureLoader
from rival_ext.method.tokens import LayerChoice, TokenSubset, finest_layers
from rival_ext.report import FeatureSource, GuidePart
from rival_ext.settings import Settings


class SeenFeatures:
    """The exemplars' keys and values at the noise levels of a run.

    Args:
        exemplars: One or more. Features that their chains recorded are used, and between two nodes that have some the
            keys and values are linear; without them an exemplar is evaluated live, which means beside the step.
        settings: The validated settings.
        layers: The UNet's self-attention layers. The settings choose among them.
        predict_noise: Evaluates an exemplar, as in the inversion.
        loader: Brings kept features to the model's device. None if they are there.
        features: Whether the chains are meant to hold features.
    """

    def __init__(
        self,
        exemplars: Sequence[Exemplar],
        settings: Settings,
        layers: Layers,
        predict_noise: PredictNoise,
        loader: FeatureLoader | None,
        features: FeatureSource,
    ):
        self.exemplars = exemplars
        self.layer_choice = LayerChoice(settings, [exemplar.chain.latents for exemplar in exemplars])
        self.counts = GuidePart()
        """What was really done so far."""
        self._layers = layers
        self._predict_noise = predict_noise
        self._loader = loader
        self._expects_features = features == "recorded"
        self._weights = weight_subsets(exemplars)
        self._subset = TokenSubset(settings.exemplar_tokens)
        self._finest: frozenset[str] = frozenset()
        self._projected: list[dict[int, ProjectedFeatures]] = [{} for _ in exemplars]

    def at(self, noise_level: float) -> KeysValuesByLayer:
        """Return the keys and values of all that the layers see of the exemplars.

        Args:
            noise_level: The level of the step.
        """
        parts = [self._of_exemplar(index, noise_level) for index in range(len(self.exemplars))]
        return JoinedExemplars(parts) if len(parts) > 1 else parts[0]

    def thinned_at(self, noise_level: float) -> KeysValuesByLayer:
        """Return those of the fraction of the tokens that is seen beside the image's own."""
        whole = self.at(noise_level)
        return whole if self._subset.fraction == 1 else ThinnedTokens(whole, self._subset, self._finest)

    def _of_exemplar(self, index: int, noise_level: float) -> KeysValuesByLayer:
        chain = self.exemplars[index].chain
        around = chain.features_around(noise_level)
        if around is None:
            return self._project(index, self._evaluated(chain.latent(noise_level), noise_level))
        lower, upper, place = around
        known = self._projected[index]
        # the upper first: a sampler comes down, so the lower is what it needs next
        self._projected[index] = {
            node: known[node] if node in known else self._at_node(index, node) for node in (upper, lower)
        }
        ends = self._projected[index]
        return BetweenNodes(ends[lower], ends[upper], place) if lower < upper else ends[lower]

    def _at_node(self, index: int, node: int) -> ProjectedFeatures:
        chain = self.exemplars[index].chain
        kept = chain.features[node]
        if self._loader is None:
            return self._project(index, read_features(kept))
        return self._project(index, self._loader.load(kept, chain.features_below(node)))

    def _project(self, index: int, features: Features) -> ProjectedFeatures:
        seen = self.layer_choice.of(index, features)
        self._finest = finest_layers(seen)
        return ProjectedFeatures(SeenTokens(self.exemplars[index], seen, self._weights[index]), self._layers)

    def _evaluated(self, latent: Tensor, noise_level: float) -> Features:
        """`h_R` of an evaluation now."""
        if self._expects_features and not self.counts.evaluated_live:
            self.counts.note("the memory budget has no room for recorded features")
        self.counts.evaluated_live = True
        with record(self._layers) as features:
            noise = self._predict_noise(latent, noise_level)
        refuse_not_finite(bool(noise.isfinite().all()))
        return features
