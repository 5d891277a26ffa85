"""The store: missing, damaged and foreign files are named, and the others still load."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_rows import episode, fill

from lightning_vlmq.store import TurnStore


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged .*bytes instead of"),
    "emptied": (lambda path: path.write_bytes(b""), "damaged"),
    "flipped": (lambda path: flip(path, 500), "damaged .*checksum"),
    "flipped end": (lambda path: flip(path, -20), "damaged .*checksum"),
    "deleted": (lambda path: path.unlink(), "missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    episodes = fill(tmp_path, 4)
    spoil, reason = DAMAGES[damage]
    spoil(tmp_path / "000001-0.parquet")
    with pytest.raises(ValueError, match=f"000001-0.parquet is {reason}.*skip_damaged: true to load the other 3") as e:
        TurnStore(tmp_path)
    assert "\n" not in str(e.value)
    with pytest.warns(UserWarning, match="000001-0.parquet"):
        store = TurnStore(tmp_path, skip_damaged=True, shard_rows=1)
    assert list(store.episodes()) == [episodes[0], *episodes[2:]]
    assert store.samples.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert len(store.skipped) == 1
    store.append(episode("more"))  # writing goes on, and the loss is not forgotten
    assert store.state()["shards"][-1][:2] == ["000004-0.parquet", 4]
    with pytest.raises(ValueError, match=f"000001-0.parquet is {reason}"):
        TurnStore(tmp_path)
    (tmp_path / "000001-0.parquet").unlink(missing_ok=True)  # the remedy in the message
    (tmp_path / "manifest.json").unlink()
    assert len(TurnStore(tmp_path)) == 16


def test_truncated_shard_without_manifest(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "manifest.json").unlink()
    path = tmp_path / "000002-0.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"000002-0.parquet is damaged .*Parquet.*other 2 shards"):
        TurnStore(tmp_path)


def test_several_damaged_shards_in_one_line(tmp_path: Path) -> None:
    fill(tmp_path, 4)
    for name in ("000000-0.parquet", "000003-0.parquet"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"000000-0.parquet is missing; .*000003-0.parquet is missing; .*other 2"):
        TurnStore(tmp_path)


def test_shard_lost_while_open(tmp_path: Path) -> None:
    fill(tmp_path)
    store = TurnStore(tmp_path)
    (tmp_path / "000000-0.parquet").unlink()
    with pytest.raises(ValueError, match=r"000000-0.parquet cannot be read any more"):
        store[0]


def test_unlisted_shard_is_adopted_and_listed_by_the_next_writer(tmp_path: Path) -> None:
    episodes = fill(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["shards"].pop()  # as after a crash between rename and manifest
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / ".000003-0.parquet.tmp").write_bytes(b"PAR1half")
    store = TurnStore(tmp_path)
    assert list(store.episodes()) == episodes
    with store:
        store.append(episode("more"))
    assert not list(tmp_path.glob(".*.tmp"))
    assert len(json.loads((tmp_path / "manifest.json").read_text())["shards"]) == 4


def test_damaged_manifest_is_named(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_')
    with pytest.raises(ValueError, match=r"manifest.json is damaged; delete it"):
        TurnStore(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert len(TurnStore(tmp_path)) == 12


@pytest.mark.parametrize(
    ("version", "match"),
    [(b"1", "has schema version 1, this lightning-vlmq reads 2"), (None, "has no schema version")],
)
def test_other_version_is_refused_also_with_skip_damaged(tmp_path: Path, version: bytes | None, match: str) -> None:
    fill(tmp_path)
    path = tmp_path / "000003-0.parquet"
    table = pq.read_table(tmp_path / "000000-0.parquet")
    metadata = {key: value for key, value in table.schema.metadata.items() if key != b"lightning_vlmq_schema"}
    metadata |= {b"lightning_vlmq_schema": version} if version else {}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    for skip in (False, True):
        with pytest.raises(ValueError, match=f"000003-0.parquet {match}"):
            TurnStore(tmp_path, skip_damaged=skip)


def test_newer_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"schema_version": 3, "shards": []}')
    with pytest.raises(ValueError, match=r"manifest.json has schema version 3"):
        TurnStore(tmp_path)


def test_other_columns_are_named(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    table = pq.read_table(tmp_path / "000000-0.parquet")
    pq.write_table(table.drop_columns(["reward"]), tmp_path / "000001-0.parquet")
    with pytest.raises(ValueError, match=r"000001-0.parquet has other columns .*\['reward'\]"):
        TurnStore(tmp_path)


def test_misnamed_file_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / "mine.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"mine.parquet is not named like 000000-0.parquet"):
        TurnStore(tmp_path)


def test_rows_without_successor_are_not_sampled(tmp_path: Path) -> None:
    """A shard from which rows 2 (inside e0), 7 (last of e1) and 8 (first of e2) were taken."""
    with TurnStore(tmp_path / "source") as store:
        for number in range(4):
            store.append(episode(f"e{number}"))
    table = pq.read_table(tmp_path / "source" / "000000-0.parquet")
    kept = [row for row in range(16) if row not in (2, 7, 8)]
    (tmp_path / "holes").mkdir()
    pq.write_table(table.take(pa.array(kept)), tmp_path / "holes" / "000000-0.parquet")
    holes = TurnStore(tmp_path / "holes")
    names = [(holes[row].episode, holes[row].index) for row in holes.samples]
    assert names == [
        *[("e0", 0)],  # e0's turn 1 has lost its successor
        *[("e1", 0), ("e1", 1)],  # so has e1's turn 2
        *[("e2", 1), ("e2", 2)],
        *[("e3", 0), ("e3", 1), ("e3", 2)],
    ]
    assert holes.unpaired == 2
    assert [each.turns[0].episode for each in holes.episodes()] == ["e3"]
