import numpy as np
import pytest

from lightning_vlmq.envs.blackjack import Blackjack, card_value, hand_value
from lightning_vlmq.envs.exact_blackjack import (
    blackjack_q,
    blackjack_states,
    optimal_blackjack,
    optimal_blackjack_policy,
    sample_hands,
    score_blackjack,
)
from lightning_vlmq.envs.exact_numberline import numberline_pairs, numberline_q, optimal_numberline, score_numberline


def test_numberline_optimum():
    score = score_numberline(optimal_numberline)
    # Mean distance of the start pairs: 82 / 36, by hand.
    assert score.mean_steps == pytest.approx(82 / 36)
    assert (score.goal_reached, score.mean_return) == (pytest.approx(1), pytest.approx(1))
    assert score.return_above_0 == pytest.approx(1)
    assert score.shortest_pairs == 30


def test_numberline_random():
    score = score_numberline(lambda current, target: 0.5)
    # The known figures were sampled: 61.4 %, -2.47, 28 %.
    assert score.goal_reached == pytest.approx(0.614, abs=0.005)
    assert score.mean_return == pytest.approx(-2.47, abs=0.02)
    assert score.return_above_0 == pytest.approx(0.28, abs=0.005)
    assert score.shortest_pairs == 0


def test_numberline_always_plus():
    score = score_numberline(lambda current, target: "+")
    # Right for the 15 pairs with current < target, each 1/36, and for the four equal draws that go up.
    assert score.shortest_pairs == 15
    assert score.goal_reached == pytest.approx(19 / 36)
    with pytest.raises(ValueError, match="policy returned 'up'"):
        score_numberline(lambda current, target: "up")


def test_numberline_pairs():
    pairs = numberline_pairs()
    assert len(pairs) == 30
    assert sum(pairs.values()) == pytest.approx(1)
    assert (pairs[0, 5], pairs[4, 0], pairs[5, 1]) == (
        pytest.approx(1 / 36),
        pytest.approx(2 / 36),
        pytest.approx(2 / 36),
    )


def test_numberline_q():
    values = numberline_q(optimal_numberline, discount=0.5)
    assert values[2, 3, 0] == {"+": 1.0, "-": -1 + 0.5 * (0 + 0.5 * 1)}
    assert values[0, 1, 0] == {"+": 1.0, "-": -1 + 0.5 * 1}  # the wall
    assert values[0, 2, 9] == {"+": -10.0, "-": -11.0}  # the last reply
    assert values[0, 2, 8] == {"+": 0.5, "-": -1 + 0.5 * -10}


def test_blackjack_literals():
    optimum, states = optimal_blackjack(), blackjack_states()
    assert len(states) == 280
    assert (optimum.win, optimum.mean_return) == (pytest.approx(0.4295, abs=5e-5), pytest.approx(-0.0466, abs=5e-5))
    assert optimum.win + optimum.lose + optimum.draw == pytest.approx(1)
    chance = score_blackjack(dict.fromkeys(states, 0.5))
    assert (chance.win, chance.mean_return) == (pytest.approx(0.2806, abs=5e-5), pytest.approx(-0.396, abs=5e-4))
    below_14 = score_blackjack({state: float(state.total < 14) for state in states})
    assert below_14.win == pytest.approx(0.418, abs=5e-4)


def test_blackjack_rule_is_optimal_in_every_state():
    policy = optimal_blackjack_policy()
    values = blackjack_q(policy)
    assert all((values[state]["hit"] > values[state]["stand"]) == (policy[state] == 1) for state in policy)


def test_blackjack_q_literals():
    always_stand = dict.fromkeys(blackjack_states(), 0.0)
    values = blackjack_q(always_stand, discount=0.5)
    # Hitting 21 hard busts with every card but none: 21 + ace is 22 too.
    assert values[21, False, 10]["hit"] == pytest.approx(-1)
    # Hard 20: only an ace (1/13) saves it, for the discounted value of standing on 21.
    saved = values[21, False, 10]["stand"]
    assert values[20, False, 10]["hit"] == pytest.approx(-12 / 13 + 0.5 * saved / 13)


def test_score_agrees_with_play():
    policy, env, rewards = optimal_blackjack_policy(), Blackjack(), []
    env.reset(seed=0)
    for _ in range(3000):
        env.reset()
        over = False
        while not over:
            _, reward, over, _, _ = env.step(int(policy[env.state()]))
        rewards.append(reward)
    # Standard error of the win rate .009, of the return .017.
    assert np.mean(np.array(rewards) > 0) == pytest.approx(0.4295, abs=0.03)
    assert np.mean(rewards) == pytest.approx(-0.0466, abs=0.06)


def test_missing_states_are_named():
    with pytest.raises(ValueError, match="lacks 279 of 280 states"):
        score_blackjack({(21, False, 10): 0.0})


@pytest.mark.parametrize("state", [(4, False, 1), (12, True, 5), (16, False, 10), (18, True, 9), (21, True, 2)])
def test_sampled_hands_show_the_state(state):
    env = Blackjack()
    hands = sample_hands(state, np.random.default_rng(0), 40)
    assert len(hands) == 40
    for hand in hands:
        env.reset(seed=0, options=hand)
        assert env.state() == state
        assert "10" not in [*hand["player"], hand["dealer"]]
        # Natural play never hits a hand that already was the state.
        assert hand_value(map(card_value, hand["player"][:-1])) != state[:2]


def test_sampled_hands_vary():
    hands = sample_hands((16, False, 10), np.random.default_rng(0), 200)
    assert {2, 3, 4, 5} <= {len(hand["player"]) for hand in hands}
    assert len({tuple(sorted(hand["player"])) for hand in hands}) > 30
    with pytest.raises(ValueError, match="state \\(3, False, 1\\) is unknown"):
        sample_hands((3, False, 1), np.random.default_rng(0), 1)
