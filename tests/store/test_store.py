"""The store: what comes out is what went in."""

import pickle
import random
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from store_rows import episode, fill, png, turns_with

from lightning_vlmq.store import SCHEMA, TurnStore
from lightning_vlmq.turns import Episode, Observation, Turn

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
        log_probs=(-0.5, -3.25),
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
                *(tuple(rng.randrange(2**31) for _ in range(rng.randrange(5))), text()),
                *(tuple(-rng.randrange(999) / 64 for _ in range(rng.randrange(5))), flag(), rng.randrange(9)),
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
    assert store.state() == {"schema_version": 2, "shards": [], "buffered": 3}
    store.flush()
    store.flush()
    crc = zlib.crc32((tmp_path / "new" / "000000-0.parquet").read_bytes())
    assert store.state() == {"schema_version": 2, "shards": [["000000-0.parquet", 3, crc]], "buffered": 0}
    assert store.samples.tolist() == [0, 1]
    assert [turn.index for turn in store] == [0, 1, 2]


def test_episodes_are_never_split(tmp_path: Path) -> None:
    with TurnStore(tmp_path, shard_rows=5) as store:
        for number in range(5):
            store.append(episode(f"e{number}", 2))
    assert [rows for _, rows, _ in store.state()["shards"]] == [6, 6, 3]
    for path in tmp_path.glob("*.parquet"):
        index = pq.read_table(path, columns=["index"])["index"].to_pylist()
        assert index == [0, 1, 2] * (len(index) // 3)


def test_same_episodes_make_same_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


# --- what append refuses


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
        (turns_with(episode("a"), 1, log_probs=(-1.0, float("-inf"))), "'log_probs' is not finite"),
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
