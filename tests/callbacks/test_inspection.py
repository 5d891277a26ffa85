import itertools
import random
import subprocess
import sys
import warnings
from dataclasses import replace
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
from lightning_vlmq.callbacks.records import TurnValues, film_strips, q_and_returns, replies, turn_values, whole_replies
from lightning_vlmq.drawing import Frame
from lightning_vlmq.envs import Blackjack, NumberLine
from lightning_vlmq.modules.judgement import CriticJudgement, Judgement
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.scoreboards import BlackjackQ, NumberLineQ, QBoard
from lightning_vlmq.turns import Episode, Observation, Turn

# -- records ------------------------------------------------------------------------------------------------


def test_frames_show_what_differs_in_the_prompt_and_the_middle_is_left_out() -> None:
    def observation(step: int, error: str = "") -> Observation:
        images = (bytes([step]),)
        return Observation(objective="Win.", example="+", images=images, error=error, step=step, step_limit=10)

    turns = [
        Turn("e", "e-7", i, observation(i, "No such action." if i == 7 else ""), reply=f"say {i}", policy="agent")
        for i in range(8)
    ]
    turns[0] = replace(turns[0], valid=True, reward=0.5, env_reward=1.0)
    turns[7] = replace(turns[7], reward=-12.0, terminated=True)
    episode = Episode((*turns, Turn("e", "e-7", 8, observation(8))))
    (strip,) = film_strips([episode], PromptMethod())
    assert strip.title == "e-7: 8 turns, return -11.5 (1)"
    # nine frames with the end: the first three and the last three
    assert [frame if isinstance(frame, int) else frame.title for frame in strip.frames] == [
        "turn 0 (agent)",
        "turn 1 (agent)",
        "turn 2 (agent)",
        3,
        "turn 6 (agent)",
        "turn 7 (agent)",
        "the end",
    ]
    first, last, end = strip.frames[0], strip.frames[-2], strip.frames[-1]
    assert first == Frame("turn 0 (agent)", (b"\0",), ("Step 0 of 10.",), "say 0", True, 0.5, 1.0)
    assert isinstance(last, Frame)
    assert last.prompt == ("No such action.", "Step 7 of 10.")
    assert (last.reply, last.valid, last.reward, last.env_reward) == ("say 7", False, -12.0, 0.0)
    assert end == Frame("the end", (b"\x08",), outcome="goal not reached")


def test_a_prompt_that_never_differs_shows_its_last_line() -> None:
    seen = Observation(objective="Win.", example="+", text="Now.")
    turn = Turn("e", "e-0", 0, seen, reply="+", valid=True, reward=1.0, env_reward=1.0, goal=True, terminated=True)
    (strip,) = film_strips([Episode((turn, Turn("e", "e-0", 1, seen)))], PromptMethod())
    frame, end = strip.frames
    assert strip.title == "e-0: 1 turn, return 1"
    assert isinstance(frame, Frame)
    assert frame.prompt == ("Now.",)
    assert isinstance(end, Frame)
    assert end.outcome == "goal reached"


def _judged(critic: bool = True) -> Judgement:
    """Of two turns, of two tokens and of one; powers of two, which float32 holds exactly."""
    parts = CriticJudgement(
        q=torch.tensor([[1.0, -1.0], [4.0, 9.0]]),
        v=torch.tensor([[0.5, 1.0], [4.0, 9.0]]),
        share=torch.tensor([[0.5, 0.25], [1.0, 9.0]]),
        advantage=torch.tensor([[0.5, -2.0], [0.0, 9.0]]),
        weight=torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        threshold=0.0,
        guarded=torch.tensor(False),
        q_alternatives=torch.tensor([[[8.0], [16.0]], [[32.0], [0.0]]]),
        share_alternatives=torch.tensor([[[0.5], [0.0]], [[0.0], [0.0]]]),
        r_t=torch.tensor([[0.0, 1.0], [2.0, 9.0]]),
        discount_t=torch.tensor([[0.5, 0.5], [0.0, 9.0]]),
    )
    return Judgement(
        log_pi=torch.tensor([[0.5, 0.25], [1.0, 1.0]]).log(),
        alternatives=torch.tensor([[[37], [18]], [[18], [0]]]),
        log_pi_alternatives=torch.tensor([[[0.25], [0.5]], [[0.125], [1.0]]]).log(),
        critic=parts if critic else None,
    )


