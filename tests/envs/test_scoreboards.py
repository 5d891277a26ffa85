"""Exact values as a critic is compared with them; literals by hand."""

import pytest

from lightning_vlmq.envs import AgentEnv, Blackjack, NumberLine
from lightning_vlmq.envs.exact_blackjack import blackjack_states
from lightning_vlmq.envs.exact_numberline import numberline_pairs
from lightning_vlmq.scoreboards import BlackjackQ, NumberLineQ


def test_numberline_of_a_policy_that_goes_the_right_way() -> None:
    """From 0 to 3 at discount .5: + then 0 + .5 (0 + .5 x 1) = .25; - stays at 0 for -1 + .5 x .25 = -.875."""
    pairs = list(numberline_pairs())
    right = [float(start < target) for start, target in pairs]
    for scale in (1.0, 20.0):
        found = NumberLineQ().q(AgentEnv(NumberLine(), reward_scale=scale, end_penalty=-10.0 * scale), right, 0.5)
        assert found[pairs.index((0, 3))] == pytest.approx((0.25 * scale, -0.875 * scale))


def test_numberlines_limits_count() -> None:
    """The second reply ends the episode: - and - from 0 to 5 cost -1 each and the penalty, + and - 0, -1 and that."""
    pairs = list(numberline_pairs())
    found = NumberLineQ().q(AgentEnv(NumberLine(), step_limit=2, end_penalty=-8.0), [0.0] * len(pairs), 1.0)
    assert found[pairs.index((0, 5))] == pytest.approx((-9.0, -10.0))


def test_numberlines_states_are_the_pairs_in_their_order() -> None:
    env = AgentEnv(NumberLine())
    seen = [observation.summary for observation in NumberLineQ().states(env)]
    assert seen == [f"Target: {target}. Current: {start}." for start, target in numberline_pairs()]


def test_blackjacks_hands_of_a_state_share_their_policy() -> None:
    """Hit at 21 without an ace busts. At 20 all but an ace does."""
    board = BlackjackQ(hands=3)
    states = [state for state in blackjack_states() for _ in range(3)]
    env = AgentEnv(Blackjack(), reward_scale=2.0)
    assert len(states) == 840
    for state, observation in zip(states, board.states(env), strict=True):
        assert observation.summary.endswith(f", {'soft ' * state.soft}{state.total}.")
    found = board.q(env, [0.0] * len(states), 1.0)
    by_state = dict(zip(states, found, strict=True))
    for number, state in enumerate(states):
        assert found[number] == by_state[state]
    assert by_state[21, False, 10][0] == -2.0
    # an ace (1 in 13) makes 21 and stands, everything else busts
    assert by_state[20, False, 10][0] == pytest.approx(by_state[21, False, 10][1] / 13 - 2.0 * 12 / 13)


def test_blackjack_takes_the_mean_over_a_states_hands() -> None:
    """One of two hands of hard 21 is hit, which busts."""
    board, env = BlackjackQ(hands=2), AgentEnv(Blackjack())
    states = [state for state in blackjack_states() for _ in range(2)]
    half = [float(place % 2 and state.total == 21 and not state.soft) for place, state in enumerate(states)]
    found = dict(zip(states, board.q(env, half, 1.0), strict=True))
    stand = found[21, False, 10][1]
    # hard 20: an ace makes 21, then half of the time stands and half of the time busts
    assert found[20, False, 10][0] == pytest.approx((0.5 * stand - 0.5) / 13 - 12 / 13)
