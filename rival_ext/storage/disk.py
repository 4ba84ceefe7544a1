"""Chains kept in a folder of the user's choice, as safetensors, so that an inversion is paid once for all runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rival_ext.errors import RivalError
from rival_ext.method.chain import Chain
from rival_ext.method.run_chains import chain_key
from rival_ext.storage.features import FeatureTransfer

FEATURE_NAME = "features/{node}/{index:04}/{layer}"
"""The name of a recorded feature in the file. Safetensors sorts names, so the index keeps the layers in network
order."""


class DiskStore(FeatureTransfer):
    """Chains in the files of a folder (`rival_ext.method.host.Store`).

    Args:
        folder: The folder. It is made by `open`.
        made_by: What changes a chain besides its key: the checkpoint's file, and versions.
        device: The model's device.
        budget: How many bytes of memory a chain may take.
    """

    keeps_chains = True

    def __init__(self, folder: Path, made_by: Iterable[object], device: torch.device, budget: float):
        self.folder = folder
        self.made_by = list(made_by)
        self.device = device
        self.budget = budget

    def open(self) -> DiskStore:
        """Make the folder if it does not exist.

        Returns:
            This store.

        Raises:
            RivalError: The folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from None
        return self

    def get(self, key: str) -> Chain | None:
        """Read a chain.

        Args:
            key: The chain's key.

        Returns:
            The chain, or None if no file holds it or the budget has no room for it.

        Raises:
            RivalError: The file is damaged.
        """
        file = self._file(key)
        if not file.is_file() or file.stat().st_size > self.budget:
            return None
        try:
            return self._read(file)
        except (SafetensorError, OSError, KeyError, ValueError):
            raise RivalError(f"{file} of --keep-inversions is damaged, or is not an inversion; delete it.") from None

    def put(self, key: str, chain: Chain, budget: float) -> None:
        """Write a chain. The file appears when it is whole. A chain that lacks some of its features is not written.

        Args:
            key: The chain's key.
            chain: The chain.
            budget: Not used: a folder has no end.

        Raises:
            RivalError: The folder cannot be written.
        """
        if 0 < len(chain.features) < len(chain.noise_levels) - 1:
            return
        tensors = {"noise_levels": chain.noise_levels, "latents": chain.latents.cpu().contiguous()}
        for node, features in chain.features.items():
            for index, (layer, h) in enumerate(features.items()):
                tensors[FEATURE_NAME.format(node=node, index=index, layer=layer)] = h
        metadata = {"evaluations": str(chain.evaluations), "residual": repr(chain.residual)}
        try:
            with TemporaryDirectory(dir=self.folder) as unfinished:
                written = Path(unfinished) / "chain"
                save_file(tensors, written, metadata)
                os.replace(written, self._file(key))
        except (OSError, SafetensorError) as error:
            raise self._unusable(error) from None

    def make_room(self, size: int, budget: float) -> bool:
        """Tell whether a chain of `size` bytes fits into `budget` bytes of memory. The folder itself has no end."""
        return size <= budget

    def _file(self, key: str) -> Path:
        return self.folder / f"{chain_key([key, *self.made_by])}.safetensors"

    def _read(self, file: Path) -> Chain:
        features: dict[int, dict[str, Tensor]] = {}
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(set(tensors.keys()) - {"noise_levels", "latents"}):
                _, node, _, layer = name.split("/", 3)
                features.setdefault(int(node), {})[layer] = tensors.get_tensor(name)
            metadata = tensors.metadata()
            return Chain(
                tensors.get_tensor("noise_levels"),
                tensors.get_tensor("latents").to(self.device),
                features,
                int(metadata["evaluations"]),
                float(metadata["residual"]),
            )

    def _unusable(self, error: Exception) -> RivalError:
        return RivalError(f"--keep-inversions {self.folder} cannot be used: {getattr(error, 'strerror', '') or error}.")
