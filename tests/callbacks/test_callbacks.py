import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from flaky_env import Flaky
from torch import nn
from torch.utils.data import DataLoader

from lightning_vlmq import VLM, VLMQ, AgentEnv, Demonstrations, EpisodeEvaluation, Report, TargetCriticEMA
from lightning_vlmq.callbacks import Schedule
from lightning_vlmq.envs import NumberLine, WorkerEnv
from lightning_vlmq.evaluation import EpisodeScores, episode_intervals, score_episodes
from lightning_vlmq.intervals import wilson
from lightning_vlmq.scoreboards import NumberLineScoreboard
from lightning_vlmq.turns import Episode, Observation, Turn


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_target_moves_once_per_optimiser_step(accumulate: int) -> None:
    class Critic(nn.Module):
        calls = 0

        def ema_update(self, tau: float) -> None:
            assert tau == 0.25
            Critic.calls += 1

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.critic = Critic()
            self.weight = nn.Parameter(torch.ones(1))

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return (self.weight * batch).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    Critic.calls = 0
    trainer = L.Trainer(
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        callbacks=[TargetCriticEMA(tau=0.25)],
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(8, 1)))
    assert Critic.calls == trainer.global_step == 16 // accumulate


def test_a_tau_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"tau must be in \(0, 1\], not 0"):
        TargetCriticEMA(tau=0)


def test_thresholds_step_and_are_never_interpolated() -> None:
    schedule = Schedule("threshold", at=[3, 5], values=[-1.0, 0.0])
    assert [schedule.value(step) for step in range(7)] == [None, None, None, -1.0, -1.0, 0.0, 0.0]
    module, trainer = SimpleNamespace(threshold=7.0), SimpleNamespace(global_step=4)
    schedule.on_train_batch_start(trainer, module, None, 0)  # type: ignore[arg-type]
    assert module.threshold == -1.0


@pytest.mark.parametrize(("steps", "values"), [([1, 2], [0.0]), ([], []), ([2, 1], [0.0, 0.0])])
def test_schedules_that_make_no_sense_are_refused(steps: list[int], values: list[float]) -> None:
    with pytest.raises(ValueError, match="of threshold"):
        Schedule("threshold", steps, values)


def test_a_filter_has_a_temperature_above_0() -> None:
    with pytest.raises(ValueError, match=r"filter_temperature: values must be above 0, not \[1.0, 0.0\]"):
        Schedule("filter_temperature", [0, 1], [1.0, 0.0])


def test_a_linear_schedule_needs_finite_values() -> None:
    with pytest.raises(ValueError, match="Schedule of threshold: shape: linear needs finite values"):
        Schedule("threshold", [0, 100], [float("-inf"), 0.0], shape="linear")
    assert Schedule("threshold", [0, 100], [float("-inf"), 0.0]).value(50) == float("-inf")


def test_scores_of_episodes_by_hand() -> None:
    def episode(*rows: tuple[float, float, bool, bool]) -> Episode:
        turns = [
            Turn("e", "x", i, Observation(), reply="r", env_reward=own, reward=shaped, valid=valid, goal=goal)
            for i, (own, shaped, valid, goal) in enumerate(rows)
        ]
        return Episode((*turns, Turn("e", "x", len(turns), Observation())))

    episodes = [
        episode((0, 0, True, False), (1, 1, True, True)),  # goal, return 1
        episode((-1, -1, True, False), (0, -2, False, False), (1, 1, True, True)),  # goal, but return 0
        episode((0, -2, False, False), (0, -2, False, False), (0, -12, False, False)),
        Episode(),
    ]
    scores = score_episodes(episodes)
    assert scores == {
        "episodes": 3,
        "turns": 8,
        "syntax_accuracy": 0.5,
        "goal_reached": pytest.approx(2 / 3),
        "return_above_0": pytest.approx(1 / 3),
        "mean_return": pytest.approx(1 / 3),
        "mean_shaped_return": pytest.approx((1 - 2 - 16) / 3),
        "mean_length": pytest.approx(8 / 3),
    }
    metric = EpisodeScores()
    metric.update(episodes[:1])
    metric.update(episodes[1:])
    assert metric.compute() == (scores, episode_intervals(episodes))
    assert episode_intervals(episodes)["goal_reached"] == pytest.approx(wilson(2 / 3, 3))
    assert episode_intervals(episodes[:1]) == {}
    with pytest.raises(ValueError, match="no complete episodes"):
        score_episodes([])


@pytest.mark.parametrize("callback", [EpisodeEvaluation(), Report()])
def test_nothing_to_play_is_said_at_the_start(vlm: VLM, tmp_path: Path, callback: L.Callback) -> None:
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[callback])
    with pytest.raises(ValueError, match="need a DataModule with an `encoder`, such as Demonstrations"):
        trainer.fit(VLMQ(vlm), DataLoader([0]))


def test_evaluation_and_report_of_a_fit(vlm: VLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Demonstrations(
        str(tmp_path / "data"),
        AgentEnv(NumberLine()),
        turns=40,
        mixture={"random": 1.0},
        batch_size=2,
        batches_per_epoch=1,
        validation_batches=1,
        max_reply_tokens=6,
    )
    report = Report(
        episodes=3,
        temperatures=[1.0],
        variants={"unseen": AgentEnv(NumberLine(random_place=True))},
        scoreboards=[NumberLineScoreboard()],
    )
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[TargetCriticEMA(), EpisodeEvaluation(episodes=2), report],
    )
    trainer.fit(VLMQ(vlm), data)
    # a random model writes nonsense: every reply is invalid, three of them end an episode with -2 -2 -12
    assert trainer.callback_metrics["eval/syntax_accuracy"] == 0
    assert trainer.callback_metrics["eval/mean_shaped_return"] == -16
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) >= {
        "data",
        "base",
        "trained",
        "trained at 1",
        "trained, unseen",
        "scoreboards",
        "steps",
        "seed",
    }
    assert results["data"]["syntax_accuracy"] == 1.0
    assert results["base"]["episodes"] == results["trained"]["episodes"] == 3
    assert results["trained"]["mean_shaped_return"] == -16
    assert results["scoreboards"][NumberLineScoreboard.name] == {"pairs": 30, "pairs_shortest": 0, "pairs_reached": 0}
    printed = capsys.readouterr().out
    assert "goal" in printed
    assert "trained" in printed
    # evaluation leaves the demonstrations alone
    assert {turn.policy for turn in data.store if turn.reply is not None} == {"random"}


def test_failures_of_an_evaluations_environments_are_counted(vlm: VLM, tmp_path: Path) -> None:
    """The second of four episodes cannot begin."""
    env = WorkerEnv(Flaky({"1:0": "raise"}))
    data = Demonstrations(
        str(tmp_path / "data"), AgentEnv(NumberLine()), turns=8, mixture={"random": 1.0}, validation_batches=1
    )
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[EpisodeEvaluation(episodes=4, environment=env)],
    )
    with pytest.warns(UserWarning, match="seven by nothing"):
        (found,) = trainer.validate(VLMQ(vlm), data, verbose=False)
    assert (found["eval/episodes"], found["eval/failures"]) == (3, 1)
