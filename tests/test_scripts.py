"""Scripts that read out a trained agent."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs import AgentEnv, BabyAI, Blackjack
from lightning_vlmq.envs.blackjack import BlackjackState
from lightning_vlmq.envs.exact_blackjack import state_means
from lightning_vlmq.vlm import VLM
from scripts.babyai_states import read_out, worlds
from scripts.blackjack_critic import Shown, fork
from scripts.curves import curve, mean, runs
from scripts.curves import main as curves_main
from scripts.embedded_vlm.worlds import agents_view, from_agent, grid, view


def test_hit_and_stand_part_behind_the_tag(vlm: VLM) -> None:
    low, high = BlackjackState(5, False, 4), BlackjackState(20, False, 4)
    shown: Shown = [(low, {"player": ["2", "3"], "dealer": "4"}), (high, {"player": ["K", "Q"], "dealer": "4"})]
    hidden, tokens = fork(vlm, shown, 0)
    assert [vlm.tokenizer.decode([token]) for token in tokens.tolist()] == [" hit", " stand"]
    # the state that predicts the action's token, from the prompt and the tag alone
    encoder, env = TurnEncoder(vlm), AgentEnv(Blackjack())
    for row, (_, hand) in enumerate(shown):
        inputs = encoder.prompts([env.reset(seed=row, options={**hand})], prefix="[action]")
        torch.testing.assert_close(hidden[row], vlm.hidden(inputs)[0, -1].detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(hidden[0], hidden[1])


def test_values_of_a_state_are_averaged_over_its_hands() -> None:
    one, other = BlackjackState(12, False, 3), BlackjackState(13, True, 3)
    hand = {"player": ["2", "K"], "dealer": "3"}
    shown: Shown = [(one, hand), (other, hand), (one, hand)]  # type: ignore[list-item]
    assert state_means(shown, np.array([1.0, 5.0, 2.0])) == {one: 1.5, other: 5.0}


@pytest.mark.parametrize(
    ("facing", "expected"), [("right", (2, -1)), ("down", (-1, -2)), ("left", (-2, 1)), ("up", (1, 2))]
)
def test_where_a_thing_is_as_seen_by_the_agent(facing: str, expected: tuple[int, int]) -> None:
    # two cells to the east, one to the north
    assert from_agent((5, 2), (3, 3), facing) == expected


@pytest.mark.parametrize("draw", [grid, view])
def test_what_stands_beside_the_agent_is_what_is_drawn_there(draw: Callable[..., Any]) -> None:
    found = set()
    for seed in range(60):
        canvas, facts = draw(Random(seed))
        ways = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}
        (x, y), (fx, fy) = facts["agent"], ways[facts["facing"]]
        picture = np.asarray(canvas.image)
        tile = picture.shape[0] // (8 if draw is grid else y + 1)
        for (dx, dy), stands in zip([(fx, fy), (fy, -fx), (-fy, fx)], facts["beside"], strict=True):
            thing = facts["cells"].get((x + dx, y + dy))
            assert thing == (None if stands == ("grey", "wall") else stands)
            corner = picture[(y + dy) * tile + 2, (x + dx) * tile + 2].max()
            if thing is None:  # walls are grey up to their corners, empty cells black or lit
                assert bool(stands) == (corner >= 100), (seed, stands, corner)
            found.add(stands and stands[1])
    assert found >= {None, "wall", "ball", "box", "key"}


@pytest.mark.parametrize("level", ["BabyAI-GoToRedBallGrey-v0", "BabyAI-GoToLocal-v0"])
def test_an_agents_view_is_drawn_as_the_environment_draws_it(level: str) -> None:
    env = BabyAI(level, view="agent", pad_to=8)
    for seed in range(12):
        picture, _ = env.reset(seed=seed)
        for action in Random(seed).choices(range(3), k=6):
            picture, *_, over, _, _ = env.step(action)
            if over:
                break
        grid = env._env.grid
        places = [(x, y) for x in range(grid.width) for y in range(grid.height)]
        world = {place: (thing.color, thing.type) for place in places if (thing := grid.get(*place))}
        facing = ("right", "down", "left", "up")[env._env.agent_dir]
        canvas, _ = agents_view(world, tuple(env._env.agent_pos), facing, side=8, tile=28)
        assert np.array_equal(np.asarray(canvas.image), picture), seed


@pytest.mark.parametrize(("view", "side"), [("agent", 7), ("agent, padded to 8", 8)])
def test_worlds_are_told_as_the_picture_of_the_agents_view_shows_them(view: str, side: int) -> None:
    turns, facts = worlds(view, 20)
    for row, turn in enumerate(turns):
        picture = np.asarray(Image.open(io.BytesIO(turn.observation.images[0])).convert("RGB"))
        cells = picture.reshape(side, 28, side, 28, 3)[-7:, 14, :7, 14]  # the middle of each
        red = np.argwhere((cells[..., 0] > 200) & (cells[..., 1:] < 100).all(-1))
        found = [(6 - y, x - 3) for y, x in red.tolist() if (y, x) != (6, 3)]  # the agent is red, too
        assert facts["ball in view"][row] == len(found)
        if found:
            ahead, right = found[0]
            assert facts["cells ahead"][row] == ahead
            assert facts["its side"][row] == (2 if right == 0 else int(right > 0))
    assert 0 < sum(facts["ball in view"]) < 20


def test_a_linear_fact_is_read_out_and_noise_is_not() -> None:
    torch.manual_seed(1)
    states = torch.randn(600, 8)
    right, commonest = read_out(states, (states[:, 0] > 0).long())
    assert right > 0.9 > commonest
    right, _ = read_out(states, torch.randint(2, (600,)))
    assert 0.3 < right < 0.7


def written(folder: Path, values: list[tuple[int, float]]) -> Path:
    """A run whose TensorBoard files hold a loss from the start on and some scores, a minute a step apart."""
    writer = SummaryWriter(str(folder))
    writer.add_scalar("loss", 1.0, 0, walltime=600.0)
    for step, value in values:
        writer.add_scalar("eval/goal_reached", value, step, walltime=600.0 + 60 * step)
    writer.close()
    return folder


def test_curves_of_seeds_are_drawn_with_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = curve(written(tmp_path / "seed-1", [(1, 0.0), (3, 1.0)]), "eval/goal_reached", "minutes")
    other = curve(written(tmp_path / "seed-2", [(2, 0.0), (4, 0.4)]), "eval/goal_reached", "minutes")
    assert one[0].tolist() == [1, 3]
    places, values = mean([one, other])
    assert places.tolist() == [2, 3]
    assert values == pytest.approx([0.25, 0.6])
    assert curve(tmp_path / "seed-1", "eval/goal_reached", "updates")[0].tolist() == [2, 4]
    picture = tmp_path / "curves.png"
    monkeypatch.setattr(
        sys, "argv", ["curves", "eval/goal_reached", "--runs", f"both={tmp_path}", "--output", str(picture)]
    )
    curves_main()
    assert Image.open(picture).width > 300
    with pytest.raises(SystemExit, match=r"has no eval/goal; it has .*eval/goal_reached"):
        curve(tmp_path / "seed-1", "eval/goal", "minutes")
    with pytest.raises(SystemExit, match="holds no run with TensorBoard's files"):
        runs(tmp_path / "nothing")
