"""Chains kept in a folder of the user's choice, as safetensors: an inversion is paid once for all runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rival_ext.chain import Chain
from rival_ext.errors import RivalError
from rival_ext.store import digest

FEATURE = "features/{node}/{index:04}/{layer}"
"""The name of a recorded feature; a file has an order of its own, and the layers are read in the network's."""


class Archive:
    """Chains in files of `folder`, which is made if need be (`rival_ext.store.Store`).

    made_by: what changes a chain beside its key: the checkpoint's file, versions. device: of the model. budget: bytes
    of memory that a chain may take.
    Raises RivalError where the folder cannot be read or written.
    """

    def __init__(self, folder: Path, made_by: Iterable[object], device: torch.device, budget: float):
        self.folder = folder
        self.made_by = list(made_by)
        self.device = device
        self.budget = budget
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None

    def get(self, key: str) -> Chain | None:
        """The chain kept under the key, or None, also where the budget has no room for it."""
        file = self._file(key)
        if not file.is_file() or file.stat().st_size > self.budget:
            return None
        try:
            return self._read(file)
        except (SafetensorError, OSError, KeyError, ValueError):
            raise RivalError(f"{file} is damaged or no inversion; delete it.") from None

    def put(self, key: str, chain: Chain, budget: float) -> None:
        """Keeps the chain, unless memory was short for some of its features; the file appears when it is whole."""
        if 0 < len(chain.features) < len(chain.noise_levels) - 1:
            return
        tensors = {"noise_levels": chain.noise_levels, "latents": chain.latents.cpu().contiguous()}
        for node, features in chain.features.items():
            for index, (layer, h) in enumerate(features.items()):
                tensors[FEATURE.format(node=node, index=index, layer=layer)] = h
        described = {"evaluations": str(chain.evaluations), "residual": repr(chain.residual)}
        try:
            with TemporaryDirectory(dir=self.folder) as unfinished:
                written = Path(unfinished) / "chain"
                save_file(tensors, written, described)
                os.replace(written, self._file(key))
        except (OSError, SafetensorError) as error:
            raise self._unusable(error) from None

    def make_room(self, size: int, budget: float) -> bool:
        """Whether a chain of `size` bytes fits into the memory `budget`; a folder has no end."""
        return size <= budget

    def _file(self, key: str) -> Path:
        return self.folder / f"{digest([key, *self.made_by])}.safetensors"

    def _read(self, file: Path) -> Chain:
        features: dict[int, dict[str, Tensor]] = {}
        with safe_open(file, framework="pt") as kept:
            for name in sorted(set(kept.keys()) - {"noise_levels", "latents"}):
                _, node, _, layer = name.split("/", 3)
                features.setdefault(int(node), {})[layer] = kept.get_tensor(name)
            described = kept.metadata()
            return Chain(
                kept.get_tensor("noise_levels"),
                kept.get_tensor("latents").to(self.device),
                features,
                int(described["evaluations"]),
                float(described["residual"]),
            )

    def _unusable(self, error: Exception) -> RivalError:
        return RivalError(f"--keep-inversions {self.folder} cannot be used: {getattr(error, 'strerror', '') or error}.")
