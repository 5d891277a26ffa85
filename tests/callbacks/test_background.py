"""Play that overlaps training: which weights played what, when, and what becomes of it whatever happens."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from slow_env import Slow
from torchvision_for_tests import FOLDER

from lightning_vlmq import (
    VLM,
    VLMQ,
    AgentEnv,
    InterruptCheckpoint,
    OfflineToOnline,
    OnlineCollector,
    RandomState,
    TargetCriticEMA,
    TurnStore,
)
from lightning_vlmq.agreement import compare, prompt_mark
from lightning_vlmq.callbacks.background import BackgroundPlayer, _made, _put, _trained_weights
from lightning_vlmq.callbacks.player import Order, Played
from lightning_vlmq.collection import online_seed
from lightning_vlmq.envs import NumberLine
from lightning_vlmq.turns import Episode, Turn

PLAY = 2 * 8
"""Replies of a play: two environments, eight steps."""


def _data(folder: Path, environment: NumberLine, **options: Any) -> OfflineToOnline:
    settings: dict[str, Any] = {"batch_size": 4, "batches_per_epoch": 3, "validation_batches": 1, "seed": 3}
    settings |= {"turns": 0, "max_reply_tokens": 6, "environment": AgentEnv(environment)}
    return OfflineToOnline(folder=str(folder / "data"), **settings | options)


def _fit(
    folder: Path,
    tiny: Path,
    environment: NumberLine,
    epochs: int,
    *callbacks: L.Callback,
    resume: bool = False,
    epsilon: float = 0.5,
) -> L.Trainer:
    torch.manual_seed(3)
    collector = OnlineCollector(environments=2, steps=8, epsilon=epsilon, asynchronous=True)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[InterruptCheckpoint(), TargetCriticEMA(), collector, *callbacks, RandomState()],
    )
    rates = {"lr": 1e-2, "critic_lr": 1e-3, "warmup_steps": 1, "critic_warmup_steps": 1}
    module = VLMQ(VLM(str(tiny), lora_rank=2), **rates)  # type: ignore[arg-type]
    checkpoint = folder / "checkpoints" / "last.ckpt" if resume else None
    trainer.fit(module, _data(folder, environment), ckpt_path=checkpoint)
    return trainer


def _episodes(folder: Path) -> dict[int, Episode]:
    store = TurnStore(folder / "experience" / "rank-0")
    return {episode.turns[0].seed: episode for episode in store.episodes()}


def _turns(folder: Path) -> int:
    return sum(len(episode) for episode in _episodes(folder).values())


def _player(trainer: L.Trainer) -> BackgroundPlayer:
    (found,) = (c._player for c in trainer.callbacks if isinstance(c, OnlineCollector))  # type: ignore[attr-defined]
    assert isinstance(found, BackgroundPlayer)
    return found


def _ready(trainer: L.Trainer, seconds: float) -> bool:
    """Whether the play under way ends within some seconds."""
    connection = _player(trainer)._connection
    return connection is not None and connection.poll(seconds)


def _waited(trainer: L.Trainer) -> tuple[float, float]:
    """Seconds that the trainer waited in this epoch, and those that the play took."""
    logged = trainer.callback_metrics
    return float(logged["collect/waited_seconds"]), float(logged["collect/seconds"])


class Weights(L.Callback):
    """Notes at the beginning of each epoch the trained weights, and the ends of episodes that are new in the store."""

    def __init__(self) -> None:
        self.weights: list[bytes] = []
        self.ends: list[list[tuple[Turn, Turn]]] = []
        self._known = 0

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        store = trainer.datamodule.experience  # type: ignore[attr-defined]
        rows = range(self._known, len(store))
        self.ends.append([(store[row - 1], store[row]) for row in rows if store[row].reply is None])
        self.weights.append(_trained_weights(module.vlm))
        self._known = len(store)


class Look(L.Callback):
    """In each epoch: whether the play is under way at the first batch, and over at the last one; what was waited."""

    def __init__(self) -> None:
        self.under_way: list[bool] = []
        self.over: list[bool] = []
        self.waited: list[tuple[float, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, number: int) -> None:
        if number == 0:
            self.under_way.append(not _ready(trainer, 0))
        if number == 2:
            self.over.append(_ready(trainer, 120))

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.waited.append(_waited(trainer))


class CtrlC(L.Callback):
    """Presses it in the midst of the third epoch, behind the second batch's step."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 8:
            signal.raise_signal(signal.SIGINT)


