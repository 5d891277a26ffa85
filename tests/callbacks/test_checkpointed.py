"""Which own turns a run's checkpoints name."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_vlmq.callbacks.checkpointed import CheckpointedStores


def _save(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    store = {"shards": [[name, 3, 7] for name in names]}
    state = {"ranks": [{"store": store, "open": []}]}
    torch.save({"state_dict": {"w": torch.ones(3)}, "callbacks": {"Collector": state}}, path)


def _trainer(*folders: Path | str, came_from: Path | None = None) -> Any:
    callbacks = [SimpleNamespace(dirpath=str(folder)) for folder in folders]
    return SimpleNamespace(
        checkpoint_callbacks=[*callbacks, SimpleNamespace(dirpath=None)],
        ckpt_path=came_from,
        is_global_zero=True,
        global_rank=0,
    )


def _named(stores: CheckpointedStores, trainer: Any) -> list[list[str]]:
    found = stores(trainer)
    assert found is not None
    return sorted([name for name, *_ in state["shards"]] for state in found)


def test_every_checkpoint_that_may_be_resumed_from_counts(tmp_path: Path) -> None:
    stores, trainer = (
        CheckpointedStores("Collector"),
        _trainer(tmp_path / "a", tmp_path / "b", came_from=tmp_path / "c"),
    )
    assert _named(stores, trainer) == []
    _save(tmp_path / "a" / "best.ckpt", "0")
    _save(tmp_path / "b" / "epoch=1-eval" / "score=2.ckpt", "1", "2")  # as metrics' names with a slash make it
    _save(tmp_path / "c", "3")
    _save(tmp_path / "elsewhere" / "x.ckpt", "4")
    torch.save({"state_dict": {}}, tmp_path / "a" / "offline.ckpt")
    assert _named(stores, trainer) == [["0"], ["1", "2"], ["3"]]
    _save(tmp_path / "a" / "best.ckpt", "5")
    (tmp_path / "c").unlink()
    assert _named(stores, trainer) == [["1", "2"], ["5"]]


def test_what_cannot_be_looked_into_is_said(tmp_path: Path) -> None:
    _save(tmp_path / "good.ckpt", "0")
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    with pytest.warns(UserWarning, match="evicted turns are kept, as checkpoints that may name them cannot be read"):
        assert CheckpointedStores("Collector")(_trainer(tmp_path)) is None
    with pytest.warns(UserWarning, match="s3://bucket/run is not a folder of this file system"):
        assert CheckpointedStores("Collector")(_trainer("s3://bucket/run")) is None
