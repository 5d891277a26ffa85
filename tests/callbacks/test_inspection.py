import itertools
import random
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_vlmq import VLM, VLMQ, AgentEnv, Demonstrations, Inspection, TargetCriticEMA, collect
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.callbacks.inspection import _distances
from lightning_vlmq.envs import Blackjack, NumberLine
from lightning_vlmq.modules.judgement import CriticJudgement, Judgement
from lightning_vlmq.scoreboards import BlackjackQ, NumberLineQ, QBoard

# -- beside exact values ------------------------------------------------------------------------------------


class _Oracle:
    """Judges NumberLine's replies by the exact values of a policy that says them with given probabilities."""

    device = torch.device("cpu")

    def __init__(self, shares: tuple[float, float], off: float) -> None:
        self.shares = itertools.cycle(shares)
        plus = shares[0] / sum(shares)
        self.values = iter(np.ravel(NumberLineQ().q(AgentEnv(NumberLine()), [plus] * 30, 0.81)) + off)

    def judge(self, batch: TokenBatch, alternatives: int) -> Judgement:
        ones = torch.ones(batch.mask.shape)
        q, share = (torch.full(batch.mask.shape, torch.nan, dtype=torch.float64) for _ in range(2))
        for row, length in enumerate(batch.mask.sum(1).tolist()):
            q[row, length - 1] = next(self.values)
            share[row, :length] = next(self.shares) ** (1 / length)
        discount = torch.where(torch.arange(ones.shape[1]) < 2, 0.9, 1.0).expand(ones.shape)
        parts = CriticJudgement(q, ones, share, ones, ones, 0.0, ones[0, 0] > 0, ones, ones, ones, discount)
        return Judgement(ones, ones, ones, parts)


@pytest.mark.parametrize("off", [0.0, -0.5])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.6, 0.2), (0.0, 0.7)])
def test_a_critic_that_knows_everything(off: float, shares: tuple[float, float], encoder: TurnEncoder) -> None:
    inspection = Inspection()
    inspection._encoder = encoder
    module: Any = _Oracle(shares, off)
    q, exact = inspection._beside_exact(module, AgentEnv(NumberLine()), NumberLineQ())
    assert q.shape == exact.shape == (30, 2)
    assert _distances(q, exact) == pytest.approx(
        {"exact/q_error": abs(off), "exact/q_bias": off, "exact/q_prefers_better": 1.0}, abs=1e-5
    )
    assert _distances(-exact, exact)["exact/q_prefers_better"] == 0.0


@pytest.mark.parametrize(
    ("board", "env", "said"),
    [
        (NumberLineQ(), AgentEnv(Blackjack()), "NumberLineQ knows NumberLine .*, not this Blackjack"),
        (NumberLineQ(), AgentEnv(NumberLine(), step_limit=0), r"needs environment\.step_limit above 0"),
        (NumberLineQ(), AgentEnv(NumberLine(), reward_scale=0.0), "a reward_scale other than 0"),
        (BlackjackQ(), AgentEnv(NumberLine()), "BlackjackQ knows Blackjack .*, not this NumberLine"),
    ],
)
def test_an_environment_that_is_not_known_is_named_at_the_start(
    board: QBoard, env: AgentEnv, said: str, encoder: TurnEncoder, vlm: VLM
) -> None:
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(encoder=encoder, environment=env))
    with pytest.raises(ValueError, match=said):
        Inspection(exact=board).setup(trainer, VLMQ(vlm), "fit")


# -- the callback -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demos(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Turns of random actions and of nonsense."""
    folder = tmp_path_factory.mktemp("demos")
    encoder = TurnEncoder(VLM(str(tiny_folder), lora_rank=0), max_reply_tokens=6)
    mixture = {"random": 0.7, "base": 0.3}
    collect(AgentEnv(NumberLine()), encoder, folder, turns=60, mixture=mixture, parallel=4)
    return folder


def _fit(
    folder: Path, demos: Path, tiny: Path, callbacks: list[L.Callback], logger: Any = None, **options: Any
) -> VLMQ:
    L.seed_everything(3)
    module = VLMQ(
        VLM(str(tiny), lora_rank=4, lora_dropout=0.2),
        **({"threshold": 0.0, "warmup_steps": 2, "critic_warmup_steps": 2, "lr": 1e-2} | options),
    )
    data = Demonstrations(
        str(demos),
        AgentEnv(NumberLine()),
        turns=0,
        batch_size=4,
        batches_per_epoch=2,
        validation_batches=1,
        max_reply_tokens=6,
        seed=5,
        features=str(folder / f"{len(list(folder.iterdir()))}.sqlite"),  # of its own: each fit begins without
    )
    trainer = L.Trainer(
        max_steps=5,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False if logger is None else logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[TargetCriticEMA(), *callbacks],
    )
    trainer.fit(module, data)
    return module


