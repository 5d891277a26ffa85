"""The store of an agent's own turns: bounded, and able to go back."""

from pathlib import Path

import pytest
from store_rows import episode

from lightning_vlmq.experience import ExperienceStore
from lightning_vlmq.store import TurnStore


def _names(store: TurnStore) -> list[str]:
    return [each.turns[0].episode for each in store.episodes()]


def _three_shards(folder: Path) -> ExperienceStore:
    """A store of e0, e1 and e2, a shard each."""
    store = ExperienceStore(folder)
    for number in range(3):
        store.append(episode(f"e{number}"))
        store.flush()
    return store


def test_the_oldest_episodes_go_first_and_whole(tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path, capacity=30)  # turns: shards of one row, so of one episode of 3 turns, 4 rows
    for number in range(15):
        store.append(episode(f"e{number}"))
    assert store.evict() == 20
    assert _names(store) == [f"e{number}" for number in range(5, 15)]
    assert store[0].episode == "e5"
    assert [store[int(row)].index for row in store.samples[:4]] == [0, 1, 2, 0]
    assert store.columns(["episode"])["episode"][0] == "e5"
    assert store.evict() == 0
    store.append(episode("e0"))  # forgotten, so new
    again = TurnStore(tmp_path)  # opens without a word of damage
    assert _names(again)[0] == "e5"
    assert sorted(path.name for path in tmp_path.glob("*.parquet"))[0] == "000005-0.parquet"


def test_the_newest_shard_stays(tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path, capacity=3)
    store.append(episode("long", replies=9))
    assert store.evict() == 0
    assert len(store) == 10
    with pytest.raises(ValueError, match="capacity must be a number of turns or 0"):
        ExperienceStore(tmp_path / "other", capacity=-1)


def test_what_a_checkpoint_names_comes_back_though_evicted(tmp_path: Path) -> None:
    """The next epoch's play, then a kill before the next checkpoint."""
    store = ExperienceStore(tmp_path, capacity=30)
    for number in range(12):
        store.append(episode(f"e{number}"))
    store.evict()
    state = store.state()
    store.delete_evicted([state])
    for number in range(12, 26):
        store.append(episode(f"e{number}"))
    store.evict()
    store.delete_evicted([state])
    assert _names(store) == [f"e{number}" for number in range(16, 26)]
    again = ExperienceStore(tmp_path, capacity=30)  # what a new process finds
    assert again.restore(state) == 40
    assert _names(again) == [f"e{number}" for number in range(2, 12)]
    assert again.state()["shards"] == state["shards"]
    assert again.restore(state) == 0  # killed once more


def test_evicted_shards_are_deleted_when_no_checkpoint_names_them(tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path, capacity=30)
    states = []
    for epoch in range(5):
        for number in range(10):
            store.append(episode(f"{epoch}-{number}"))
        store.evict()
        store.delete_evicted(states[-1:])
        states.append(store.state())
        # what the checkpoint before names, and nothing older
        assert len(list(tmp_path.rglob("*.parquet"))) == (20 if epoch else 10)
    with pytest.warns(UserWarning, match="10 of 10 shards of the checkpoint are gone"):
        store.restore(states[2])


def test_a_store_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    store = ExperienceStore(tmp_path, capacity=30)
    for number in range(4):
        store.append(episode(f"e{number}"))
    state = store.state()
    for number in range(4, 14):
        store.append(episode(f"e{number}"))
    store.evict()  # e0 to e3, which the checkpoint knew
    store.delete_evicted([])
    store.append(episode("e14"))
    again = ExperienceStore(tmp_path, capacity=30)  # what a new process finds
    with pytest.warns(UserWarning, match="4 of 4 shards of the checkpoint are gone"):
        assert again.restore(state) == 44
    assert _names(again) == []
    for number in range(4, 6):
        again.append(episode(f"o{number}"))
    assert _names(again) == ["o4", "o5"]
    assert [again[int(row)].observation.text for row in again.samples] == [
        f"o{number} {index}" for number in (4, 5) for index in range(3)
    ]
    with pytest.warns(UserWarning, match="are gone"):
        assert again.restore(state) == 8  # the same names as before, set aside beside them
    assert len(list((tmp_path / "set_aside").iterdir())) == 13
    assert len(TurnStore(tmp_path)) == 0


def test_what_the_checkpoint_names_stays(tmp_path: Path) -> None:
    store = _three_shards(tmp_path)
    state = store.state()
    store.append(episode("e3"))
    store.flush()
    assert store.restore(state) == 4
    assert _names(store) == ["e0", "e1", "e2"]
    assert store.restore(state) == 0
    store.append(episode("e3"))
    assert _names(TurnStore(tmp_path)) == ["e0", "e1", "e2"]
    store.flush()
    assert _names(TurnStore(tmp_path)) == ["e0", "e1", "e2", "e3"]


def test_what_was_set_aside_by_mistake_comes_back(tmp_path: Path) -> None:
    store = _three_shards(tmp_path)
    state = store.state()
    afresh = ExperienceStore(tmp_path)  # a fit that was not told to resume
    assert afresh.restore({"shards": []}) == 12
    afresh.append(episode("other"))
    afresh.flush()
    resumed = ExperienceStore(tmp_path)
    assert resumed.restore(state) == 4
    assert _names(resumed) == ["e0", "e1", "e2"]
    assert [resumed[int(row)].episode for row in resumed.samples[::3]] == ["e0", "e1", "e2"]
    assert _names(TurnStore(tmp_path)) == ["e0", "e1", "e2"]
