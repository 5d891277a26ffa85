"""Shards of turns on disk: files, the manifest, checks and lazy reading."""

import contextlib
import json
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_vlmq.files import write_atomic
from lightning_vlmq.rows import SCHEMA, VERSION_KEY, to_turn
from lightning_vlmq.turns import SCHEMA_VERSION, Turn

__all__ = [
    "MANIFEST",
    "SHARD_NAME",
    "DamagedShardError",
    "Shard",
    "ShardReader",
    "check_shard",
    "read_manifest",
    "shard_order",
    "write_manifest",
    "write_shard",
]

MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"(\d{6,})-[A-Za-z0-9]+\.parquet")  # number and writer

# One random row costs the decoding of its row group: at most this many rows, and about this many bytes.
_GROUP_ROWS = 64
_GROUP_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Shard:
    """A checked shard: name, rows, size [bytes], CRC-32 and the first row of each row group ``[G + 1]``."""

    name: str
    rows: int
    size: int
    crc: int
    groups: npt.NDArray[np.int64]


def shard_order(name: str) -> tuple[int, str]:
    """Key that sorts names of shards as they were written."""
    return int(name.split("-")[0]), name


class DamagedShardError(Exception):
    """A shard is missing or damaged; the text is the reason."""


def _crc(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def write_shard(folder: Path, name: str, table: Any) -> Shard:
    """Writes a table of ``SCHEMA`` as one shard, in small row groups, so that single rows are read quickly."""
    rows = max(1, min(_GROUP_ROWS, _GROUP_BYTES * len(table) // table.nbytes))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows, compression="snappy", use_dictionary=False, write_statistics=False)
    data = sink.getvalue()
    groups = np.append(np.arange(0, len(table), rows, dtype=np.int64), len(table))
    write_atomic(folder / name, data)
    return Shard(name, len(table), data.size, zlib.crc32(data), groups)


def write_manifest(folder: Path, listed: dict[str, dict[str, Any]], shards: Sequence[Shard]) -> None:
    """Writes the manifest: the entries that were ``listed`` before, renewed by those of ``shards``."""
    entries = listed | {s.name: {"name": s.name, "rows": s.rows, "bytes": s.size, "crc32": s.crc} for s in shards}
    manifest = {"schema_version": SCHEMA_VERSION, "shards": [entries[name] for name in sorted(entries)]}
    write_atomic(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Entries of the manifest by name of the shard; none if there is no manifest yet."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["schema_version"]
        entries = {entry["name"]: entry for entry in manifest["shards"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged; delete it and it is made anew from the shards") from None
    _check_version(path, str(version))
    return entries


def _check_version(path: Path, version: str) -> None:
    if version != str(SCHEMA_VERSION):
        raise ValueError(
            f"{path} has schema version {version}, this lightning-vlmq reads {SCHEMA_VERSION};"
            " use the lightning-vlmq that wrote it, or a newer one"
        )


def check_shard(folder: Path, name: str, entry: dict[str, Any] | None) -> Shard:
    """Checks a shard against its manifest entry or, without one, by reading all of it.

    Raises:
        DamagedShardError: It is missing or damaged.
        ValueError: It is not a shard, or of another schema version.
    """
    path = folder / name
    if not path.exists():
        raise DamagedShardError("missing")
    size, crc = path.stat().st_size, _crc(path)
    if entry is not None and size != entry["bytes"]:
        raise DamagedShardError(f"damaged ({size} bytes instead of {entry['bytes']})")
    if entry is not None and crc != entry["crc32"]:
        raise DamagedShardError("damaged (its checksum differs)")
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            schema, metadata = file.schema_arrow, file.metadata
            version = (schema.metadata or {}).get(VERSION_KEY)
            if version is None:
                raise ValueError(f"{path} has no schema version, so it was not written by a TurnStore; remove it")
            _check_version(path, version.decode())
            if not schema.equals(SCHEMA):
                both = [dict(zip(each.names, each.types, strict=True)) for each in (schema, SCHEMA)]
                odd = [name for name in both[0] | both[1] if both[0].get(name) != both[1].get(name)]
                raise ValueError(f"{path} has other columns than schema version {SCHEMA_VERSION}: {odd or 'order'}")
            for group in range(metadata.num_row_groups if entry is None else 0):
                file.read_row_group(group, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DamagedShardError(f"damaged (no readable Parquet file: {str(error).splitlines()[0]})") from None
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return Shard(name, metadata.num_rows, size, crc, np.cumsum([0, *sizes], dtype=np.int64))


class ShardReader:
    """Rows of checked shards, read lazily by memory map; the last ones stay decoded in memory.

    Args:
        folder: Folder of the shards.
        cache_shards: Shards that are kept open.
        cache_bytes: Decoded rows that are kept in memory [bytes].
    """

    def __init__(self, folder: Path, cache_shards: int, cache_bytes: int) -> None:
        self.folder = folder
        self._cache_shards, self._cache_bytes = max(1, cache_shards), cache_bytes
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], tuple[int, list[Any]]] = OrderedDict()
        self._cached = 0

    def __getstate__(self) -> dict[str, Any]:
        """State for worker processes: everything but open files and decoded rows."""
        return {**self.__dict__, "_files": OrderedDict(), "_groups": OrderedDict(), "_cached": 0}

    def forget(self) -> None:
        """Closes and forgets everything that is kept."""
        for file in self._files.values():
            file.close(force=True)
        self._files, self._groups, self._cached = OrderedDict(), OrderedDict(), 0

    def turn(self, shard: Shard, row: int) -> Turn:
        """Turn of a row of a shard."""
        group = int(np.searchsorted(shard.groups, row, side="right")) - 1
        return to_turn(self._group(shard, group), row - int(shard.groups[group]))

    def columns(self, shard: Shard, names: Sequence[str]) -> Any:
        """Arrow table of whole columns, in the order of ``names``."""
        with self._open(shard) as file:
            return file.read(list(names), use_threads=False).select(names)

    @contextlib.contextmanager
    def _open(self, shard: Shard) -> Iterator[Any]:
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

    def _group(self, shard: Shard, group: int) -> list[Any]:
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
