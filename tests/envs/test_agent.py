import io

import gymnasium as gym
import numpy as np
import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.envs.blackjack import Blackjack
from lightning_vlmq.envs.numberline import NumberLine
from lightning_vlmq.parsing import JsonParser

FAR = {"start": 0, "target": 5}


def rewards(env, replies, options=FAR):
    """Play replies; the list of (reward, env reward, terminated)."""
    env.reset(seed=0, options=options)
    outcomes = [env.step(reply) for reply in replies]
    assert not any(outcome.truncated for outcome in outcomes)
    return [(outcome.reward, outcome.env_reward, outcome.terminated) for outcome in outcomes]


def test_three_invalid_replies_end_the_episode():
    expected = [(-2.0, 0.0, False), (-2.0, 0.0, False), (-12.0, 0.0, True)]
    assert rewards(AgentEnv(NumberLine()), ["", "+", "[action] ++"]) == expected


def test_a_valid_reply_clears_the_streak():
    replies = ["x", "x", "[action] +", "x", "x", "x"]
    expected = [(-2.0, 0.0, False)] * 2 + [(0.0, 0.0, False)] + [(-2.0, 0.0, False)] * 2 + [(-12.0, 0.0, True)]
    assert rewards(AgentEnv(NumberLine()), replies) == expected


def test_step_limit_is_terminal_with_its_penalty():
    results = rewards(AgentEnv(NumberLine()), ["[action] -"] * 10)
    assert results[:9] == [(-1.0, -1.0, False)] * 9
    assert results[9] == (-11.0, -1.0, True)


def test_end_penalty_is_paid_once_where_both_limits_meet():
    replies = ["[action] -"] * 7 + ["x"] * 3
    assert rewards(AgentEnv(NumberLine()), replies)[-1] == (-12.0, 0.0, True)


def test_reaching_the_goal_with_the_last_reply_costs_nothing():
    replies = ["[action] -"] * 5 + ["[action] +"] * 5
    assert rewards(AgentEnv(NumberLine()), replies)[-1] == (1.0, 1.0, True)


def test_goal_and_scale():
    env = AgentEnv(NumberLine(), reward_scale=20.0)
    env.reset(seed=0, options={"start": 2, "target": 3})
    wrong, right, good = env.step("[action] -"), env.step("[action] +"), env.step("so: [action] `+`")
    assert (wrong.reward, wrong.env_reward, wrong.goal) == (-20.0, -1.0, False)
    assert (right.reward, right.goal) == (0.0, False)
    assert (good.reward, good.env_reward, good.terminated, good.goal, good.action) == (20.0, 1.0, True, True, "+")


def test_the_environments_own_truncation_is_passed_on_without_penalty():
    env = AgentEnv(NumberLine(max_steps=2), step_limit=2)
    env.reset(seed=0, options=FAR)
    env.step("[action] +")
    outcome = env.step("[action] +")
    assert (outcome.reward, outcome.terminated, outcome.truncated) == (0.0, False, True)


def test_limits_can_be_lifted():
    env = AgentEnv(NumberLine(), step_limit=0, invalid_limit=0)
    assert rewards(env, ["x"] * 30 + ["[action] -"] * 30)[-1] == (-1.0, -1.0, False)


def test_invalid_replies_do_not_move_the_environment():
    env = AgentEnv(NumberLine())
    first = env.reset(seed=0, options=FAR)
    invalid = env.step("no tag").observation
    assert (invalid.images, invalid.summary) == (first.images, first.summary)
    assert (first.error, invalid.error) == ("", "Your last reply did not follow the syntax.")
    assert (invalid.step, invalid.invalid_streak) == (1, 1)
    unknown = env.step("[action] up").observation
    assert (unknown.error, unknown.step, unknown.invalid_streak) == ("Your last reply was not a valid action.", 2, 2)
    valid = env.step("[action] +").observation
    assert (valid.error, valid.step, valid.invalid_streak) == ("", 3, 0)
    assert valid.images != first.images
    assert (valid.step_limit, valid.invalid_limit) == (10, 3)
    assert np.asarray(Image.open(io.BytesIO(valid.images[0]))).shape == (300, 300, 3)