def test_cells_hold_the_modules_own_numbers(encoder: TurnEncoder) -> None:
    observation = Observation(images=(b"png",))
    turns = [
        Turn("e", "e-1", 0, observation, reply="[+", policy="random", reward=1.0, valid=True),
        Turn("e", "e-1", 1, observation, reply="+", policy="base", td=False),
    ]
    tokens = [encoder.encode_text(text) for text in ("<>", ">")]
    first, second = replies(turns, tokens, _judged(), encoder)
    assert (first.title, first.notes) == ("e-1", ("turn 0 (random)", "valid, reward +1"))
    assert second.notes == ("turn 1 (base)", "not valid, reward +0", "td: false")
    assert first.pictures == (b"png",)
    one, two = first.cells
    assert (one.text, one.pi, one.q, one.v, one.advantage, one.weight) == ("<", 0.5, 1.0, 0.5, 0.5, 1.0)
    assert (two.text, two.pi, two.q, two.v, two.advantage, two.weight) == (">", 0.25, -1.0, 1.0, -2.0, 0.0)
    (other,) = one.alternatives
    assert (other.text, other.pi, other.q, other.counts) == (encoder.vlm.tokenizer.decode([37]), 0.25, 8.0, True)
    assert [alternative.counts for alternative in two.alternatives] == [False]  # it has no weight in V
    assert len(second.cells) == 1  # padding is no token


def test_without_a_critic_cells_hold_probabilities_alone(encoder: TurnEncoder) -> None:
    turns = [Turn("e", "e-1", i, Observation(), reply="r") for i in range(2)]
    first, _ = replies(turns, [[35, 37], [37]], _judged(critic=False), encoder)
    cell = first.cells[0]
    assert (cell.pi, cell.q, cell.v, cell.advantage, cell.weight) == (0.5, None, None, None, None)
    assert (cell.alternatives[0].pi, cell.alternatives[0].q) == (0.25, None)


def test_long_replies_keep_their_beginning_and_their_end(encoder: TurnEncoder) -> None:
    judged = Judgement(torch.zeros(1, 40), torch.zeros(1, 40, 1, dtype=torch.long), torch.zeros(1, 40, 1))
    (reply,) = replies([Turn("e", "e-1", 0, Observation(), reply="r")], [list(range(40))], judged, encoder)
    assert len(reply.cells) == 9 + 1 + 18
    assert reply.cells[9] == 13


def test_returns_by_hand() -> None:
    # from the end: 2; then 0 + .5 x 2 = 1, where the second turn begins; 1 + .5 x 1; .5 x 1.5; .5 x .75
    turns = [
        TurnValues(7.0, torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.5, 0.5])),
        TurnValues(8.0, torch.tensor([0.0, 2.0]), torch.tensor([0.5, 0.0])),
    ]
    assert q_and_returns(turns) == [(7.0, 0.375), (8.0, 1.0)]
    # a judgement's padding is left out: 0 + .5 (1 + .5 x 2) = 1
    assert q_and_returns(turn_values([[35, 37], [37]], _judged())) == [(1.0, 1.0), (4.0, 2.0)]


def test_replies_as_single_actions() -> None:
    """The last token's Q, .5 x .25, .5 x .5; padding is left out."""
    assert whole_replies([[35, 37], [37]], _judged()) == [(-1.0, 0.125, 0.25), (4.0, 1.0, 0.0)]


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
    return dict(os.environ), random.getstate(), numbers, torch.get_rng_state().tolist(), torch.is_grad_enabled()
before = state()
import lightning_vlmq.callbacks.inspection, lightning_vlmq.drawing
assert state() == before
assert "matplotlib" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
