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
from rival_ext.method.chain import Chain, chain_key
from rival_ext.method.precision import dtype_of, of_stored, stored_tensors
from rival_ext.method.store import Serves
from rival_ext.storage.features import FeatureTransfer

SUFFIX = ".safetensors"

FEATURE_NAME = "features/{node}/{index:04}/{layer}"
"""The name of a recorded feature in the file. Safetensors sorts names, so the index keeps the layers in network
order."""

EIGHT_BITS_OF = {"": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""What the metadata say of the features: nothing if they have 16 bits, else the type that their 8 bits stand for."""


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

    def get(self, key: str, serves: Serves) -> Chain | None:
        """Read a chain.

        Args:
            key: The chain's key.
            serves: Tells whether the run can use a chain with these levels.

        Returns:
            The chain written last of those that serve, or None if no file holds one or the budget has no room for it.

        Raises:
            RivalError: The file is damaged.
        """
        files = sorted(self.folder.glob(f"{self._name(key)}*{SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
        for file in reversed(files):
            if file.stat().st_size > self.budget:
                continue
            try:
                chain = self._read(file, serves)
            except (SafetensorError, OSError, KeyError, ValueError):
                raise RivalError(
                    f"{file} of --keep-inversions is damaged, or is not an inversion; delete it."
                ) from None
            if chain is not None:
                return chain
        return None

    def put(self, key: str, chain: Chain, budget: float) -> None:
        """Write a chain. The file appears when it is whole.

        Args:
            key: The chain's key.
            chain: The chain.
            budget: Not used: a folder has no end.

        Raises:
            RivalError: The folder cannot be written.
        """
        tensors = {"noise_levels": chain.noise_levels, "latents": chain.latents.cpu().contiguous()}
        metadata = {
            "evaluations": str(chain.evaluations),
            "residual": repr(chain.residual),
            "bend": repr(chain.bend),
            "evaluated": str(chain.evaluated),
            "visits": chain.visits,
        }
        for node, features in chain.features.items():
            for index, (layer, h) in enumerate(stored_tensors(features).items()):
                tensors[FEATURE_NAME.format(node=node, index=index, layer=layer)] = h
            metadata["eight_bits_of"] = str(dtype_of(features) or "").removeprefix("torch.")
        try:
            with TemporaryDirectory(dir=self.folder) as unfinished:
                written = Path(unfinished) / "chain"
                save_file(tensors, written, metadata)
                os.replace(written, self._file(key, chain.visits))
        except (OSError, SafetensorError) as error:
            raise self._unusable(error) from None

    def make_room(self, size: int, budget: float) -> bool:
        """Tell whether a chain of `size` bytes fits into `budget` bytes of memory. The folder itself has no end."""
        return size <= budget

    def _name(self, key: str) -> str:
        return chain_key([key, *self.made_by])

    def _file(self, key: str, visits: str) -> Path:
        return self.folder / f"{self._name(key)}{visits and '-' + visits}{SUFFIX}"

    def _read(self, file: Path, serves: Serves) -> Chain | None:
        features: dict[int, dict[str, Tensor]] = {}
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata()
            if not serves(tensors.get_tensor("noise_levels"), int(metadata["evaluated"]), metadata["visits"]):
                return None
            for name in sorted(set(tensors.keys()) - {"noise_levels", "latents"}):
                _, node, _, layer = name.split("/", 3)
                features.setdefault(int(node), {})[layer] = tensors.get_tensor(name)
            dtype = EIGHT_BITS_OF[metadata.get("eight_bits_of", "")]
            return Chain(
                tensors.get_tensor("noise_levels"),
                tensors.get_tensor("latents").to(self.device),
                {node: of_stored(of_node, dtype) for node, of_node in features.items()},
                int(metadata["evaluations"]),
                float(metadata["residual"]),
                float(metadata["bend"]),
                int(metadata["evaluated"]),
                metadata["visits"],
            )

    def _unusable(self, error: Exception) -> RivalError:
        return RivalError(f"--keep-inversions {self.folder} cannot be used: {getattr(error, 'strerror', '') or error}.")