class Killer(L.Callback):
    """Kills the process that plays in the fourth epoch; notes what a resumed run begins with."""

    def __init__(self) -> None:
        self.restored = 0
        self.waited: list[tuple[float, float]] = []

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        self.restored = len(trainer.datamodule.experience.samples)  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, number: int) -> None:
        if trainer.current_epoch == 2:
            assert _ready(trainer, 120)
        if trainer.current_epoch == 3 and number == 0:
            (process,) = multiprocessing.active_children()
            os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        if trainer.current_epoch == 3:
            self.waited.append(_waited(trainer))


@pytest.fixture(scope="module", autouse=True)
def _path_of_processes() -> Any:
    """Without the tests' torchvision: a process that is spawned does not know what makes it importable."""
    before = list(sys.path)
    sys.path[:] = [path for path in sys.path if path != str(FOLDER)]
    yield
    sys.path[:] = before


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[L.Trainer, Weights, Path]:
    """Five epochs that nothing interrupts."""
    folder, weights = tmp_path_factory.mktemp("whole"), Weights()
    trainer = _fit(folder, tiny_folder, Slow(), 5, weights)
    return trainer, weights, folder


@pytest.fixture
def _listening() -> Any:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_epoch_s_turns_were_played_by_the_weights_of_the_epoch_before(
    whole: tuple[L.Trainer, Weights, Path],
) -> None:
    """The first epoch's, for which it waits, by its own."""
    trainer, noted, folder = whole
    data = trainer.datamodule  # type: ignore[attr-defined]
    vlm, encoder = trainer.lightning_module.vlm, data.encoder
    for epoch, ends in enumerate(noted.ends):
        pairs = [(turn, after) for turn, after in ends if turn.log_probs]
        assert pairs
        marks = {turn.observation: prompt_mark(encoder.prompt_ids(turn.observation)[0]) for turn, _ in pairs}
        apart = []
        for weights in noted.weights:
            _put(vlm, weights)
            apart.append(compare(encoder, [turn for turn, _ in pairs], pairs, marks).mean)
        assert apart[max(0, epoch - 1)] < 1e-4
        others = [apart[e] for e in range(5) if e != max(0, epoch - 1)]
        assert min(others) > 1e-3, (epoch, apart)
    # each epoch has its play, and nothing of it is lost or stored twice
    assert _turns(folder) == 5 * PLAY
    assert trainer.callback_metrics["collect/turns"] == PLAY
    # the trainer compares with its own VLM, for which it takes the weights that played
    assert 0 < trainer.callback_metrics["collect/log_prob_difference"] < 1e-4
    assert not multiprocessing.active_children()


