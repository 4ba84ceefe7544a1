"""The chains of one run: found in the store, or inverted now and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from rival_ext.errors import is_out_of_memory
from rival_ext.method.attention import Features, Layers
from rival_ext.method.chain import Chain
from rival_ext.method.host import Host, Store
from rival_ext.method.inversion import Progress, invert, part_of
from rival_ext.method.layers import count_rows
from rival_ext.report import FeatureSource, Inversion, InversionPart, StoreResult
from rival_ext.settings import Settings

MEMORY_RAN_OUT = "memory ran out while features were recorded"


def chain_key(parts: Iterable[Tensor | object]) -> str:
    """Make one key of tensors, by their values, and of other objects, by their `repr`.

    Args:
        parts: Whatever tells one chain from another.

    Returns:
        64 hexadecimal digits.
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().flatten().double().numpy().tobytes())
        else:
            sha.update(repr(part).encode())
        sha.update(b"\x00")
    return sha.hexdigest()


def _keep_nothing(features: Features, size: int) -> None:
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
        levels: The nodes of the chains, `[N + 1]`, float64, ascending, each once.
        store: Where chains are found and kept.
    """

    def __init__(self, host: Host, settings: Settings, levels: Tensor, store: Store):
        self.host = host
        self.settings = settings
        self.levels = levels
        self.store = store
        self.budget = host.memory_budget()
        self.in_use: dict[str, Chain] = {}
        self.inverted: list[Chain] = []
        self.rows = 0
        self.notes: list[str] = []
        self.features: FeatureSource = settings.features
        if not host.levels_are_known():
            self.features = "live"
            self.notes.append("the sampler chooses its noise levels as it runs")

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
            stored = self.store.get(key)
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
            iterations=self.settings.inversion_iterations if self.inverted else 0,
            residual=max((chain.residual for chain in self.inverted), default=0.0),
        )
        return InversionPart(
            exemplars, self.features, store_result, inversion, self.rows, seconds, [*self.notes, *notes]
        )

    def _key(self, request: ChainRequest) -> str:
        iterations, fingerprint = self.settings.inversion_iterations, self.host.fingerprint()
        return chain_key([request.latent, self.levels, iterations, list(request.layers), *fingerprint])

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
        host = self.host
        with count_rows(host.unet) as rows:
            chain = invert(
                request.latent,
                self.levels,
                host.predict_noise,
                # recorded even if nothing is kept: at the first evaluation it shows whether the layers are reached
                host.layers,
                iterations=self.settings.inversion_iterations,
                keep=self._keep_features if request.layers else _keep_nothing,
                progress=progress,
                preview=host.preview,
            )
        self.rows += sum(rows)
        self.inverted.append(chain)
        # a chain during whose inversion something changed belongs to neither key
        if self._key(request) == key:
            self.store.put(key, chain, self.budget)
        return chain

    def _keep_features(self, features: Features, size: int) -> Features | None:
        return self.store.keep_features(features) if self._has_room(size) else None

    def _has_room(self, size: int) -> bool:
        """Whether `size` bytes fit beside the chains in use. The store's oldest chains leave for them."""
        held = sum(chain.bytes for chain in self.in_use.values())
        return size + held <= self.budget and self.store.make_room(size, self.budget)
