"""The agent collects while it learns: what is stored, when, and what a resumed run finds."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow.parquet as pq
import pytest
from flaky_env import Flaky
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from lightning_vlmq import (
    VLM,
    VLMQ,
    AgentEnv,
    Demonstrations,
    OfflineToOnline,
    OnlineCollector,
    Schedule,
    TargetCriticEMA,
    TurnStore,
    shards,
)
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.callbacks import player
from lightning_vlmq.envs import NumberLine, WorkerEnv
from lightning_vlmq.policy import VLMPolicy
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.rows import to_turn
from lightning_vlmq.turns import Turn

LR = {"lr": 1e-3, "critic_lr": 1e-3, "warmup_steps": 2, "critic_warmup_steps": 2}


def _data(folder: Path, **options: Any) -> OfflineToOnline:
    settings: dict[str, Any] = {
        "folder": str(folder / "data"),
        "environment": AgentEnv(NumberLine()),
        "turns": 0,
        "batch_size": 4,
        "batches_per_epoch": 3,
        "validation_batches": 1,
        "max_reply_tokens": 6,
        "seed": 3,
    }
    return OfflineToOnline(**settings | options)


def _trainer(folder: Path, epochs: int, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "max_epochs": epochs,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(callbacks=[TargetCriticEMA(), *callbacks], **settings | options)


class _Note(L.Callback):
    """Notes after every batch how many own turns there are, and what the collector logged."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.epsilon: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: TokenBatch, number: int) -> None:
        self.stored.append(len(trainer.datamodule.experience.samples))  # type: ignore[attr-defined]
        self.epsilon.append(next(c.epsilon for c in trainer.callbacks if isinstance(c, OnlineCollector)))  # type: ignore[attr-defined]


def _episodes(folder: Path) -> list[Any]:
    return list(TurnStore(folder / "experience" / "rank-0").episodes())


def test_training_begins_with_nothing_and_sees_each_epoch_s_turns(vlm: VLM, tmp_path: Path) -> None:
    note = _Note()
    collector = OnlineCollector(environments=4, steps=12, epsilon=1.0)
    trainer = _trainer(tmp_path, 3, [collector, note])
    trainer.fit(VLMQ(vlm, **LR), _data(tmp_path))
    assert len(set(note.stored[:3])) == 1 <= note.stored[0] < note.stored[3] < note.stored[6]
    episodes = _episodes(tmp_path)
    turns = sum(len(episode) for episode in episodes)
    # nothing that was played is lost: what is open at the end is stored as truncated
    assert turns == 3 * 4 * 12
    assert {turn.policy for episode in episodes for turn in episode.turns[:-1]} == {"random"}
    assert len({episode.turns[0].seed for episode in episodes}) == len(episodes)
    cut = [episode for episode in episodes if episode.turns[-2].truncated]
    assert len(cut) <= 4
    assert all(episode.turns[-2].terminated for episode in episodes if episode not in cut)
    assert trainer.callback_metrics["collect/syntax_accuracy"] == 1.0
    assert trainer.callback_metrics["collect/turns"] == 48.0


@pytest.mark.filterwarnings("ignore:environment .*started anew")
def test_environments_that_fail_are_counted_and_training_goes_on(vlm: VLM, tmp_path: Path) -> None:
    """Every episode that comes to a third step fails there."""
    environment = WorkerEnv(Flaky({"*:3": "die"}), workers=2)
    trainer = _trainer(tmp_path, 2, [OnlineCollector(environments=2, steps=6, epsilon=1.0)])
    trainer.fit(VLMQ(vlm, **LR), _data(tmp_path, environment=environment))
    episodes = _episodes(tmp_path)
    assert trainer.global_step == 6
    assert {len(episode) for episode in episodes} <= {1, 2}
    assert 1 <= trainer.callback_metrics["collect/failures"] <= 4