@pytest.mark.usefixtures("_listening")
def test_it_overlaps_is_interrupted_and_goes_on_with_the_same_turns(
    whole: tuple[L.Trainer, Weights, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    """Slow environments, Ctrl-C, a resumed run whose process is killed: each play is that of the run before."""
    expected, look = _episodes(whole[2]), Look()
    with pytest.raises(SystemExit):
        _fit(tmp_path, tiny_folder, Slow(0.15), 5, look, CtrlC())
    assert look.under_way == [True, True, True]
    assert look.over == [True, True]
    (first, play), (second, next_play) = look.waited
    assert first > play > 16 * 0.15  # there was none to take: it began with one of its own
    assert second < next_play / 2
    assert not multiprocessing.active_children()
    assert _turns(tmp_path) == 3 * PLAY
    _same(_episodes(tmp_path), expected)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    next_seed = checkpoint["callbacks"]["OnlineCollector"]["ranks"][0]["next_seed"]
    before = set(_episodes(tmp_path))

    killer = Killer()
    with pytest.raises(ValueError, match=r"process that plays has ended \(exit code -9.*go on with --ckpt_path last"):
        _fit(tmp_path, tiny_folder, Slow(0.15), 6, killer, resume=True)
    assert killer.restored == 3 * PLAY
    ((waited, play),) = killer.waited
    assert waited < play / 2  # it went on in the midst of an epoch, and had the rest of it to play
    assert _turns(tmp_path) == 4 * PLAY
    found = _episodes(tmp_path)
    assert all(episode.turns[-2].terminated or episode.turns[-2].truncated for episode in found.values())
    # what was being played when it was interrupted is lost, and those seeds are played again
    assert min(set(found) - before) == online_seed(3, next_seed)
    assert before < set(found)


def _same(found: dict[int, Episode], expected: dict[int, Episode]) -> None:
    """Whole episodes are equal, those that were cut as far as they go."""
    cut = 0
    for seed, episode in found.items():
        turns, others = episode.turns[:-1], expected[seed].turns
        cut += episode != expected[seed]
        assert [t.reply for t in turns] == [t.reply for t in others[: len(turns)]]
        assert [t.log_probs for t in turns] == [t.log_probs for t in others[: len(turns)]]
    assert cut <= 2
    assert len(found) > 4


def test_what_an_environment_raises_ends_the_run_with_its_traceback(tiny_folder: Path, tmp_path: Path) -> None:
    """In the second play; the first one's turns are there."""
    with pytest.raises(RuntimeError, match="the process that plays failed") as raised:
        _fit(tmp_path, tiny_folder, Slow(fails_at=12), 5, epsilon=1.0)
    assert str(raised.value).count("ZeroDivisionError: seven by nothing") == 1
    assert "slow_env.py" in str(raised.value)
    assert _turns(tmp_path) == PLAY
    assert not multiprocessing.active_children()


def _background(vlm: VLM, folder: Path, environment: Any, precision: Any) -> BackgroundPlayer:
    data = _data(folder, NumberLine())
    options: dict[str, Any] = {"environments": 2, "explore": "random", "run_seed": 1, "rank": 0, "ranks": 1}
    return BackgroundPlayer(
        environment,
        vlm,
        data.encoder_recipe(),
        precision=precision,
        device=torch.device("cpu"),
        next_seed=5,
        **options,
    )


def test_the_process_computes_as_the_trainer_does(vlm: VLM, tmp_path: Path) -> None:
    """Made here, as it is made there: the same VLM, in the trainer's precision."""
    mixed = _background(vlm, tmp_path, AgentEnv(NumberLine()), MixedPrecision("bf16-mixed", "cpu"))
    try:
        other, player, context = _made(mixed._recipe)
        _, _, halved = _made(_background(vlm, tmp_path, AgentEnv(NumberLine()), HalfPrecision("bf16-true"))._recipe)
    finally:
        torch.set_flush_denormal(False)
    with context():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    with halved():
        assert torch.get_default_dtype() == torch.bfloat16
    _put(other, _trained_weights(vlm))
    for (name, one), (_, two) in zip(vlm.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    assert (player.next_seed, mixed.next_seed) == (5, 5)


def test_who_waits_for_a_play_can_be_called_away(vlm: VLM, tmp_path: Path) -> None:
    player = _background(vlm, tmp_path, AgentEnv(NumberLine()), MixedPrecision("bf16-mixed", "cpu"))
    player._playing, order = b"weights", Order(0, 8, 0.5, 0.4, 0.0)
    player._connection, _theirs = multiprocessing.Pipe()  # whose other end says nothing
    kept: list[Episode] = []
    assert player.play(order, kept.append, lambda: True) == Played(order)
    assert not kept


def test_another_base_is_refused(vlm: VLM, tmp_path: Path) -> None:
    with torch.no_grad():
        vlm.token_embeddings().add_(0.1)
    changed = _background(vlm, tmp_path, AgentEnv(NumberLine()), MixedPrecision("bf16-mixed", "cpu"))
    try:
        with pytest.raises(ValueError, match="made another base in the process that plays"):
            _made(changed._recipe)
    finally:
        torch.set_flush_denormal(False)


def test_what_cannot_be_sent_is_said_at_the_start(vlm: VLM, tmp_path: Path) -> None:
    environment = NumberLine()
    environment.window = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"asynchronous: environment, prompt and vlm go to a process, and one .*reset"):
        _background(vlm, tmp_path, AgentEnv(environment), MixedPrecision("bf16-mixed", "cpu"))


def test_shards_are_refused(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(datamodule=_data(tmp_path, NumberLine()), strategy=ModelParallelStrategy())
    with pytest.raises(ValueError, match="asynchronous does not go with ModelParallelStrategy"):
        OnlineCollector(asynchronous=True).setup(trainer, L.LightningModule(), "fit")
