"""What RIVAL keeps between runs in one WebUI process. The script owns the one instance."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import ref

from modules import devices

from rival_ext.method.chain import Chain
from rival_ext.storage.store import ChainStore


class Session:
    """The inversions of earlier runs, and which preview of a run would find them.

    The attribute `store` holds the chains as those see it who have not logged in, such as the API's clients.
    """

    def __init__(self) -> None:
        self.store = ChainStore()
        self._chains_by_preview: dict[str, list[ref[Chain]]] = {}

    def release(self, user: str | None) -> int:
        """Release a user's inversions, and the memory that torch would keep of them for itself.

        Args:
            user: Whose inversions these are. None stands for everybody who has not logged in.

        Returns:
            The bytes that they held. A run that still uses one of them holds it until it ends.
        """
        store = self.store.of(user)
        freed = store.bytes
        store.clear()
        devices.torch_gc()
        return freed

    def release_one(self, chain_id: str) -> int | None:
        """Do the same for one inversion of those who have not logged in.

        Args:
            chain_id: The id of its entry in the store.

        Returns:
            The bytes that it held, or None if there is no such inversion.
        """
        freed = next((entry.chain.bytes for entry in self.store.entries if entry.id == chain_id), 0)
        if not self.store.remove(chain_id):
            return None
        devices.torch_gc()
        return freed

    def remember(self, preview_key: str | None, chains: Sequence[Chain]) -> None:
        """Remember which chains a run used, for as long as somebody keeps them.

        Args:
            preview_key: The run's key (`fingerprint.preview_key`), or None for a run that the panel cannot foresee.
            chains: The chains of the run's exemplars.
        """
        if preview_key is not None:
            self._chains_by_preview[preview_key] = [ref(chain) for chain in chains]
        for key, known in list(self._chains_by_preview.items()):
            if not all(chain() for chain in known):
                # the run of another thread may have removed it meanwhile
                self._chains_by_preview.pop(key, None)

    def is_stored(self, preview_key: str) -> bool:
        """Tell whether a run will find its inversions stored, before anything is encoded.

        Conservative: it may return False for stored inversions, never the reverse.

        Args:
            preview_key: The run's key.

        Returns:
            True if all chains of an earlier run with this key are still kept.
        """
        chains = self._chains_by_preview.get(preview_key)
        return chains is not None and all(chain() for chain in chains)
