"""TurnStore: append-only Parquet shards of turns, safe against crashes, readable by Hugging Face ``datasets``.

A folder holds ``000000-0.parquet``, ``000001-0.parquet``, ... and ``manifest.json``, which lists the shards with
their sizes and checksums, so that a missing or damaged one is named. docs/data.md has the columns.
"""

import contextlib
import json
import math
import operator
import os
import re
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_vlmq.turns import SCHEMA_VERSION, Episode, Observation, Turn

__all__ = ["SCHEMA", "TurnStore", "keep_returns", "relabel"]

_VERSION_KEY = b"lightning_vlmq_schema"
_MANIFEST = "manifest.json"
_SHARD_NAME = re.compile(r"(\d{6,})-[A-Za-z0-9]+\.parquet")
_TURN_FIELDS = tuple(field for field in fields(Turn) if field.name != "observation")
_OBSERVATION_FIELDS = fields(Observation)
_NULLABLE = frozenset({"reply"})

# One random row costs the decoding of its row group: at most this many rows, and about this many bytes.
_GROUP_ROWS = 64
_GROUP_BYTES = 1 << 20

# Annotation in turns.py -> Arrow type and the feature by which Hugging Face datasets shows it.
_TYPES: dict[Any, tuple[Any, dict[str, Any]]] = {
    str: (pa.string(), {"dtype": "string", "_type": "Value"}),
    str | None: (pa.string(), {"dtype": "string", "_type": "Value"}),
    int: (pa.int64(), {"dtype": "int64", "_type": "Value"}),
    float: (pa.float64(), {"dtype": "float64", "_type": "Value"}),
    bool: (pa.bool_(), {"dtype": "bool", "_type": "Value"}),
    tuple[int, ...]: (pa.list_(pa.int32()), {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}),
    tuple[bytes, ...]: (
        pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        {"feature": {"_type": "Image"}, "_type": "List"},
    ),
}


def _schema() -> Any:
    """Arrow schema: a column for each field of Turn and of its Observation."""
    every = (*_TURN_FIELDS, *_OBSERVATION_FIELDS)
    features = {field.name: _TYPES[field.type][1] for field in every}
    metadata = {
        _VERSION_KEY: str(SCHEMA_VERSION).encode(),
        b"huggingface": json.dumps({"info": {"features": features}}).encode(),
    }
    return pa.schema([(field.name, _TYPES[field.type][0]) for field in every], metadata=metadata)


SCHEMA = _schema()
"""Arrow schema of a shard, with the schema version and the Hugging Face features in its metadata."""


def _to_table(turns: Sequence[Turn]) -> Any:
    """Arrow table of ``SCHEMA`` from turns; ``ValueError`` names the column that does not fit."""
    arrays = []
    values: list[Any]
    for name in SCHEMA.names:
        if name == "images":
            values = [[{"bytes": png, "path": None} for png in turn.observation.images] for turn in turns]
        else:
            holders = turns if hasattr(Turn, name) else [turn.observation for turn in turns]
            values = [getattr(holder, name) for holder in holders]
        try:
            array = pa.array(values, SCHEMA.field(name).type)
        except (pa.ArrowException, UnicodeError, OverflowError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"episode {turns[0].episode!r}: column {name!r} cannot be stored: {reason}") from None
        if array.null_count and name not in _NULLABLE:
            raise ValueError(f"episode {turns[0].episode!r}: column {name!r} is None; give it a value")
        if pa.types.is_floating(array.type) and not all(map(math.isfinite, values)):
            raise ValueError(f"episode {turns[0].episode!r}: column {name!r} is not finite; turns hold finite numbers")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _to_turn(columns: Sequence[Any], row: int) -> Turn:
    """Turn of one row from Arrow arrays in the order of ``SCHEMA``."""
    values = {name: column[row].as_py() for name, column in zip(SCHEMA.names, columns, strict=True)}
    values["images"] = tuple(image["bytes"] for image in values["images"])
    values["reply_ids"] = tuple(values["reply_ids"])
    observation = Observation(**{field.name: values[field.name] for field in _OBSERVATION_FIELDS})
    return Turn(observation=observation, **{field.name: values[field.name] for field in _TURN_FIELDS})


@dataclass(frozen=True, slots=True)
class _Shard:
    """A checked shard: name, rows, size [bytes], CRC-32 and the first row of each row group ``[G + 1]``."""

    name: str
    rows: int
    size: int
    crc: int
    groups: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Index:
    """Rows of a shard that may be sampled, rows that may not, and the episodes as (start, stop)."""

    samples: npt.NDArray[np.int64]
    unpaired: int
    ids: tuple[str, ...]
    whole: tuple[tuple[int, int], ...]


