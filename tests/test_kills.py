"""Runs that are killed at random instants."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import SMALL, shrunk

from lightning_vlmq import TurnStore
from scripts.kills import _damage, _differences, kill_often


@pytest.mark.parametrize("capacity", [50_000, 60])
def test_offline_to_online_survives_kills(tiny_folder: Path, tmp_path: Path, capacity: int) -> None:
    path = shrunk("numberline_online.yaml", tiny_folder, tmp_path)
    config = yaml.safe_load(path.read_text())
    (collector,) = (c for c in config["trainer"]["callbacks"] if c["class_path"].endswith("OnlineCollector"))
    collector["init_args"] |= {"environments": 4, "steps": 11, "start_epoch": 1}
    path.write_text(yaml.safe_dump(config))
    arguments = [f"--config={path}", *SMALL[1:], "--trainer.max_epochs=40", f"--data.capacity={capacity}"]
    found = kill_often(arguments, tmp_path / "run", kills=2, longest=1.5)
    log = (tmp_path / "run/kills.log").read_text()
    assert (found.failed, found.damaged, found.wrong, found.ended) == (0, [], [], True), log[-3000:]
    assert found.resumed == 2
    assert sum(found.fell.values()) == found.kills == len(found.steps) >= 3  # the first one had nothing to go on from
    assert found.steps == sorted(found.steps)
    assert json.loads((tmp_path / "run" / "kills.json").read_text()) == vars(found)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 2 * 40
    episodes = list(TurnStore(tmp_path / "run" / "experience" / "rank-0").episodes())
    assert all(len({turn.seed for turn in episode.turns}) == 1 for episode in episodes)
    if capacity > 39 * 4 * 11:
        # whatever was killed: each of the 39 online epochs has left its turns, once
        assert results["own play"]["turns"] == 39 * 4 * 11


def test_what_is_gone_or_too_much_is_found() -> None:
    shards = [["0", 10, 5], ["1", 10, 6], ["2", 10, 7]]  # name, rows, checksum
    collector = {"ranks": [{"store": {"shards": shards}, "open": []}]}
    checkpoint = {"global_step": 4, "callbacks": {"OnlineCollector": collector}}

    def restored(shards: list[Any], buffered: int = 0, step: int = 4) -> dict[str, Any]:
        return {"step": step, "store": {"shards": shards, "buffered": buffered}}

    assert _differences(checkpoint, restored(shards)) == []
    assert _differences(checkpoint, restored(shards, step=2)) == ["step 2, not 4"]
    assert _differences(checkpoint, restored(shards[:2])) == ["step 4: 2 is gone", "step 4: 20 rows, not 30"]
    assert _differences(checkpoint, restored([*shards, ["3", 10, 8]])) == ["step 4: 40 rows, not 30"]
    assert _differences(checkpoint, restored(shards, buffered=1)) == ["step 4: 31 rows, not 30"]


def test_turns_that_a_checkpoint_names_are_missed_wherever_they_are_kept(tmp_path: Path) -> None:
    store, crc = tmp_path / "experience" / "rank-0", zlib.crc32(b"turns")
    (store / "evicted").mkdir(parents=True)
    (tmp_path / "checkpoints").mkdir()
    state = {"shards": [["000000-0.parquet", 10, crc], ["000001-0.parquet", 10, crc]]}
    collector = {"ranks": [{"store": state, "open": []}]}
    torch.save({"callbacks": {"OnlineCollector": collector}}, tmp_path / "checkpoints" / "last.ckpt")
    (store / "evicted" / f"000000-0-{crc:08x}.parquet").write_bytes(b"turns")
    assert _damage(tmp_path) == ["rank 0: 000001-0.parquet is gone"]
    (store / "000001-0.parquet").write_bytes(b"other turns")
    assert _damage(tmp_path) == ["rank 0: 000001-0.parquet is gone"]
    (store / "000001-0.parquet").write_bytes(b"turns")
    assert _damage(tmp_path) == []