def test_the_end_is_the_end():
    env = AgentEnv(Blackjack())
    with pytest.raises(ValueError, match="call reset"):
        env.step("[action] stand")
    env.reset(seed=0)
    assert env.step("[action] stand").terminated
    with pytest.raises(ValueError, match="call reset"):
        env.step("[action] stand")


@pytest.mark.parametrize(
    "reply", ["", "\x00", "é漢字🂡", "[action]", "a" * 10_000, "[action]" + "+" * 10_000, "*" * 10_000]
)
def test_nonsense_is_only_invalid(reply):
    env = AgentEnv(NumberLine())
    env.reset(seed=0)
    outcome = env.step(reply)
    assert (outcome.valid, outcome.action, outcome.reward) == (False, "", -2.0)


def test_seeds():
    def record(env, seed):
        observations, actions = [env.reset(seed)], []
        for _ in range(10):
            actions.append(env.random_action())
            outcome = env.step(env.parser.format(actions[-1]))
            observations.append(outcome.observation)
            if outcome.terminated:
                observations.append(env.reset())
        return observations, actions, env.seed

    env = AgentEnv(Blackjack())
    assert record(env, 3) == record(AgentEnv(Blackjack()), 3) == record(env, 3)
    assert record(env, 3) != record(env, 4)
    env.reset()  # the seed that was drawn repeats the episode
    drawn, seen = env.seed, env.reset()
    assert env.seed != drawn
    assert env.reset(env.seed) == seen


def test_random_actions_are_uniform():
    env = AgentEnv(NumberLine())
    pluses = 0
    for seed in range(1000):
        env.reset(seed)
        pluses += env.random_action() == "+"
    assert 430 < pluses < 570


def test_random_play_scores_as_known():
    env, returns, goals = AgentEnv(NumberLine()), [], 0
    for seed in range(1500):
        env.reset(seed)
        total, over = 0.0, False
        while not over:
            outcome = env.step(env.parser.format(env.random_action()))
            total, over = total + outcome.env_reward, outcome.terminated
        goals += outcome.goal
        returns.append(total)
    # Exactly .611, .283 and -2.48 (test_exact.py); 1,500 episodes lie within .04 and .25 of them.
    assert goals / 1500 == pytest.approx(0.611, abs=0.04)
    assert np.mean(np.array(returns) > 0) == pytest.approx(0.283, abs=0.04)
    assert np.mean(returns) == pytest.approx(-2.48, abs=0.3)


def test_expert_goes_the_shortest_way():
    env = AgentEnv(NumberLine(), parser=JsonParser())
    env.reset(seed=0, options=FAR)
    for _ in range(5):
        outcome = env.step(env.parser.format(env.expert_action()))
    assert outcome.goal
    assert env.expert_action() is None
    assert env.name == "NumberLine"


def test_environments_without_text_are_refused():
    with pytest.raises(ValueError, match="env Env lacks name, objective"):
        AgentEnv(gym.Env())
    with pytest.raises(ValueError, match="use 0 for no limit"):
        AgentEnv(NumberLine(), step_limit=-1)


def test_from_a_configuration():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AgentEnv, "agent")
    inner = {"class_path": "lightning_vlmq.envs.numberline.NumberLine", "init_args": {"font_sizes": [20, 40]}}
    syntax = {"class_path": "lightning_vlmq.parsing.TagParser", "init_args": {"tag": "<a>"}}
    config = {"class_path": "lightning_vlmq.envs.agent.AgentEnv", "init_args": {"env": inner, "parser": syntax}}
    env = parser.instantiate_classes(parser.parse_object({"agent": config})).agent
    assert (env.env.font_sizes, env.parser.prefix, env.step_limit) == ((20, 40), "<a>", 10)
