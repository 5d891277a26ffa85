"""TurnStore: append-only Parquet shards of turns, safe against crashes, readable by Hugging Face ``datasets``.

A folder holds ``000000-0.parquet``, ``000001-0.parquet``, ... and ``manifest.json``, which lists the shards with
their sizes and checksums, so that a missing or damaged one is named. docs/data.md has the columns.
"""

import operator
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lightning_vlmq import shards as disk
from lightning_vlmq.files import lock
from lightning_vlmq.rows import SCHEMA, RowIndex, index_rows, to_table
from lightning_vlmq.shards import DamagedShardError, Shard, ShardReader
from lightning_vlmq.turns import SCHEMA_VERSION, Episode, Turn

__all__ = ["SCHEMA", "TurnStore"]


class TurnStore:
    """Turns of a folder as one sequence that only grows; opens the folder or, at the first flush, creates it.

    Rows are those on disk followed by the buffered ones, which are written at ``flush`` or when a shard is full.
    A row on disk keeps its number; buffered rows move back when shards of other processes come before them. The
    successor of row ``i`` is row ``i + 1``; ``samples`` says where it exists. Several processes may write
    to one folder. Opening reads every shard once to compare checksums; afterwards rows are read lazily, by memory
    map.

    Args:
        folder: Folder of the shards.
        shard_rows: Rows after which a shard is written; episodes are never split, so it may hold some more.
        skip_damaged: Load the other shards when some are missing or damaged, with a warning; see ``skipped``.
        writer: Letters and digits that end the names of the shards written here, e.g. the rank.
        cache_shards: Shards that are kept open.
        cache_bytes: Decoded rows that are kept in memory [bytes].

    Raises:
        ValueError: A shard is missing or damaged, of another schema version, or misnamed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        shard_rows: int = 512,
        skip_damaged: bool = False,
        writer: str = "0",
        cache_shards: int = 16,
        cache_bytes: int = 256 << 20,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder; give the folder of the shards")
        if not re.fullmatch(r"[A-Za-z0-9]+", writer):
            raise ValueError(f"writer {writer!r} must consist of letters and digits")
        if shard_rows < 1:
            raise ValueError(f"shard_rows {shard_rows} must be at least 1")
        self._shard_rows, self._writer, self._skip_damaged = shard_rows, writer, skip_damaged
        self._reader = ShardReader(self.folder, cache_shards, cache_bytes)
        self._shards: list[Shard] = []
        self._offsets: npt.NDArray[np.int64] = np.zeros(1, np.int64)  # first row of each shard, then the total
        self._skipped: dict[str, str] = {}
        self._indices: dict[str, RowIndex] = {}
        self._ids: set[str] = set()
        self._ids_shards = 0  # shards whose episodes are in _ids
        self._buffer: list[Turn] = []
        self._tables: list[Any] = []
        self._parts_key: tuple[int, int] | None = None
        self.reload()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def __len__(self) -> int:
        """Rows on disk and buffered."""
        return int(self._offsets[-1]) + len(self._buffer)

    def __getitem__(self, row: int) -> Turn:
        """Turn of a row; negative numbers count from the end.

        Raises:
            IndexError: There is no such row.
            ValueError: The shard has become unreadable since it was opened.
        """
        number = operator.index(row)
        number += len(self) if number < 0 else 0
        if not 0 <= number < len(self):
            raise IndexError(f"row {row} of {len(self)} in {self.folder}")
        if number >= self._offsets[-1]:
            return self._buffer[number - int(self._offsets[-1])]
        place = int(np.searchsorted(self._offsets, number, side="right")) - 1
        return self._reader.turn(self._shards[place], number - int(self._offsets[place]))

    def __iter__(self) -> Iterator[Turn]:
        return (self[row] for row in range(len(self)))

    def append(self, episode: Episode) -> None:
        """Adds an episode; it is visible at once and written with the next shard.

        Args:
            episode: Rows with one identifier that is new to the store, indices 0, 1, ..., a reply in all but the last.

        Raises:
            ValueError: The rows are not such an episode, or a value does not fit its column.
        """
        turns = episode.turns
        if not turns:
            raise ValueError("an episode without rows cannot be stored; it needs at least its last observation")
        name = turns[0].episode
        if any(turn.episode != name for turn in turns):
            raise ValueError(f"episode {name!r} holds rows of another episode; append episodes one by one")
        if [turn.index for turn in turns] != list(range(len(turns))):
            raise ValueError(f"episode {name!r}: indices must be 0 to {len(turns) - 1} in order")
        if turns[-1].reply is not None or any(turn.reply is None for turn in turns[:-1]):
            raise ValueError(f"episode {name!r}: the last row, and only it, must have no reply (None)")
        for shard in self._shards[self._ids_shards :]:
            self._ids.update(self._shard_index(shard).ids)
        self._ids_shards = len(self._shards)
        if name in self._ids:
            raise ValueError(f"episode {name!r} is in {self.folder} already; give each episode its own identifier")
        self._tables.append(to_table(turns))
        self._ids.add(name)
        self._buffer.extend(turns)
        if len(self._buffer) >= self._shard_rows:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered rows as a shard that survives a crash, after taking in shards of other processes."""
        if not self._buffer:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock(self.folder):
            for leftover in self.folder.glob(".*.parquet.tmp"):  # of killed writers: live ones hold the lock
                leftover.unlink()
            self.reload()
            listed = disk.read_manifest(self.folder)
            names = {*listed, *(path.name for path in self.folder.glob("*.parquet"))}
            numbers = [int(match[1]) for name in names if (match := disk.SHARD_NAME.fullmatch(name))]
            name = f"{max(numbers, default=-1) + 1:06d}-{self._writer}.parquet"
            table = pa.concat_tables(self._tables).combine_chunks()
            shard = disk.write_shard(self.folder, name, table)
            self._tables, self._buffer = [], []
            self._add([shard])
            self._indices[name] = index_rows(table)
            disk.write_manifest(self.folder, listed, self._shards)

    def reload(self) -> None:
        """Takes in the shards that other processes have written since.

        Raises:
            ValueError: One of them is missing or damaged (unless ``skip_damaged``), or of another schema version.
        """
        listed = disk.read_manifest(self.folder)  # before the listing: a writer renames first
        known = {shard.name for shard in self._shards} | self._skipped.keys()
        names = {path.name for path in self.folder.glob("*.parquet")}
        for name in sorted(names):
            if not disk.SHARD_NAME.fullmatch(name):
                raise ValueError(f"{self.folder / name} is not named like 000000-0.parquet; rename or remove it")
        shards, damaged = [], {}
        for name in sorted((names | listed.keys()) - known, key=disk.shard_order):
            try:
                shards.append(disk.check_shard(self.folder, name, listed.get(name)))
            except DamagedShardError as error:
                damaged[name] = f"{self.folder / name} is {error}"
        if damaged:
            good = len(self._shards) + len(shards)
            message = "; ".join(damaged.values())
            if not self._skip_damaged:
                raise ValueError(
                    f"{message}; restore it, or pass skip_damaged: true to load the other {good} shards"
                    f" (to drop it for good delete it and {disk.MANIFEST})"
                )
            warnings.warn(f"{message}; loaded the other {good} shards", stacklevel=3)
        self._skipped |= damaged
        self._add(shards)

    def _add(self, shards: list[Shard]) -> None:
        self._shards += shards
        self._offsets = np.cumsum([0, *(shard.rows for shard in self._shards)], dtype=np.int64)

    def _drop(self, names: set[str]) -> None:
        """Forgets shards; the others' rows move up."""
        self._shards = [shard for shard in self._shards if shard.name not in names]
        self._add([])
        self._indices = {name: index for name, index in self._indices.items() if name not in names}
        self._ids, self._ids_shards = {turn.episode for turn in self._buffer}, 0
        self._parts_key = None
        self._reader.forget()

    def _shard_index(self, shard: Shard) -> RowIndex:
        if shard.name not in self._indices:
            self._indices[shard.name] = index_rows(self._reader.columns(shard, ["episode", "index", "reply"]))
        return self._indices[shard.name]

    def _parts(self) -> list[tuple[int, RowIndex]]:
        """First row and index of every shard and of the buffer; kept until rows are added."""
        key = len(self._shards), len(self._buffer)
        if key != self._parts_key:
            indices = [self._shard_index(shard) for shard in self._shards]
            if self._tables:
                indices.append(index_rows(pa.concat_tables(self._tables)))
            self._parts_cache = list(zip(self._offsets.tolist(), indices, strict=False))
            samples = [offset + index.samples for offset, index in self._parts_cache]
            self._samples = np.concatenate([np.zeros(0, np.int64), *samples])
            self._samples.setflags(write=False)
            self._parts_key = key
        return self._parts_cache

    @property
    def samples(self) -> npt.NDArray[np.int64]:
        """Numbers of the rows ``[N]`` that have a reply and a successor: the only ones to sample, in order."""
        self._parts()
        return self._samples

    @property
    def unpaired(self) -> int:
        """Number of rows that have a reply but no successor, and so cannot be sampled."""
        return sum(index.unpaired for _, index in self._parts())

    @property
    def skipped(self) -> tuple[str, ...]:
        """One line for each shard that ``skip_damaged`` left out."""
        return tuple(self._skipped.values())

    def successor(self, row: int) -> int:
        """Number of the row that holds the next observation, for a row out of ``samples``."""
        return row + 1

    def columns(self, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Whole columns as arrays ``[rows]``, without reading images.

        Args:
            names: Names out of ``SCHEMA``, except ``images``; text comes as objects, a missing reply as ``None``.

        Raises:
            ValueError: A name is unknown or ``images``.
        """
        for name in names:
            if name not in SCHEMA.names or name == "images":
                light = ", ".join(column for column in SCHEMA.names if column != "images")
                raise ValueError(f"column {name!r} cannot be read as a whole; choose from {light}")
        tables = [SCHEMA.empty_table().select(names)]
        tables += [self._reader.columns(shard, names) for shard in self._shards]
        tables += [table.select(names) for table in self._tables]
        merged = pa.concat_tables(tables)
        return {name: merged[name].to_numpy() for name in names}

    def episodes(self) -> Iterator[Episode]:
        """Episodes in order of their rows; one with missing rows is left out."""
        for offset, index in list(self._parts()):
            for start, stop in index.whole:
                yield Episode(tuple(self[row] for row in range(offset + start, offset + stop)))

    def state(self) -> dict[str, Any]:
        """Shards with rows and checksum, in order, and the number of buffered rows: plain types, for checkpoints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "shards": [[shard.name, shard.rows, shard.crc] for shard in self._shards],
            "buffered": len(self._buffer),
        }
