"""An agent's own turns: a store that forgets the oldest and can go back to where a checkpoint stood."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_vlmq import shards as disk
from lightning_vlmq.files import lock
from lightning_vlmq.shards import Shard
from lightning_vlmq.store import TurnStore

__all__ = ["ExperienceStore"]

SET_ASIDE = "set_aside"
"""Folder in the store's for shards written behind the checkpoint that a run was resumed from."""

EVICTED = "evicted"
"""Folder in the store's for shards beyond the capacity that a checkpoint may still name."""


class ExperienceStore(TurnStore):
    """A :class:`~lightning_vlmq.store.TurnStore` of one writer that holds a bounded number of turns.

    Whole shards are forgotten, so an episode is whole or gone, and the newest shard always stays. Rows move up then.

    Args:
        folder: Folder of the shards, for this store alone.
        capacity: Turns with a reply to hold at most; 0 for no limit. A shard holds a sixteenth of it or 512 rows.
        skip_damaged: As in ``TurnStore``.
        writer: Letters and digits that end the names of the shards, e.g. the rank.

    Raises:
        ValueError: ``capacity`` is negative, or as for a ``TurnStore``.
    """

    def __init__(self, folder: str | Path, *, capacity: int = 0, skip_damaged: bool = False, writer: str = "0") -> None:
        if capacity < 0:
            raise ValueError(f"capacity must be a number of turns or 0 for no limit, not {capacity}")
        self.capacity = capacity
        shard_rows = min(512, max(1, capacity // 16)) if capacity else 512
        super().__init__(folder, shard_rows=shard_rows, skip_damaged=skip_damaged, writer=writer)

    def evict(self) -> int:
        """Writes what is buffered and forgets the oldest shards beyond the capacity; returns their rows.

        Their files stay in the folder ``evicted`` until :meth:`delete_evicted`, so that a checkpoint that names them
        can be gone back to.
        """
        self.flush()
        gone: list[Shard] = []
        turns = len(self.samples)
        for shard in self._shards[:-1] if self.capacity else []:
            if turns <= self.capacity:
                break
            gone.append(shard)
            turns -= len(self._shard_index(shard).samples)
        self._move(gone, EVICTED)
        return sum(shard.rows for shard in gone)

    def delete_evicted(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Deletes the files of evicted shards that none of the states names.

        Args:
            states: Each :meth:`~lightning_vlmq.store.TurnStore.state` that may still be gone back to.
        """
        needed = {_kept_as(name, crc) for state in states for name, _, crc in state["shards"]}
        for path in (self.folder / EVICTED).glob("*.parquet"):
            if path.name not in needed:
                path.unlink()

    def restore(self, state: Mapping[str, Any]) -> int:
        """Goes back to a :meth:`~lightning_vlmq.store.TurnStore.state`; returns the rows set aside.

        What is not in it is moved to the folder ``set_aside``; what it names and was set aside or evicted comes back. A
        warning counts what it names and is gone.
        """
        named = {(name, crc) for name, _, crc in state["shards"]}
        later = [shard for shard in self._shards if (shard.name, shard.crc) not in named]
        self._move(later, SET_ASIDE)
        missing = named - {(shard.name, shard.crc) for shard in self._shards}
        gone = [name for name, crc in missing if not self._bring_back(name, crc)]
        self.reload()
        self._shards.sort(key=lambda shard: disk.shard_order(shard.name))  # as a new process will find them
        self._drop(set())
        if gone:
            warnings.warn(
                f"{len(gone)} of {len(named)} shards of the checkpoint are gone from {self.folder}", stacklevel=2
            )
        return sum(shard.rows for shard in later)

    def _bring_back(self, name: str, crc: int) -> bool:
        for folder in (SET_ASIDE, EVICTED):
            path = self.folder / folder / _kept_as(name, crc)
            if path.exists():
                os.replace(path, self.folder / name)
                return True
        return False

    def _move(self, gone: Sequence[Shard], kept: str) -> None:
        """Forgets shards and moves their files to a folder in the store's."""
        if not gone:
            return
        names = {shard.name for shard in gone}
        folder = self.folder / kept
        folder.mkdir(exist_ok=True)
        with lock(self.folder):
            # first from the manifest: a file that it does not list is no damage, one that is missing would be
            listed = {k: v for k, v in disk.read_manifest(self.folder).items() if k not in names}
            disk.write_manifest(self.folder, listed, [s for s in self._shards if s.name not in names])
            for shard in gone:
                os.replace(self.folder / shard.name, folder / _kept_as(shard.name, shard.crc))
        self._drop(names)


def _kept_as(name: str, crc: int) -> str:
    """Name of a shard's file outside the store, where a name may come again with other turns."""
    return f"{Path(name).stem}-{crc:08x}.parquet"
