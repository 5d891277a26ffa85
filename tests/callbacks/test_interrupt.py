"""Ctrl-C ends a fit with a checkpoint, and what goes on from it is as if it had never stopped."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_vlmq import (
    VLM,
    VLMQ,
    AgentEnv,
    Demonstrations,
    InterruptCheckpoint,
    OfflineToOnline,
    OnlineCollector,
    RandomState,
    TargetCriticEMA,
    TurnStore,
)
from lightning_vlmq.envs import NumberLine

OPTIONS: dict[str, Any] = {"batch_size": 4, "batches_per_epoch": 4, "validation_batches": 1, "seed": 5}


class CtrlC(L.Callback):
    """Raises SIGINT where a hook is first called behind a step."""

    def __init__(self, hook: str, step: int, times: int = 1) -> None:
        presses = [signal.SIGINT] * times

        def press(trainer: L.Trainer, *rest: object) -> None:
            while trainer.global_step == step and presses:
                signal.raise_signal(presses.pop())

        setattr(self, hook, press)


class Environment(NumberLine):
    """Presses Ctrl-C at its fifth step, once however many copies of it play."""

    def __init__(self, presses: bool) -> None:
        super().__init__()
        self._made = 0
        self._presses = {"left": presses}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Environment":
        other = Environment(False)
        other._presses = self._presses
        return other

    def step(self, action: Any) -> Any:
        self._made += 1
        if self._made == 5 and self._presses["left"]:
            self._presses["left"] = False
            signal.raise_signal(signal.SIGINT)
        return super().step(action)


@pytest.fixture(autouse=True)
def _listening() -> Any:
    """A background job of a shell ignores SIGINT, and so does a process behind Lightning's end by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _fit(
    folder: Path,
    tiny: Path,
    data: L.LightningDataModule,
    *callbacks: L.Callback,
    limits: dict[str, Any],
    resume: bool = False,
) -> tuple[L.Trainer, VLMQ]:
    torch.manual_seed(3)
    module = VLMQ(VLM(str(tiny), lora_rank=2, lora_dropout=0.1), warmup_steps=2, critic_warmup_steps=2)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # in front of all others, as a configuration may have it
        callbacks=[InterruptCheckpoint(), *callbacks, TargetCriticEMA(tau=0.1), RandomState()],
        **limits,
    )
    trainer.fit(module, data, ckpt_path=folder / "checkpoints" / "last.ckpt" if resume else None)
    return trainer, module


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    _fit(folder, tiny_folder, _offline(folder / "data", turns=40), limits={"max_steps": 1})
    return folder / "data"


def _offline(folder: Path, turns: int = 0) -> Demonstrations:
    mixture = {"random": 1.0}
    return Demonstrations(str(folder), AgentEnv(NumberLine()), turns=turns, mixture=mixture, parallel=4, **OPTIONS)


EPOCHS: dict[str, Any] = {"max_epochs": 3}  # of four steps
STEPS: dict[str, Any] = {"max_steps": 6, "accumulate_grad_batches": 2}  # two an epoch