def test_demonstrations_first_then_own_turns(vlm: VLM, tmp_path: Path) -> None:
    data = _data(tmp_path, turns=40, mixture={"random": 1.0}, parallel=8, own_share=0.75, window=3)
    _trainer(tmp_path, 2, [OnlineCollector(environments=4, steps=4, start_epoch=1, epsilon=0.5), _Note()]).fit(
        VLMQ(vlm, **LR), data
    )
    drawn: list[str] = []
    for number in range(200):
        chosen = data._chosen(data.training_rows, 0, number, np.random.default_rng(number))
        drawn += [store.folder.name for store, _, turns in chosen for _ in range(turns)]
    share = drawn.count("rank-0") / len(drawn)
    assert abs(share - 0.75) < 0.1  # 800 turns in some 400 windows: deviation .02


def test_a_minimum_is_collected_first_and_a_capacity_kept(vlm: VLM, tmp_path: Path) -> None:
    note = _Note()
    data = _data(tmp_path, min_turns=100, capacity=160)
    _trainer(tmp_path, 4, [OnlineCollector(environments=8, steps=5, epsilon=1.0), note]).fit(VLMQ(vlm, **LR), data)
    assert note.stored[0] >= 100
    assert all(number <= 160 for number in note.stored)
    store = TurnStore(tmp_path / "experience" / "rank-0")
    assert len(store) <= 160 + 8 * 11  # and the open episodes at the end
    assert all(episode.turns[0].index == 0 for episode in store.episodes())


def test_schedules_reach_the_collector(vlm: VLM, tmp_path: Path) -> None:
    note = _Note()
    schedule = Schedule("epsilon", at=[1, 3], values=[1.0, 0.5], unit="epoch", shape="linear")
    collector = OnlineCollector(environments=2, steps=3, epsilon=0.9)
    _trainer(tmp_path, 4, [collector, note, schedule]).fit(VLMQ(vlm, **LR), _data(tmp_path))
    assert note.epsilon[::3] == [1.0, 1.0, 0.75, 0.5]
    with pytest.raises(ValueError, match="Schedule of epsilon needs the callback OnlineCollector"):
        _trainer(tmp_path, 1, [schedule]).fit(VLMQ(vlm, **LR), _data(tmp_path))


def test_a_resumed_run_has_the_turns_of_its_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "kept", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)

    def fit(epochs: int, *callbacks: L.Callback, **options: Any) -> dict[int, Any]:
        """Episodes in the store behind a fit, by seed."""
        module = VLMQ(VLM(str(tiny_folder), lora_rank=2), **LR)
        collector = OnlineCollector(environments=4, steps=11, epsilon=1.0)
        trainer = _trainer(tmp_path, epochs, [collector, *callbacks], enable_checkpointing=bool(callbacks))
        trainer.fit(module, _data(tmp_path), **options)
        return {episode.turns[0].seed: episode for episode in _episodes(tmp_path)}

    played = fit(3, keep)
    assert sum(len(episode) for episode in played.values()) == 3 * 4 * 11
    resumed = fit(2, ckpt_path=str(tmp_path / "kept" / "epoch=0.ckpt"))
    assert sum(len(episode) for episode in resumed.values()) == 2 * 4 * 11  # of two epochs, not of three
    assert list((tmp_path / "experience" / "rank-0" / "set_aside").glob("*.parquet"))
    # the first epoch's turns are the same ones; what was open behind it is cut there
    same = [seed for seed in played if played[seed] == resumed.get(seed)]
    assert same
    cut = 0
    for seed in set(resumed) & set(played) - set(same):
        before, after = played[seed].turns, resumed[seed].turns[:-1]
        assert [turn.reply for turn in before[: len(after)]] == [turn.reply for turn in after]
        assert after[-1].truncated
        assert len(after) < len(before)
        cut += 1
    assert 1 <= cut <= 8  # open at the checkpoint, or at the end of the resumed run, which goes on with the same seeds
    afresh = fit(1)  # not resumed: the earlier run's turns are not this one's
    assert sum(len(episode) for episode in afresh.values()) == 4 * 11