def _index(table: Any) -> _Index:
    """Pairs of consecutive rows of one episode, computed from the columns and so right for edited shards too."""
    episode = table["episode"].to_numpy(zero_copy_only=False)
    index = table["index"].to_numpy()
    replied = table["reply"].is_valid().to_numpy(zero_copy_only=False).astype(bool)
    follows = (episode[1:] == episode[:-1]) & (index[1:] == index[:-1] + 1)
    samples = np.flatnonzero(replied[:-1] & follows).astype(np.int64)
    starts = np.flatnonzero(np.concatenate([[True], ~follows])) if len(episode) else np.zeros(0, np.int64)
    runs = zip(starts.tolist(), [*starts[1:].tolist(), len(episode)], strict=False)
    whole = tuple(
        (start, stop)
        for start, stop in runs
        if index[start] == 0 and not replied[stop - 1] and replied[start : stop - 1].all()
    )
    return _Index(samples, int(replied.sum()) - len(samples), tuple(episode[starts].tolist()), whole)


class _DamagedError(Exception):
    """A shard is missing or damaged; the text is the reason."""


def _write_atomic(path: Path, data: Any) -> None:
    """Writes a file that is either there as a whole or not at all, also after a crash of the machine."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One writer at a time in a folder; the system releases the lock of a killed process."""
    import fcntl  # POSIX only: stores can be read, but not written, elsewhere

    handle = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _crc(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _group_starts(metadata: Any) -> npt.NDArray[np.int64]:
    """First row of each row group and the number of rows, ``[G + 1]``."""
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return np.cumsum([0, *sizes], dtype=np.int64)


class TurnStore:
    """Turns of a folder as one sequence that only grows; opens the folder or, at the first flush, creates it.

    Rows are those on disk followed by the buffered ones, which are written at ``flush`` or when a shard is full.
    A row on disk keeps its number for good; buffered rows move back when shards of other processes come before
    them. The successor of row ``i`` is row ``i + 1``; ``samples`` says where it exists. Several processes may write
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
        cache_bytes: int = 64 << 20,
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder; give the folder of the shards")
        if not re.fullmatch(r"[A-Za-z0-9]+", writer):
            raise ValueError(f"writer {writer!r} must consist of letters and digits")
        if shard_rows < 1:
            raise ValueError(f"shard_rows {shard_rows} must be at least 1")
        self._shard_rows, self._writer, self._skip_damaged = shard_rows, writer, skip_damaged
        self._cache_shards, self._cache_bytes = max(1, cache_shards), cache_bytes
        self._shards: list[_Shard] = []
        self._offsets: npt.NDArray[np.int64] = np.zeros(1, np.int64)  # first row of each shard, then the total
        self._skipped: dict[str, str] = {}
        self._indices: dict[str, _Index] = {}
        self._ids: set[str] = set()
        self._ids_shards = 0  # shards whose episodes are in _ids
        self._buffer: list[Turn] = []
        self._tables: list[Any] = []
        self._parts_key: tuple[int, int] | None = None
        self._drop_caches()
        self.reload()

    def _drop_caches(self) -> None:
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], tuple[int, list[Any]]] = OrderedDict()
        self._cached = 0

    def __getstate__(self) -> dict[str, Any]:
        """State for worker processes: everything but open files and decoded rows."""
        return {**self.__dict__, "_files": OrderedDict(), "_groups": OrderedDict(), "_cached": 0}

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
        shard, local = self._shards[place], number - int(self._offsets[place])
        group = int(np.searchsorted(shard.groups, local, side="right")) - 1
        return _to_turn(self._group(shard, group), local - int(shard.groups[group]))

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
        self._tables.append(_to_table(turns))
        self._ids.add(name)
        self._buffer.extend(turns)
        if len(self._buffer) >= self._shard_rows:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered rows as a shard that survives a crash, after taking in shards of other processes."""
        if not self._buffer:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with _lock(self.folder):
            for leftover in self.folder.glob(".*.parquet.tmp"):  # of killed writers: live ones hold the lock
                leftover.unlink()
            self.reload()
            listed = self._read_manifest()
            names = {*listed, *(path.name for path in self.folder.glob("*.parquet"))}
            numbers = [int(match[1]) for name in names if (match := _SHARD_NAME.fullmatch(name))]
            name = f"{max(numbers, default=-1) + 1:06d}-{self._writer}.parquet"
            table = pa.concat_tables(self._tables).combine_chunks()
            rows = max(1, min(_GROUP_ROWS, _GROUP_BYTES * len(table) // table.nbytes))
            sink = pa.BufferOutputStream()
            pq.write_table(
                table, sink, row_group_size=rows, compression="snappy", use_dictionary=False, write_statistics=False
            )
            data = sink.getvalue()
            groups = np.append(np.arange(0, len(table), rows, dtype=np.int64), len(table))
            _write_atomic(self.folder / name, data)
            self._tables, self._buffer = [], []
            self._add([_Shard(name, len(table), data.size, zlib.crc32(data), groups)])
            self._indices[name] = _index(table)
            listed |= {
                shard.name: {"name": shard.name, "rows": shard.rows, "bytes": shard.size, "crc32": shard.crc}
                for shard in self._shards
            }
            manifest = {"schema_version": SCHEMA_VERSION, "shards": [listed[name] for name in sorted(listed)]}
            _write_atomic(self.folder / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())

    def reload(self) -> None:
        """Takes in the shards that other processes have written since.

        Raises:
            ValueError: One of them is missing or damaged (unless ``skip_damaged``), or of another schema version.
        """
        listed = self._read_manifest()  # before the listing: a writer renames first
        known = {shard.name for shard in self._shards} | self._skipped.keys()
        names = {path.name for path in self.folder.glob("*.parquet")}
        for name in sorted(names):
            if not _SHARD_NAME.fullmatch(name):
                raise ValueError(f"{self.folder / name} is not named like 000000-0.parquet; rename or remove it")
        shards, damaged = [], {}
        for name in sorted((names | listed.keys()) - known, key=lambda name: (int(name.split("-")[0]), name)):
            try:
                shards.append(self._check(name, listed.get(name)))
            except _DamagedError as error:
                damaged[name] = f"{self.folder / name} is {error}"
        if damaged:
            good = len(self._shards) + len(shards)
            message = "; ".join(damaged.values())
            if not self._skip_damaged:
                raise ValueError(
                    f"{message}; restore it, or pass skip_damaged: true to load the other {good} shards"
                    f" (to drop it for good delete it and {_MANIFEST})"
                )
            warnings.warn(f"{message}; loaded the other {good} shards", stacklevel=3)
        self._skipped |= damaged
        self._add(shards)

    def _add(self, shards: list[_Shard]) -> None:
        self._shards += shards
        self._offsets = np.cumsum([0, *(shard.rows for shard in self._shards)], dtype=np.int64)

    def _read_manifest(self) -> dict[str, dict[str, Any]]:
        """Entries of the manifest by name of the shard; none if there is no manifest yet."""
        path = self.folder / _MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
            version = manifest["schema_version"]
            entries = {entry["name"]: entry for entry in manifest["shards"]}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged; delete it and it is made anew from the shards") from None
        self._check_version(path, str(version))
        return entries

    @staticmethod
    def _check_version(path: Path, version: str) -> None:
        if version != str(SCHEMA_VERSION):
            raise ValueError(
                f"{path} has schema version {version}, this lightning-vlmq reads {SCHEMA_VERSION};"
                " use the lightning-vlmq that wrote it, or a newer one"
            )

    def _check(self, name: str, entry: dict[str, Any] | None) -> _Shard:
        """Checks a shard against its manifest entry or, without one, by reading all of it."""
        path = self.folder / name
        if not path.exists():
            raise _DamagedError("missing")
        size, crc = path.stat().st_size, _crc(path)
        if entry is not None and size != entry["bytes"]:
            raise _DamagedError(f"damaged ({size} bytes instead of {entry['bytes']})")
        if entry is not None and crc != entry["crc32"]:
            raise _DamagedError("damaged (its checksum differs)")
        try:
            with pq.ParquetFile(path, memory_map=True) as file:
                schema, metadata = file.schema_arrow, file.metadata
                version = (schema.metadata or {}).get(_VERSION_KEY)
                if version is None:
                    raise ValueError(f"{path} has no schema version, so it was not written by a TurnStore; remove it")
                self._check_version(path, version.decode())
                if not schema.equals(SCHEMA):
                    both = [dict(zip(each.names, each.types, strict=True)) for each in (schema, SCHEMA)]
                    odd = [name for name in both[0] | both[1] if both[0].get(name) != both[1].get(name)]
                    raise ValueError(f"{path} has other columns than schema version {SCHEMA_VERSION}: {odd or 'order'}")
                for group in range(metadata.num_row_groups if entry is None else 0):
                    file.read_row_group(group, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _DamagedError(f"damaged (no readable Parquet file: {str(error).splitlines()[0]})") from None
        return _Shard(name, metadata.num_rows, size, crc, _group_starts(metadata))

    @contextlib.contextmanager
    def _open(self, shard: _Shard) -> Iterator[Any]:
        """The shard as an open Parquet file, of which the last ``cache_shards`` are kept."""
        path = self.folder / shard.name
        try:
            file = self._files.pop(shard.name, None) or pq.ParquetFile(path, memory_map=True)
            yield file
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} cannot be read any more ({reason}); restore it and open the store anew") from None
        self._files[shard.name] = file
        while len(self._files) > self._cache_shards:
            self._files.popitem(last=False)[1].close(force=True)

    def _group(self, shard: _Shard, group: int) -> list[Any]:
        """Arrow arrays of a row group in the order of ``SCHEMA``, from the cache or the disk."""
        key = shard.name, group
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key][1]
        with self._open(shard) as file:
            table = file.read_row_group(group, use_threads=False).combine_chunks()
        columns = [column.chunk(0) for column in table.columns]
        self._groups[key] = table.nbytes, columns
        self._cached += table.nbytes
        while self._cached > self._cache_bytes and len(self._groups) > 1:
            self._cached -= self._groups.popitem(last=False)[1][0]
        return columns

    def _shard_index(self, shard: _Shard) -> _Index:
        if shard.name not in self._indices:
            with self._open(shard) as file:
                self._indices[shard.name] = _index(file.read(["episode", "index", "reply"], use_threads=False))
        return self._indices[shard.name]

    def _parts(self) -> list[tuple[int, _Index]]:
        """First row and index of every shard and of the buffer; kept until rows are added."""
        key = len(self._shards), len(self._buffer)
        if key != self._parts_key:
            indices = [self._shard_index(shard) for shard in self._shards]
            if self._tables:
                indices.append(_index(pa.concat_tables(self._tables)))
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
        for shard in self._shards:
            with self._open(shard) as file:
                tables.append(file.read(list(names), use_threads=False).select(names))
        tables += [table.select(names) for table in self._tables]
        merged = pa.concat_tables(tables)
        return {name: merged[name].to_numpy() for name in names}

    def episodes(self) -> Iterator[Episode]:
        """Episodes in order of their rows; one with missing rows is left out."""
        for offset, index in list(self._parts()):
            for start, stop in index.whole:
                yield Episode(tuple(self[row] for row in range(offset + start, offset + stop)))

    def state(self) -> dict[str, Any]:
        """Shards with their rows, in order, and the number of buffered rows: plain types, for checkpoints."""
        return {
            "schema_version": SCHEMA_VERSION,
            "shards": [[shard.name, shard.rows] for shard in self._shards],
            "buffered": len(self._buffer),
        }


def relabel(store: TurnStore, folder: str | Path, function: Callable[[Turn], Turn], **options: Any) -> TurnStore:
    """Copy of a store with other ``imitate``, ``td`` and ``weight``; episodes with missing rows are left out.

    Args:
        store: Where the turns come from; it stays as it is.
        folder: New folder.
        function: Turn -> turn that differs in the three fields at most, e.g. from :func:`keep_returns`.
        **options: Arguments of the new :class:`TurnStore`.

    Raises:
        ValueError: The folder holds turns already, or the function changes another field.
    """
    copy = TurnStore(folder, **options)
    if len(copy):
        raise ValueError(f"{copy.folder} holds turns already; give a new folder")
    for episode in store.episodes():
        turns = tuple(function(turn) for turn in episode.turns)
        for old, new in zip(episode.turns, turns, strict=True):
            if replace(new, imitate=old.imitate, td=old.td, weight=old.weight) != old:
                raise ValueError(
                    f"episode {old.episode!r}, turn {old.index}: relabel changes only imitate, td and weight"
                )
        copy.append(Episode(turns))
    copy.flush()
    return copy


def keep_returns(
    store: TurnStore, *, minimum: float | None = None, fraction: float | None = None
) -> Callable[[Turn], Turn]:
    """Function for :func:`relabel`: imitate only episodes with a high return of the environment's own rewards.

    Args:
        store: Store whose returns are compared.
        minimum: Least return of an episode that is imitated.
        fraction: Or: share of the episodes to imitate, best first; ties with the last one are imitated too.

    Raises:
        ValueError: Not exactly one of the two is given, or the fraction is not in (0, 1].
    """
    if (minimum is None) == (fraction is None):
        raise ValueError("keep_returns needs either minimum or fraction")
    columns = store.columns(["episode", "env_reward"])
    returns: dict[str, float] = {}
    for episode, reward in zip(columns["episode"].tolist(), columns["env_reward"].tolist(), strict=True):
        returns[episode] = returns.get(episode, 0.0) + reward
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction {fraction} must be above 0 and at most 1")
        ranked = sorted(returns.values(), reverse=True)
        minimum = ranked[math.ceil(fraction * len(ranked)) - 1] if ranked else 0.0
    kept = {episode for episode, value in returns.items() if minimum is not None and value >= minimum}
    return lambda turn: replace(turn, imitate=turn.imitate and turn.episode in kept)
