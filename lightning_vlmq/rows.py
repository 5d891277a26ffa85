"""Turns as rows of an Arrow table: schema, conversion both ways, and which rows make an episode."""

import base64
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lightning_vlmq.turns import SCHEMA_VERSION, Observation, Turn

__all__ = ["SCHEMA", "VERSION_KEY", "RowIndex", "from_text", "index_rows", "to_table", "to_text", "to_turn"]

VERSION_KEY = b"lightning_vlmq_schema"
_TURN_FIELDS = tuple(field for field in fields(Turn) if field.name != "observation")
_OBSERVATION_FIELDS = fields(Observation)

# Annotation in turns.py -> Arrow type and the feature by which Hugging Face datasets shows it.
_TYPES: dict[Any, tuple[Any, dict[str, Any]]] = {
    str: (pa.string(), {"dtype": "string", "_type": "Value"}),
    str | None: (pa.string(), {"dtype": "string", "_type": "Value"}),
    int: (pa.int64(), {"dtype": "int64", "_type": "Value"}),
    float: (pa.float64(), {"dtype": "float64", "_type": "Value"}),
    bool: (pa.bool_(), {"dtype": "bool", "_type": "Value"}),
    tuple[int, ...]: (pa.list_(pa.int32()), {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}),
    tuple[float, ...]: (pa.list_(pa.float32()), {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"}),
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
        VERSION_KEY: str(SCHEMA_VERSION).encode(),
        b"huggingface": json.dumps({"info": {"features": features}}).encode(),
    }
    return pa.schema([(field.name, _TYPES[field.type][0]) for field in every], metadata=metadata)


SCHEMA = _schema()
"""Arrow schema of a shard, with the schema version and the Hugging Face features in its metadata."""


def to_table(turns: Sequence[Turn]) -> Any:
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
        if array.null_count and name != "reply":
            raise ValueError(f"episode {turns[0].episode!r}: column {name!r} is None; give it a value")
        numbers = itertools.chain.from_iterable(values) if name == "log_probs" else values
        if (pa.types.is_floating(array.type) or name == "log_probs") and not all(map(math.isfinite, numbers)):
            raise ValueError(f"episode {turns[0].episode!r}: column {name!r} is not finite; turns hold finite numbers")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def to_text(turns: Sequence[Turn]) -> str:
    """Turns as text that a checkpoint can hold."""
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(turns), sink)
    return base64.b64encode(sink.getvalue()).decode()


def from_text(text: str) -> list[Turn]:
    """Turns of :func:`to_text`."""
    table = pq.read_table(pa.BufferReader(base64.b64decode(text)))
    return [to_turn(table.columns, row) for row in range(len(table))]


def to_turn(columns: Sequence[Any], row: int) -> Turn:
    """Turn of one row from Arrow arrays in the order of ``SCHEMA``."""
    values = {name: column[row].as_py() for name, column in zip(SCHEMA.names, columns, strict=True)}
    values["images"] = tuple(image["bytes"] for image in values["images"])
    values["reply_ids"], values["log_probs"] = tuple(values["reply_ids"]), tuple(values["log_probs"])
    observation = Observation(**{field.name: values[field.name] for field in _OBSERVATION_FIELDS})
    return Turn(observation=observation, **{field.name: values[field.name] for field in _TURN_FIELDS})


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Rows of a shard that may be sampled, rows that may not, and the episodes as (start, stop)."""

    samples: npt.NDArray[np.int64]
    unpaired: int
    ids: tuple[str, ...]
    whole: tuple[tuple[int, int], ...]


def index_rows(table: Any) -> RowIndex:
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
    return RowIndex(samples, int(replied.sum()) - len(samples), tuple(episode[starts].tolist()), whole)
