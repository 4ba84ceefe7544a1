"""The chains of one run: found in the store, or inverted now and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from rival_ext.errors import is_out_of_memory
from rival_ext.method.attention import Features, Layers
from rival_ext.method.chain import Chain, chain_key
from rival_ext.method.host import Host
from rival_ext.method.inversion import Progress, invert, part_of
from rival_ext.method.keeping import FeatureKeeper
from rival_ext.method.layers import count_rows
from rival_ext.method.nodes import nodes_of
from rival_ext.method.noised import noised_chain
from rival_ext.method.precision import bits_of
from rival_ext.method.store import Store
from rival_ext.report import FeatureSource, Inversion, InversionPart, StoreResult
from rival_ext.settings import Settings
from rival_ext.written import number_of

MEMORY_RAN_OUT = "memory ran out while features were recorded"


def _keep_nothing(node: int, features: Features) -> None:
    return None


class ChainRequest(NamedTuple):
    """A chain that a run needs: of a clean latent `[1, C, H, W]`, with the features of these layers."""

    latent: Tensor
    layers: Layers


class RunChains:
    """The chains of one run, from the store or inverted now. Together they stay within the memory budget.

    Args:
        host: The host of this sampling.
        settings: The validated settings.
        levels: The levels that the sampler visits and below them the clean latent's, `[N + 1]`, float64, ascending,
            each once.
        store: Where chains are found and kept.
        is_exact: Whether the exemplar must be evaluated at each of these levels. Else some of them are enough.
    """

    def __init__(self, host: Host, settings: Settings, levels: Tensor, store: Store, is_exact: bool):
        self.host = host
        self.settings = settings
        self.store = store
        self.budget = host.memory_budget()
        self.in_use: dict[str, Chain] = {}
        self.inverted: list[Chain] = []
        self.rows = 0
        self.notes: list[str] = []
        self.features: FeatureSource = settings.features
        timesteps = [host.schedule.timestep(level) for level in levels.tolist()]
        self.nodes = nodes_of(settings, levels, timesteps, is_exact)
        self.is_exact = is_exact

    @property
    def recorded_layers(self) -> Layers:
        """The layers that an exemplar's inversion records."""
        return self.host.layers if self.features == "recorded" else {}

    def of(self, requests: Sequence[ChainRequest]) -> list[Chain]:
        """Get the chains. A chain that the store lacks is inverted, once even if it is requested twice.

        Args:
            requests: One or more.

        Returns:
            A chain for each request, in order.

        Raises:
            RivalError: A prediction holds NaN or infinity.
            Interrupted: The user stopped the run.
        """
        # the budget may have shrunk since the last run
        self._has_room(0)
        keys = [self._key(request) for request in requests]
        missing = dict(zip(keys, requests, strict=True))
        for key in list(missing):
            stored = self.store.get(key, self._serves)
            if stored is not None:
                self.in_use[key] = stored
                del missing[key]
        for index, (key, request) in enumerate(missing.items()):
            self.in_use[key] = self._invert(key, request, part_of(self.host.progress, index, len(missing)))
        return [self.in_use[key] for key in keys]

    def report(self, exemplars: int, seconds: float, notes: Sequence[str]) -> InversionPart:
        """Say how the chains of this run were made.

        Args:
            exemplars: How many exemplars there are.
            seconds: Wall-clock seconds of all inversions.
            notes: Sentences on the run that belong to no chain.

        Returns:
            The inversion's part of the report.
        """
        store_result: StoreResult = "off" if not self.store.keeps_chains else "miss" if self.inverted else "hit"
        inversion = Inversion(
            evaluations=sum(chain.evaluations for chain in self.inverted),
            iterations=self.settings.inversion_iterations if self.inverted and not self.nodes.are_noised else 0,
            residual=max((chain.residual for chain in self.inverted), default=0.0),
            levels=len(self.nodes.evaluated) if self.inverted else 0,
            bend=max(chain.bend for chain in self.in_use.values()),
        )
        return InversionPart(
            exemplars, self.features, store_result, inversion, self.rows, seconds, [*self.notes, *notes]
        )

    def _key(self, request: ChainRequest) -> str:
        settings = self.settings
        made = (settings.chain, settings.inversion_iterations, settings.feature_nodes)
        return chain_key([request.latent, made, list(request.layers), *self.host.fingerprint()])

    def _serves(self, noise_levels: Tensor, evaluated: int, visits: str) -> bool:
        return visits == self._visits() if self.is_exact else self.nodes.lie_within(noise_levels, evaluated)

    def _visits(self) -> str:
        """Identifies the sampler and its levels, if the chains are evaluated at each of these. Else empty."""
        return chain_key([self.nodes.levels, *self.host.sampler_fingerprint()]) if self.nodes.are_all else ""

    def _invert(self, key: str, request: ChainRequest, progress: Progress) -> Chain:
        """Invert and keep. If memory runs out while features are recorded, invert again without them."""
        try:
            return self._inverted_chain(key, request, progress)
        except Exception as error:  # only CUDA's lack of memory has an error class of its own
            if not (request.layers and is_out_of_memory(error)):
                raise
        # outside the handler: its traceback holds what was recorded
        self.features = "live"
        if MEMORY_RAN_OUT not in self.notes:
            self.notes.append(MEMORY_RAN_OUT)
        self.store.make_room(0, budget=0)
        unrecorded = ChainRequest(request.latent, {})
        return self._inverted_chain(self._key(unrecorded), unrecorded, progress)

    def _inverted_chain(self, key: str, request: ChainRequest, progress: Progress) -> Chain:
        visits = self._visits()
        with count_rows(self.host.unet) as rows:
            chain = replace(self._made_chain(request, progress), visits=visits)
        self.rows += sum(rows)
        self.inverted.append(chain)
        # a chain during whose inversion something changed belongs to neither key
        if (self._key(request), self._visits()) == (key, visits):
            self.store.put(key, chain, self.budget)
        return chain

    def _made_chain(self, request: ChainRequest, progress: Progress) -> Chain:
        host, nodes, settings = self.host, self.nodes, self.settings
        keep = self._keeper(request) if request.layers else _keep_nothing
        if nodes.are_noised:
            return noised_chain(
                request.latent,
                nodes.levels,
                nodes.evaluated,
                host.predict_noises,
                request.layers,
                keep=keep,
                progress=progress,
            )
        return invert(
            request.latent,
            nodes.levels,
            host.predict_noise,
            # recorded even if nothing is kept: at the first evaluation it shows whether the layers are reached
            host.layers,
            evaluated=nodes.evaluated,
            iterations=settings.inversion_iterations,
            keep=keep,
            progress=progress,
            preview=host.preview,
        )

    def _keeper(self, request: ChainRequest) -> FeatureKeeper:
        latents = len(self.nodes.levels) * request.latent.float().nbytes
        available = len(self.nodes.evaluated)
        wanted = number_of(self.settings.feature_nodes, available)
        bits, reserve = bits_of(self.settings), self.store.reserve
        # the latents are kept beside the features
        return FeatureKeeper(available, wanted, bits, reserve, lambda n: self._has_room(n + latents), self._note_fewer)

    def _note_fewer(self, number: int) -> None:
        note = f"the memory budget has room for features at {number} noise level{'s' * (number > 1)} only"
        if number and note not in self.notes:
            self.notes.append(note)

    def _has_room(self, size: int) -> bool:
        """Whether `size` bytes fit beside the chains in use. The store's oldest chains leave for them."""
        held = sum(chain.bytes for chain in self.in_use.values())
        return size + held <= self.budget and self.store.make_room(size, self.budget)