def test_an_epoch_resumed_from_the_last_batch_before_it_has_its_play(tiny_folder: Path, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=3, save_top_k=-1)
    for epochs, path in ((1, None), (2, tmp_path / "kept" / "step=3.ckpt")):
        collector = OnlineCollector(environments=4, steps=11, epsilon=1.0)
        trainer = _trainer(tmp_path, epochs, [collector, keep], enable_checkpointing=True)
        module = VLMQ(VLM(str(tiny_folder), lora_rank=2), **LR)
        trainer.fit(module, _data(tmp_path), ckpt_path=path)
        assert sum(len(episode) for episode in _episodes(tmp_path)) == epochs * 4 * 11
        assert trainer.global_step == epochs * 3


def test_going_online_from_an_offline_checkpoint_can_be_repeated(tiny_folder: Path, tmp_path: Path) -> None:
    def fit(folder: Path, epochs: int, callbacks: list[L.Callback], checkpoint: Path | None, turns: int = 0) -> Any:
        module = VLMQ(VLM(str(tiny_folder), lora_rank=2), **LR)
        data = _data(tmp_path, turns=turns, mixture={"random": 1.0}, parallel=4)
        trainer = _trainer(folder, epochs, callbacks, enable_checkpointing=True)
        trainer.fit(module, data, ckpt_path=checkpoint)
        return trainer

    keep = ModelCheckpoint(tmp_path / "kept", filename="offline", save_on_train_epoch_end=True)
    fit(tmp_path / "offline", 1, [keep], None, turns=20)
    for _ in range(2):
        playing = OnlineCollector(environments=4, steps=11, epsilon=1.0)
        trainer = fit(tmp_path / "online", 2, [playing], tmp_path / "kept" / "offline.ckpt")
        assert trainer.global_step == 6
        assert sum(len(episode) for episode in _episodes(tmp_path / "online")) == 4 * 11
    # the same trainer fits on: its turns stay
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, trainer.datamodule)
    assert sum(len(episode) for episode in _episodes(tmp_path / "online")) == 2 * 4 * 11


@pytest.mark.filterwarnings("error:.*shards of the checkpoint are gone")
def test_turns_evicted_after_the_last_checkpoint_come_back_with_it(tiny_folder: Path, tmp_path: Path) -> None:
    """The checkpoint is of the fourth epoch, and the sixth one does not end."""
    keep = ModelCheckpoint(tmp_path / "kept", filename="last", every_n_epochs=4, save_on_train_epoch_end=True)
    named: list[set[str]] = []
    found: list[set[str]] = []

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
            found.append({turn.episode for turn in trainer.datamodule.experience})  # type: ignore[attr-defined]

        def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
            named.append({turn.episode for turn in trainer.datamodule.experience})  # type: ignore[attr-defined]

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 5:
                raise RuntimeError("killed")

    experience = tmp_path / "experience" / "rank-0"
    for checkpoint in (None, tmp_path / "kept" / "last.ckpt", tmp_path / "kept" / "last.ckpt"):
        module = VLMQ(VLM(str(tiny_folder), lora_rank=2), **LR)
        collecting = OnlineCollector(environments=4, steps=10, epsilon=1.0)
        trainer = _trainer(tmp_path, 6, [collecting, keep, Look()], enable_checkpointing=True)
        with pytest.raises(RuntimeError, match="killed"):
            trainer.fit(module, _data(tmp_path, capacity=60), ckpt_path=checkpoint)
        assert len(TurnStore(experience).samples) <= 60 + 4 * 11
        # of before the checkpoint nothing is kept but what it names
        evicted = {turn.episode for path in (experience / "evicted").iterdir() for turn in _turns(path)}
        assert evicted & named[0]
        assert len(evicted - named[0]) <= 60
    assert len(named) == 1
    for names in found[1:]:
        assert named[0] < names  # and those that were open
        assert len(names - named[0]) <= 4