class _Careless(NumberLine):
    """Draws from the global generators."""

    def reset(self, **options: Any) -> Any:
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        random.random()
        return super().reset(**options)


class _Watch(L.Callback):
    """Notes generators, modes and pictures encoded where each batch begins."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        modes = [part.training for part in module.modules()]
        encoded = trainer.datamodule.encoder.features.computed  # type: ignore[attr-defined]
        generators = (torch.get_rng_state().tolist(), random.getstate(), name, keys.tolist(), *rest)  # type: ignore[union-attr]
        self.seen.append((generators, modes, encoded, batch.reply_ids.tolist()))


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "logs"), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    events.Reload()
    return events


def test_training_is_the_same_and_the_pictures_are_there(demos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    watches = [_Watch(), _Watch()]
    plain = _fit(tmp_path, demos, tiny_folder, [watches[0]])
    careless = AgentEnv(_Careless())
    inspection = Inspection(1, episodes=2, turns=3, return_episodes=3, exact=NumberLineQ(), environment=careless)
    logger = TensorBoardLogger(tmp_path, name="", version="logs")
    inspected = _fit(tmp_path, demos, tiny_folder, [inspection, watches[1]], logger)
    assert watches[0].seen == watches[1].seen
    assert any(watches[0].seen[-1][1])
    weights = plain.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in inspected.state_dict().items())
    events = _events(tmp_path)
    assert set(events.Tags()["images"]) == {
        f"inspect/{name}" for name in ("film", "tokens_played", "tokens_data", "q_and_return", "q_and_exact")
    }
    assert [image.step for image in events.Images("inspect/film")] == [2, 4, 5]  # the last epoch is cut short
    assert {"inspect/q", "inspect/return"} <= set(events.Tags()["histograms"])
    assert all(second.value > 0 for second in events.Scalars("inspect/seconds"))
    assert all(0 <= each.value <= 1 for each in events.Scalars("exact/q_prefers_better"))
    assert all(each.value > 0 for each in events.Scalars("exact/q_error"))


def test_sft_shows_probabilities_of_every_second_epoch_and_no_returns(
    demos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    modes = []

    class Still(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
            module.vlm.hf.model.vision_model.eval()

    class After(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
            modes.append((module.training, module.vlm.training, module.vlm.hf.model.vision_model.training))

    logger = TensorBoardLogger(tmp_path, name="", version="logs")
    inspection = Inspection(episodes=1, turns=2, temperature=0.0)
    _fit(tmp_path, demos, tiny_folder, [Still(), inspection, After()], logger, td_weight=0.0)
    assert modes == [(True, True, False)] * 3  # a part that does not train does not begin to
    events = _events(tmp_path)
    assert set(events.Tags()["images"]) == {"inspect/film", "inspect/tokens_played", "inspect/tokens_data"}
    assert [image.step for image in events.Images("inspect/film")] == [4]
    assert not events.Tags()["histograms"]


@pytest.mark.parametrize("kind", ["none", "csv"])
def test_without_a_place_for_pictures_it_says_so_once_and_plays_nothing(
    demos: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("lightning_vlmq.callbacks.inspection.play", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _fit(tmp_path, demos, tiny_folder, [Inspection()], CSVLogger(tmp_path) if kind == "csv" else None)
    said = [str(each.message) for each in caught if "Inspection" in str(each.message)]
    assert said == ["Inspection shows nothing: no logger takes pictures; give the trainer a TensorBoardLogger"]


def test_what_it_lacks_is_said_at_the_start(env: AgentEnv, encoder: TurnEncoder) -> None:
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(encoder=encoder, environment=env))
    with pytest.raises(ValueError, match="Inspection needs an AgentModule, such as VLMQ, not LightningModule"):
        Inspection().setup(trainer, L.LightningModule(), "fit")
    trainer.datamodule.environment = None
    with pytest.raises(ValueError, match=r"nothing to play: give data\.environment"):
        Inspection().setup(trainer, L.LightningModule(), "fit")
    with pytest.raises(ValueError, match="every_n_epochs 0, episodes 4 and turns 6 must be at least 1"):
        Inspection(every_n_epochs=0)
    with pytest.raises(ValueError, match="temperature -1 must not be below 0"):
        Inspection(temperature=-1)


def test_importing_does_nothing() -> None:
    script = """
import os, random, sys
import numpy, torch, lightning_vlmq.callbacks.evaluation, lightning_vlmq.modules
def state():
    numbers = numpy.random.get_state()[1].tolist()
    loaded = "matplotlib" in sys.modules  # torchmetrics takes it where it is installed
    rest = torch.get_rng_state().tolist(), torch.is_grad_enabled(), loaded
    return dict(os.environ), random.getstate(), numbers, *rest
before = state()
import lightning_vlmq.callbacks.inspection, lightning_vlmq.drawing
assert state() == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