@pytest.mark.parametrize(
    ("limits", "cases"),
    [
        # a hook, the step behind which it is interrupted, the step of the checkpoint
        (
            EPOCHS,
            [
                ("on_train_batch_start", 5, 6),
                ("on_before_optimizer_step", 5, 6),
                ("on_train_batch_end", 6, 6),
                ("on_before_zero_grad", 3, 4),  # the last one of an epoch: it is evaluated, too
                ("on_validation_start", 4, 4),
                ("on_train_epoch_end", 8, 8),
                ("on_train_epoch_end", 12, 12),
            ],
        ),
        (STEPS, [("on_train_batch_start", 2, 3), ("on_train_batch_end", 2, 2), ("on_validation_start", 4, 4)]),
    ],
)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    demonstrations: Path, tiny_folder: Path, tmp_path: Path, limits: dict[str, Any], cases: list[tuple[str, int, int]]
) -> None:
    whole_trainer, whole = _fit(tmp_path, tiny_folder, _offline(demonstrations), limits=limits)
    for number, (hook, step, saved) in enumerate(cases):
        folder = tmp_path / str(number)
        with pytest.raises(SystemExit):
            _fit(folder, tiny_folder, _offline(demonstrations), CtrlC(hook, step), limits=limits)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == saved, hook
        trainer, resumed = _fit(folder, tiny_folder, _offline(demonstrations), limits=limits, resume=True)
        assert trainer.global_step == whole_trainer.global_step, hook
        assert trainer.current_epoch == whole_trainer.current_epoch, hook
        for name, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), (hook, name)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("limits", [{"max_epochs": 2}, {"max_steps": 8}])
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_interrupted_play_is_kept_and_played_again(
    demonstrations: Path, tiny_folder: Path, tmp_path: Path, epoch: int, limits: dict[str, Any]
) -> None:
    def fit(presses: bool, resume: bool) -> L.Trainer:
        data = OfflineToOnline(
            folder=str(demonstrations if epoch else tmp_path / "none"),
            environment=AgentEnv(Environment(presses)),
            turns=0,
            **OPTIONS,
        )
        collector = OnlineCollector(environments=2, steps=20, start_epoch=epoch, epsilon=1.0)
        return _fit(tmp_path, tiny_folder, data, collector, limits=limits, resume=resume)[0]

    with pytest.raises(SystemExit):
        fit(presses=True, resume=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4 * epoch
    trainer = fit(presses=False, resume=True)
    assert (trainer.global_step, trainer.current_epoch) == (8, 2)
    turns = sum(len(episode) for episode in TurnStore(tmp_path / "experience" / "rank-0").episodes())
    # the interrupted play ended with its fifth turn, in two environments
    assert turns == 2 * 5 + (2 - epoch) * 2 * 20


def test_a_second_signal_ends_at_once(demonstrations: Path, tiny_folder: Path, tmp_path: Path) -> None:
    twice = CtrlC("on_train_batch_start", 2, times=2)
    with pytest.raises(SystemExit):
        _fit(tmp_path, tiny_folder, _offline(demonstrations), twice, limits=EPOCHS)
    assert not (tmp_path / "checkpoints").exists()


def test_who_handles_the_signal_keeps_it(demonstrations: Path, tiny_folder: Path, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    once = CtrlC("on_train_batch_start", 2)
    trainer, _ = _fit(tmp_path, tiny_folder, _offline(demonstrations), once, limits=EPOCHS)
    assert trainer.global_step == 12
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


RANKS = """
import signal, sys
import lightning as L
from lightning_vlmq import (
    VLM, VLMQ, AgentEnv, InterruptCheckpoint, OfflineToOnline, OnlineCollector, RandomState, TargetCriticEMA
)
from lightning_vlmq.envs import NumberLine

class CtrlC(L.Callback):
    def on_train_batch_start(self, trainer, *rest):
        if trainer.global_rank == 1 and trainer.global_step == 1:
            signal.raise_signal(signal.SIGINT)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    vlm, folder = sys.argv[1:]
    data = OfflineToOnline(
        folder=folder + "/data", environment=AgentEnv(NumberLine()), turns=0, batch_size=4, batches_per_epoch=3,
        validation_batches=1, max_reply_tokens=6, seed=3,
    )
    L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, default_root_dir=folder, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[
            InterruptCheckpoint(), TargetCriticEMA(), OnlineCollector(environments=3, steps=11, epsilon=1.0),
            RandomState(), CtrlC(),
        ],
    ).fit(VLMQ(VLM(vlm, lora_rank=2)), data)
"""


def test_a_signal_to_one_rank_ends_all(tiny_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(RANKS)
    command = [sys.executable, str(script), str(tiny_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    for callback in ("OnlineCollector", "RandomState"):
        assert len(checkpoint["callbacks"][callback]["ranks"]) == 2
