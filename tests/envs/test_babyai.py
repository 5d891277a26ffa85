import subprocess
import sys
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lightning_vlmq import PromptMethod
from lightning_vlmq.envs import AgentEnv, BabyAI, NumberLine, WorkerEnv
from lightning_vlmq.envs.text import Limits, TextTask

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)


@pytest.mark.parametrize("options", [{}, {"view": "agent", "tile_size": 8, "level": "BabyAI-OpenDoor-v0"}])
def test_gymnasium_accepts_it(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Render modes are tried only through gymnasium.make, and these environments are not registered.
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(BabyAI(**options))
    assert isinstance(BabyAI(), TextTask)


def solve(env, seed):
    env.reset(seed=seed)
    for steps in range(1, 200):
        _, reward, terminated, truncated, _ = env.step(env.parse(env.expert_action()))
        assert not truncated
        if terminated:
            return steps, reward
    raise AssertionError("not solved")


@pytest.mark.parametrize("level", ["BabyAI-GoToRedBallGrey-v0", "BabyAI-PickupLoc-v0", "BabyAI-PutNextLocal-v0"])
def test_the_bot_solves_levels_and_the_reward_is_that_of_minigrid(level):
    env = BabyAI(level)
    limit = {"BabyAI-PutNextLocal-v0": 128}.get(level, 64)
    for seed in range(5):
        steps, reward = solve(env, seed)
        assert reward == pytest.approx(1 - 0.9 * steps / limit)
        assert env.goal_reached()


def test_the_bot_goes_on_from_what_others_did():
    env, rng = BabyAI("BabyAI-PutNextLocal-v0"), np.random.default_rng(0)
    for seed in range(5):
        env.reset(seed=seed)
        over = False
        for _ in range(150):
            action = env.parse(env.expert_action()) if rng.random() < 0.7 else int(rng.integers(6))
            over = env.step(action)[2]
            if over:
                break
        assert over
        assert env.goal_reached()


@pytest.mark.parametrize("level", ["BabyAI-GoToRedBallGrey-v0", "BabyAI-PickupLoc-v0"])
def test_the_misled_one_goes_to_something_else_and_stays_there(level):
    env = BabyAI(level)
    world, arrived = env._env, 0
    for seed in range(8):
        env.reset(seed=seed)
        mission, before = world.mission, env.summary().split(".", 1)[1]
        actions = []
        for _ in range(40):
            actions.append(env.misled_action())
            assert not env.step(env.parse(actions[-1]))[2]
        # it changes nothing, and the same world gives the same advice
        assert env.summary().split(".", 1)[1] == before
        assert (world.mission, env.misled_action(), env.misled_action()) == (mission, "drop", "drop")
        front = world.grid.get(*world.front_pos)
        arrived += front is not None and front.type != "wall" and front not in world.instrs.desc.obj_set
        assert actions.index("drop") < 20
    assert arrived == 8


def test_the_misled_one_takes_the_shortest_way():
    """Seed 0, from 6, 5 facing left: the key at 5, 6 and the ball at 5, 4 are as near; rows above come first."""
    env = BabyAI()
    env.reset(seed=0)
    assert "You are at 6, 5 facing left." in env.summary()
    assert env._env.grid.get(5, 4).type == "ball"
    actions = []
    for _ in range(3):
        actions.append(env.misled_action())
        env.step(env.parse(actions[-1]))
    assert actions == ["forward", "right", "drop"]
    assert tuple(env._env.front_pos) == (5, 4)


def test_the_misled_one_without_another_object():
    env = BabyAI("BabyAI-GoToRedBallNoDists-v0")
    env.reset(seed=1)
    assert env.misled_action() == "drop"
    wrong = AgentEnv(BabyAI())
    wrong.reset(seed=0)
    assert wrong.misled_action() == "forward"
    assert AgentEnv(NumberLine()).misled_action() is None


def test_behind_the_levels_own_limit_a_success_still_pays():
    env = BabyAI("BabyAI-GoToObjS4-v0")  # limit 16
    env.reset(seed=0)
    for _ in range(40):
        assert env.step(LEFT)[1:4] == (0.0, False, False)
    while True:
        _, reward, terminated, _, _ = env.step(env.parse(env.expert_action()))
        if terminated:
            break
    assert reward == pytest.approx(0.1)
    assert env.goal_reached()


def test_mission_and_actions_are_in_the_prompt():
    env = AgentEnv(BabyAI(), step_limit=64)
    text = PromptMethod().text(env.reset(seed=0))
    assert "Mission: go to the red ball." in text
    assert "[action] forward" in text
    for action in ("left", "right", "forward", "pickup", "drop", "toggle"):
        assert action in text


def test_first_action_in_the_reply_counts():
    env = BabyAI()
    assert env.parse("I go Forward, then left") == FORWARD
    assert env.parse("toggle") == TOGGLE
    assert env.parse("forwards") is None
    assert env.parse("done") is None


def test_what_is_carried_stands_in_words():
    env = BabyAI("BabyAI-PickupLoc-v0")
    env.reset(seed=0)
    assert env.text() == ""
    while env._env.carrying is None:
        env.step(env.parse(env.expert_action()))
    thing = env._env.carrying
    assert env.text() == f"You carry a {thing.color} {thing.type}."


def test_what_was_done_last_stands_in_words_if_asked():
    env = BabyAI("BabyAI-PickupLoc-v0", last_action=True)
    env.reset(seed=0)
    assert env.text() == ""
    for _ in range(9):  # to a wall or a thing, at the latest
        place = tuple(env._env.agent_pos)
        env.step(FORWARD)
    assert tuple(env._env.agent_pos) == place
    assert env.text() == "You did: forward. Nothing changed."
    env.step(LEFT)
    assert env.text() == "You did: left."
    env.reset(seed=0)
    assert env.text() == ""
    while env._env.carrying is None:
        env.step(env.parse(env.expert_action()))
    thing = env._env.carrying
    assert env.text() == f"You did: pickup. You carry a {thing.color} {thing.type}."
    silent = BabyAI()
    silent.reset(seed=0)
    silent.step(LEFT)
    assert silent.text() == ""


def test_the_world_in_words():
    env = BabyAI()
    env.reset(seed=3)
    assert env.summary().startswith("You are at ")
    assert env.summary().count("A red ball is at") == 1
    doors = BabyAI("BabyAI-OpenDoor-v0")
    doors.reset(seed=0)
    assert "closed door is at" in doors.summary()


def test_padding_leaves_the_picture_at_the_bottom_left():
    plain, padded = BabyAI(view="agent", tile_size=8), BabyAI(view="agent", tile_size=8, pad_to=9)
    picture, larger = plain.reset(seed=3)[0], padded.reset(seed=3)[0]
    assert larger.shape == padded.observation_space.shape == (72, 72, 3)
    assert (larger[16:, :56] == picture).all()
    assert not larger[:16].any()
    assert not larger[:, 56:].any()


def test_views_differ_and_have_their_sizes():
    full, agent = BabyAI(), BabyAI(view="agent", tile_size=32)
    assert full.reset(seed=0)[0].shape == (224, 224, 3)
    assert agent.reset(seed=0)[0].shape == (224, 224, 3)  # 7 x 32
    assert not np.array_equal(full.render(), agent.render())


def test_seed_decides_everything():
    def record(seed):
        env = BabyAI("BabyAI-GoToLocal-v0")
        worlds = [(env.reset(seed=seed)[0].tobytes(), env.objective)]
        return worlds + [(env.reset()[0].tobytes(), env.objective) for _ in range(3)]

    first = record(7)
    assert record(7) == first
    assert record(8) != first


def test_the_papers_limits():
    env = AgentEnv(BabyAI(), invalid_penalty=-1.0, invalid_limit=5, step_limit=64, end_penalty=-200.0)
    env.reset(seed=0)
    turns = [env.step("[action] left") for _ in range(64)]  # turning on the spot ends nothing
    assert [t.reward for t in turns] == [0.0] * 63 + [-200.0]
    assert turns[-1].terminated
    assert not turns[-1].truncated
    env.reset(seed=0)
    turns = [env.step("left") for _ in range(5)]  # no tag
    assert [t.reward for t in turns] == [-1.0] * 4 + [-201.0]
    assert turns[-1].terminated


def test_nothing_is_printed(capfd):
    env = BabyAI()
    for seed in range(30):  # minigrid prints some rejected samples among these
        env.reset(seed=seed)
    env.expert_action()
    assert capfd.readouterr().out == ""


def test_importing_does_not_load_minigrid():
    code = "import sys, lightning_vlmq.envs; sys.exit('minigrid' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_level_is_there():
    import gymnasium as gym

    BabyAI()
    levels = [name for name in gym.registry if name.startswith("BabyAI-")]
    assert len(levels) == 96
    for level in levels[::8]:
        env = BabyAI(level, tile_size=4)
        assert env.reset(seed=1)[0].shape == env.observation_space.shape
        assert env.objective.startswith("Mission: ")


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="level 'GoTo' is unknown; minigrid has 96: BabyAI-Action"):
        BabyAI("GoTo")
    with pytest.raises(ValueError, match="view 'top': choose full or agent"):
        BabyAI(view="top")
    with pytest.raises(ValueError, match="tile_size 2: choose from 4 to 64 pixels"):
        BabyAI(tile_size=2)
    with pytest.raises(ValueError, match="pad_to 6: full views of BabyAI-GoToRedBallGrey-v0 have 8 x 8 cells"):
        BabyAI(pad_to=6)
    env = BabyAI()
    with pytest.raises(ValueError, match=r"call reset\(\) before step\(\)"):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action 6 is not BabyAI's"):
        env.step(6)
    with pytest.raises(ValueError, match=r"options \['start'\] are not BabyAI's"):
        env.reset(options={"start": 1})


def test_the_papers_limits_are_its_own() -> None:
    env = AgentEnv(BabyAI())
    limits = Limits(env.invalid_penalty, env.invalid_limit, env.step_limit, env.end_penalty)
    assert limits == Limits(-1.0, 5, 64, -200.0) != Limits()
    env.reset(seed=0)
    rewards = [env.step("no action").reward for _ in range(5)]
    assert rewards == [-1.0, -1.0, -1.0, -1.0, -201.0]
    other = WorkerEnv(BabyAI(), step_limit=0)
    assert (other.step_limit, other.settings["environment.end_penalty"]) == (0, -200.0)
