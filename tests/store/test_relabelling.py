"""Copies of a store with other masks and weights."""

from dataclasses import replace
from pathlib import Path

import pytest
from store_rows import episode, fill, turns_with

from lightning_vlmq.relabelling import keep_returns, relabel
from lightning_vlmq.store import TurnStore


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
