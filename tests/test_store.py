"""The store: what comes out is what went in, whatever happens to the process, the files or the other writers."""

import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightning_vlmq.store import SCHEMA, TurnStore, keep_returns, relabel
from lightning_vlmq.turns import Episode, Observation, Turn


def png(value: int, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def episode(name: str, replies: int = 3, rewards: tuple[float, ...] = (), image: bytes = b"") -> Episode:
    rows = [
        Turn(
            env="e",
            episode=name,
            index=index,
            observation=Observation(text=f"{name} {index}", step=index, images=(image,) if image else ()),
            reply=f"reply {index}" if index < replies else None,
            env_reward=rewards[index] if index < len(rewards) else 0.0,
        )
        for index in range(replies + 1)
    ]
    return Episode(tuple(rows))


def fill(folder: Path, shards: int = 3) -> list[Episode]:
    """Shards of one episode of four rows."""
    episodes = [episode(f"e{number}") for number in range(shards)]
    with TurnStore(folder, shard_rows=1) as store:
        for each in episodes:
            store.append(each)
    return episodes


# --- round trips


def test_every_field_comes_back(tmp_path: Path) -> None:
    first = Turn(
        env="карты",
        episode="ü/1 🂡",
        index=0,
        observation=Observation(
            objective="objective\nof two lines",
            actions="hit, stand",
            example='"action": "hit"',
            text="你好\x00\t",
            images=(png(1), b"", png(2)),
            summary="summary",
            error="error",
            step=7,
            step_limit=8,
            invalid_streak=1,
            invalid_limit=3,
        ),
        reply="",
        reply_ids=(5, 0, 2**31 - 1),
        tokenizer="t",
        cut=True,
        forced=4,
        action="hit",
        valid=True,
        reward=-0.1,
        env_reward=1e-300,
        terminated=True,
        truncated=True,
        goal=True,
        policy="p",
        seed=2**63 - 1,
        imitate=False,
        td=False,
        weight=0.25,
    )
    last = Turn(env="", episode=first.episode, index=1, observation=Observation())
    with TurnStore(tmp_path) as store:
        store.append(Episode((first, last)))
        assert (store[0], store[1]) == (first, last)
    again = TurnStore(tmp_path)
    assert len(again) == 2
    assert again[0] == first
    assert again[1] == last
    assert again[-1] == last
    assert again[1].reply is None
    assert again[1].observation.images == ()
    with pytest.raises(IndexError):
        again[2]


def random_episode(rng: random.Random, name: str) -> Episode:
    def text() -> str:
        alphabet = "aZ \n\"'\\{}é漢🙂\u0000\u2028"
        return "".join(rng.choice(alphabet) for _ in range(rng.choice((0, 1, 5, 60))))

    def flag() -> bool:
        return rng.random() < 0.5

    replies = rng.randrange(9)
    turns = []
    for index in range(replies + 1):
        observation = Observation(
            *(text() for _ in range(4)),
            images=tuple(rng.randbytes(rng.choice((0, 1, 3000))) for _ in range(rng.randrange(4))),
            summary=text(),
            error=text(),
            step=rng.randrange(99),
            step_limit=rng.randrange(99),
            invalid_streak=rng.randrange(9),
            invalid_limit=rng.randrange(9),
        )
        turns.append(
            Turn(
                *(text(), name, index, observation, text() if index < replies else None),
                *(tuple(rng.randrange(2**31) for _ in range(rng.randrange(5))), text(), flag(), rng.randrange(9)),
                *(text(), flag(), rng.gauss(0, 1e3), rng.random(), flag(), flag(), flag()),
                *(text(), rng.randrange(-(2**63), 2**63), flag(), flag(), rng.random()),
            )
        )
    return Episode(tuple(turns))


@pytest.mark.parametrize("seed", range(8))
def test_random_episodes_come_back(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    episodes = [random_episode(rng, f"{seed}/{number}") for number in range(30)]
    rows = [turn for each in episodes for turn in each.turns]
    store = TurnStore(tmp_path, shard_rows=rng.choice((1, 7, 50, 512)), cache_shards=1, cache_bytes=1)
    for number, each in enumerate(episodes):
        store.append(each)
        if rng.random() < 0.1:
            store.flush()
        if number % 10 == 9:  # written and buffered rows together
            assert list(store.episodes()) == episodes[: number + 1]
    store.flush()
    again = TurnStore(tmp_path, cache_bytes=rng.choice((0, 10**4, 10**8)))
    order = rng.sample(range(len(rows)), len(rows))
    assert [again[row] for row in order] == [rows[row] for row in order]
    assert list(again.episodes()) == episodes
    expected = [row for row, turn in enumerate(rows) if turn.reply is not None]
    assert again.samples.tolist() == store.samples.tolist() == expected
    assert all(rows[again.successor(row)].episode == rows[row].episode for row in expected)
    light = again.columns(["reward", "reply", "valid", "seed"])
    assert light["reward"].tolist() == [turn.reward for turn in rows]
    assert light["reply"].tolist() == [turn.reply for turn in rows]
    assert light["valid"].dtype == np.bool_
    assert light["seed"].dtype == np.int64


def test_numpy_values_are_taken(tmp_path: Path) -> None:
    base = episode("a", 1)
    first = replace(base.turns[0], reward=np.float64(0.5), valid=np.bool_(True), seed=np.int64(3))
    with TurnStore(tmp_path) as store:
        store.append(Episode((first, base.turns[1])))
    assert TurnStore(tmp_path)[0] == replace(base.turns[0], reward=0.5, valid=True, seed=3)


def test_rows_are_visible_before_they_are_written(tmp_path: Path) -> None:
    store = TurnStore(tmp_path / "new")
    assert len(store) == 0
    assert store.samples.tolist() == []
    assert store.columns(["reward"])["reward"].tolist() == []
    store.append(episode("a", 2))
    assert not (tmp_path / "new").exists()
    assert len(store) == 3
    assert store.samples.tolist() == [0, 1]
    assert store.columns(["index"])["index"].tolist() == [0, 1, 2]
    assert store.state() == {"schema_version": 1, "shards": [], "buffered": 3}
    store.flush()
    store.flush()
    assert store.state() == {"schema_version": 1, "shards": [["000000-0.parquet", 3]], "buffered": 0}
    assert store.samples.tolist() == [0, 1]
    assert [turn.index for turn in store] == [0, 1, 2]


def test_episodes_are_never_split(tmp_path: Path) -> None:
    with TurnStore(tmp_path, shard_rows=5) as store:
        for number in range(5):
            store.append(episode(f"e{number}", 2))
    assert [rows for _, rows in store.state()["shards"]] == [6, 6, 3]
    for path in tmp_path.glob("*.parquet"):
        index = pq.read_table(path, columns=["index"])["index"].to_pylist()
        assert index == [0, 1, 2] * (len(index) // 3)


def test_same_episodes_make_same_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


# --- what append refuses


def turns_with(base: Episode, row: int, **values: object) -> Episode:
    turns = list(base.turns)
    turns[row] = replace(turns[row], **values)  # type: ignore[arg-type]
    return Episode(tuple(turns))


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (Episode(), "without rows"),
        (turns_with(episode("a"), 1, episode="b"), "another episode"),
        (turns_with(episode("a"), 1, index=2), "indices must be 0 to 3"),
        (Episode(episode("a").turns[1:]), "indices"),
        (turns_with(episode("a"), 3, reply="more"), "last row"),
        (turns_with(episode("a"), 1, reply=None), "last row"),
        (turns_with(episode("a"), 1, reward=float("nan")), "'reward' is not finite"),
        (turns_with(episode("a"), 1, policy=None), "'policy' is None"),
        (turns_with(episode("a"), 1, reply="\ud800"), "'reply' cannot be stored"),
        (turns_with(episode("a"), 1, seed=2**63), "'seed' cannot be stored"),
        (turns_with(episode("a"), 1, valid="yes"), "'valid' cannot be stored"),
    ],
)
def test_append_refuses(tmp_path: Path, broken: Episode, match: str) -> None:
    store = TurnStore(tmp_path)
    with pytest.raises(ValueError, match=match) as caught:
        store.append(broken)
    assert "\n" not in str(caught.value)
    assert len(store) == 0
    store.append(episode("a"))  # the refused one left nothing behind


def test_append_refuses_a_known_episode(tmp_path: Path) -> None:
    fill(tmp_path)
    store = TurnStore(tmp_path)
    with pytest.raises(ValueError, match=r"'e1' is in .* already"):
        store.append(episode("e1"))
    store.append(episode("new"))
    with pytest.raises(ValueError, match=r"'new' is in .* already"):
        store.append(episode("new"))


@pytest.mark.parametrize(("options", "match"), [({"writer": "a-b"}, "writer"), ({"shard_rows": 0}, "shard_rows")])
def test_bad_options(tmp_path: Path, options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TurnStore(tmp_path, **options)  # type: ignore[arg-type]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is not a folder"):
        TurnStore(tmp_path / "file")


def test_columns_refuses_images_and_unknown_names(tmp_path: Path) -> None:
    for name in ("images", "rewards"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be read as a whole"):
            TurnStore(tmp_path).columns([name])


# --- other readers


def test_opens_in_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    with TurnStore(tmp_path / "store", shard_rows=4) as store:
        for number in range(3):
            store.append(episode(f"e{number}", 3, image=png(10 * number)))
    loaded = datasets.load_dataset(
        "parquet", data_files=f"{tmp_path}/store/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.column_names == SCHEMA.names
    assert loaded.features["images"] == datasets.List(datasets.Image())
    assert loaded.features["reward"] == datasets.Value("float64")
    assert len(loaded) == 12
    assert loaded[8]["images"][0].getpixel((0, 0)) == (20, 2, 3)
    assert loaded[3]["reply"] is None
    assert [row["text"] for row in loaded] == [turn.observation.text for turn in store]


def test_spawned_worker_gets_a_copy(tmp_path: Path) -> None:
    fill(tmp_path)
    store = TurnStore(tmp_path)
    first = store[0]
    assert pickle.loads(pickle.dumps(store))[0] == first


# --- missing, damaged and foreign files


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
    assert store.state()["shards"][-1] == ["000004-0.parquet", 4]
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
    [(b"2", "has schema version 2, this lightning-vlmq reads 1"), (None, "has no schema version")],
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
    (tmp_path / "manifest.json").write_text('{"schema_version": 2, "shards": []}')
    with pytest.raises(ValueError, match=r"manifest.json has schema version 2"):
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


# --- processes

WRITER = textwrap.dedent(
    """
    import sys
    import pyarrow
    from lightning_vlmq.store import TurnStore
    from lightning_vlmq.turns import Episode, Observation, Turn

    pyarrow.array(["imports pandas, where there is one"])
    folder, writer, run, number = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    store = TurnStore(folder, shard_rows=12, writer=writer)
    print("ready", flush=True)
    for count in range(number):
        name = f"{writer}/{run}/{count}"
        rows = [
            Turn("e", name, i, Observation(images=(bytes(2000),)), reply="r" if i < 3 else None, seed=count)
            for i in range(4)
        ]
        store.append(Episode(tuple(rows)))
        print(store.state()["buffered"], flush=True)
    store.flush()
    """
)


def start_writer(folder: Path, writer: str, run: int, number: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(folder), writer, str(run), str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_writers_lose_only_unwritten_rows(tmp_path: Path) -> None:
    rng = random.Random(0)
    promised = 0
    for run in range(6):
        process = start_writer(tmp_path, "0", run, 10**6)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        buffered = [int(line) for line in process.stdout.read().splitlines() if line]
        process.stdout.close()
        process.wait()
        # Of what the writer reported, only the rows still in its buffer may be lost.
        promised += 4 * len(buffered) - buffered[-1] if buffered else 0
        store = TurnStore(tmp_path)
        assert len(store) >= promised
        assert store.unpaired == 0
        assert len(store.samples) == len(store) * 3 // 4
        episodes = list(store.episodes())
        assert len(episodes) * 4 == len(store)
        assert all(len(each) == 3 and len(each.turns[0].observation.images[0]) == 2000 for each in episodes)
        promised = len(store)
    assert promised > 0
    print("P", promised)
    with TurnStore(tmp_path) as store:  # a killed process left no lock
        store.append(episode("after"))
    assert len(TurnStore(tmp_path)) == promised + 4


def test_two_writers_at_once(tmp_path: Path) -> None:
    reader = TurnStore(tmp_path)
    processes = [start_writer(tmp_path, writer, 0, 40) for writer in "ab"]
    seen: list[tuple[str, int]] = []
    while any(process.poll() is None for process in processes):
        reader.reload()
        rows = list(zip(*reader.columns(["episode", "index"]).values(), strict=True))
        assert rows[: len(seen)] == seen  # rows keep their numbers while others write
        seen = rows
        time.sleep(0.01)
    for process in processes:
        assert process.communicate()[0] is not None
        assert process.returncode == 0
    reader.reload()
    assert len(reader) == 2 * 40 * 4
    assert len({each.turns[0].episode for each in reader.episodes()}) == 80
    assert reader.state() == TurnStore(tmp_path).state()
    names = [name for name, _ in reader.state()["shards"]]
    assert [int(name.split("-")[0]) for name in names] == list(range(len(names)))
    assert {name.split("-")[1] for name in names} == {"a.parquet", "b.parquet"}
    assert [entry["name"] for entry in json.loads((tmp_path / "manifest.json").read_text())["shards"]] == names


def test_flush_takes_in_shards_of_others_first(tmp_path: Path) -> None:
    one, two = TurnStore(tmp_path, writer="a"), TurnStore(tmp_path, writer="b")
    one.append(episode("one"))
    two.append(episode("two"))
    one.flush()
    two.flush()
    assert [turn.episode for turn in two] == ["one"] * 4 + ["two"] * 4
    with pytest.raises(ValueError, match="'one' is in"):
        two.append(episode("one"))
    assert len(one) == 4
    one.reload()
    assert one.state() == two.state()


# --- resources


MEMORY = textwrap.dedent(
    """
    import sys
    from lightning_vlmq.store import TurnStore

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * 4096

    store = TurnStore(sys.argv[1], cache_shards=2, cache_bytes=8 << 20)
    store[0], store.samples
    before = resident()
    for turn in store:
        pass
    print(resident() - before)
    """
)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """3,000 rows with 60 MB of images: cache 8 MB, two mapped shards of 10 MB, and room for the allocator."""
    rng = random.Random(0)
    with TurnStore(tmp_path) as store:
        for number in range(750):
            turns = episode(f"e{number}").turns
            images = [replace(turn.observation, images=(rng.randbytes(20_000),)) for turn in turns]
            store.append(
                Episode(tuple(replace(turn, observation=seen) for turn, seen in zip(turns, images, strict=True)))
            )
    assert sum(path.stat().st_size for path in tmp_path.glob("*.parquet")) > 60e6
    grown = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    print("grown", grown.stdout)
    assert int(grown.stdout) < 30e6


def test_random_access_is_fast(tmp_path: Path) -> None:
    """10,000 rows with images of 2.2 KB: about .7 ms a row from the disk; the bound allows for a busy machine."""
    image = random.Random(0).randbytes(2200)
    with TurnStore(tmp_path) as store:
        for number in range(2500):
            store.append(episode(f"e{number}", image=image))
    store = TurnStore(tmp_path, cache_bytes=1)  # every row from the disk
    rows = random.Random(1).sample(range(len(store)), 200)
    times = []
    for row in rows:
        start = time.perf_counter()
        store[row]
        times.append(time.perf_counter() - start)
    assert sorted(times)[100] < 5e-3


# --- masks


def test_relabel_keeps_returns(tmp_path: Path) -> None:
    with TurnStore(tmp_path / "all") as store:
        for name, rewards in {"bad": (-1.0,), "good": (0.0, 1.0), "even": (1.0, -1.0), "best": (1.0, 1.0)}.items():
            store.append(episode(name, rewards=rewards))
        for number, kept in enumerate([{"best", "good"}, {"best"}, {"best", "good", "even"}]):
            choice = keep_returns(store, **[{"minimum": 0.5}, {"fraction": 0.25}, {"fraction": 0.6}][number])
            copy = relabel(store, tmp_path / str(number), choice, shard_rows=4)
            assert len(copy.state()["shards"]) == 4
            assert {turn.episode for turn in TurnStore(tmp_path / str(number)) if turn.imitate} == kept
            assert [replace(turn, imitate=True) for turn in copy] == list(store)


def test_keep_returns_leaves_masked_turns_masked(tmp_path: Path) -> None:
    store = TurnStore(tmp_path)
    store.append(turns_with(episode("a", rewards=(1.0,)), 1, imitate=False))
    choice = keep_returns(store, minimum=0)
    assert [choice(turn).imitate for turn in store] == [True, False, True, True]


def test_relabel_refuses(tmp_path: Path) -> None:
    fill(tmp_path / "all")
    store = TurnStore(tmp_path / "all")
    with pytest.raises(ValueError, match="holds turns already"):
        relabel(store, tmp_path / "all", lambda turn: turn)
    with pytest.raises(ValueError, match="'e0', turn 0: relabel changes only"):
        relabel(store, tmp_path / "copy", lambda turn: replace(turn, reward=5.0))
    with pytest.raises(ValueError, match="either minimum or fraction"):
        keep_returns(store)
    with pytest.raises(ValueError, match="fraction 2 must be"):
        keep_returns(store, fraction=2)