def _turns(shard: Path) -> list[Turn]:
    table = pq.read_table(shard)
    return [to_turn(table.columns, row) for row in range(len(table))]


def test_what_a_collector_lacks_is_said_at_the_start(vlm: VLM, tmp_path: Path) -> None:
    offline = Demonstrations(str(tmp_path / "d"), AgentEnv(NumberLine()), turns=8, mixture={"random": 1.0}, parallel=2)
    with pytest.raises(ValueError, match=r"needs the DataModule lightning_vlmq.OfflineToOnline"):
        _trainer(tmp_path, 1, [OnlineCollector()]).fit(VLMQ(vlm, **LR), offline)
    with pytest.raises(ValueError, match="nothing to play"):
        _trainer(tmp_path, 1, [OnlineCollector()]).fit(VLMQ(vlm, **LR), _data(tmp_path, environment=None))
    with pytest.raises(ValueError, match="add an OnlineCollector with start_epoch: 0"):
        _trainer(tmp_path, 1, []).fit(VLMQ(vlm, **LR), _data(tmp_path))
    with pytest.raises(ValueError, match="epsilon must be a probability"):
        OnlineCollector(epsilon=2.0)
    with pytest.raises(ValueError, match="Schedule of epsilon: values must be probabilities"):
        Schedule("epsilon", [0, 5], [35.0, 5.0])
    with pytest.raises(ValueError, match="own_share must be a share"):
        OfflineToOnline(own_share=1.5)


def _compared(vlm: VLM, folder: Path, **options: Any) -> float:
    """Mean difference of log-probabilities that an epoch logs; not a number where no reply's tokens are the same."""
    trainer = _trainer(folder, 1, [OnlineCollector(environments=4, steps=6, **{"epsilon": 0.0} | options)])
    trainer.fit(VLMQ(vlm, **LR), _data(folder))
    return float(trainer.callback_metrics.get("collect/log_prob_difference", np.nan))


@pytest.mark.filterwarnings("error:rollout and training differ")
def test_rollout_and_training_agree(vlm: VLM, tmp_path: Path) -> None:
    assert _compared(vlm, tmp_path / "own") < 1e-4
    assert _compared(vlm, tmp_path / "minimum", epsilon=0.5, explore="minimum") < 1e-4


def test_other_weights_than_those_that_played_are_seen(
    vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = VLMPolicy._as_reply

    def others(self: Any, ids: list[int], log_probs: list[float], prefix: str) -> Any:
        return reply(self, ids, [value - 1 for value in log_probs], prefix)

    monkeypatch.setattr(VLMPolicy, "_as_reply", others)
    with pytest.warns(UserWarning, match="differ by 1 in the log-probability .* look at the weights and the precision"):
        assert _compared(vlm, tmp_path) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("picture", r"differ: the picture in (\d+) of \1 turns"),
        ("template", "differ: the prompt in"),
        ("tokens", "differ: the reply's tokens in"),
    ],
)
def test_what_training_reads_otherwise_than_it_was_played_is_named(
    vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str, named: str
) -> None:
    """The store gives back another picture or no tokens, or the rollout has a template of its own."""
    read, black = shards.to_turn, io.BytesIO()
    Image.new("RGB", (64, 64)).save(black, "PNG")

    def other(columns: Any, row: int) -> Turn:
        turn = read(columns, row)
        if lost == "tokens":
            return replace(turn, reply="1", reply_ids=(), tokenizer="")
        return replace(turn, observation=replace(turn.observation, images=(black.getvalue(),)))

    if lost == "template":
        monkeypatch.setattr(player, "VLMPolicy", _OtherTemplate)
    else:
        monkeypatch.setattr(shards, "to_turn", other)
    with pytest.warns(UserWarning, match=named):
        _compared(vlm, tmp_path)


class _OtherTemplate(VLMPolicy):
    def __init__(self, encoder: TurnEncoder, **options: Any) -> None:
        super().__init__(TurnEncoder(encoder.vlm, PromptMethod(image_first=False), max_reply_tokens=6), **options)
