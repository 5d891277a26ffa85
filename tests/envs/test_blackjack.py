import time
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lightning_vlmq.envs.blackjack import Blackjack, card_layout, hand_value, optimal_action
from lightning_vlmq.envs.text import TextTask

HIT, STAND = 1, 0


def test_gymnasium_accepts_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Render modes are tried only through gymnasium.make, and these environments are not registered.
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(Blackjack())
    assert isinstance(Blackjack(), TextTask)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, 1), (12, True)),
        ((1, 10), (21, True)),
        ((1, 10, 10), (21, False)),
        ((1, 5, 6), (12, False)),
        ((10, 6), (16, False)),
        ((10, 6, 6), (22, False)),
        ((1,) * 11, (21, True)),
    ],
)
def test_hand_value(values, expected):
    assert hand_value(values) == expected


def test_every_added_card_is_visible_and_on_the_canvas():
    env, pictures = Blackjack(), set()
    for count in range(1, 22):
        pictures.add(env.reset(seed=0, options={"player": ["A"] * count, "dealer": "9"})[0].tobytes())
    assert len(pictures) == 21
    for count in range(1, 23):
        places, (width, height) = card_layout(count)
        seen = np.zeros((300, 300), int)
        for x, y in places:
            assert x >= 0
            assert y > 92  # below the dealer's row
            assert x + width <= 300
            assert y + height <= 300
            seen[y : y + height, x : x + width] += 1
        assert seen.max() == 1  # none covers another
        assert seen.sum() == count * width * height
        assert (width, height) == (60, 84) or count > 8
        assert width >= 30


def test_a_hit_moves_no_other_card():
    env = Blackjack()
    before, _ = env.reset(seed=3, options={"player": ["2", "3"], "dealer": "K"})
    after = env.step(HIT)[0]
    changed = np.nonzero((before != after).any(axis=(1, 2)))[0], np.nonzero((before != after).any(axis=(0, 2)))[0]
    (x, y), (width, height) = card_layout(3)[0][2], card_layout(3)[1]
    assert y <= changed[0].min() <= changed[0].max() < y + height
    assert x <= changed[1].min() <= changed[1].max() < x + width


def test_covered_card_is_not_told():
    env = Blackjack()
    options = {"player": ["7", "K"], "dealer": "6"}
    hidden, told = set(), set()
    for seed in range(60):
        picture, info = env.reset(seed=seed, options=options)
        hidden.add(env._dealer[1].rank)
        told.add((picture[8:92, 87:147].tobytes(), str(info), env.summary(), env.text()))
    assert len(hidden) == 12  # cards worth ten look like J, Q or K
    assert len(told) == 1
    assert env.summary() == "Dealer shows 6. You hold 7 K, 17."


def test_seed_decides_everything():
    def record(seed):
        env, out = Blackjack(), []
        picture, _ = env.reset(seed=seed)
        for _ in range(12):
            out.append(picture.tobytes())
            picture, reward, terminated, _, _ = env.step(int(env.state().total < 16))
            out.append(reward)
            if terminated:
                picture, _ = env.reset()
        return out

    assert record(5) == record(5)
    assert record(5) != record(6)


def play_out(env, seed, options, actions):
    env.reset(seed=seed, options=options)
    for action in actions:
        _, reward, terminated, truncated, _ = env.step(action)
    return reward, terminated, truncated, env.goal_reached()


def test_rewards():
    env = Blackjack()
    assert play_out(env, 0, {"player": ["K", "Q", "A"], "dealer": "5"}, [HIT] * 1)[1:3] in [
        (False, False),
        (True, False),
    ]
    outcomes = {play_out(env, seed, {"player": ["K", "8"], "dealer": "9"}, [STAND]) for seed in range(60)}
    assert outcomes == {(1.0, True, False, True), (0.0, True, False, False), (-1.0, True, False, False)}
    busts = {play_out(env, seed, {"player": ["K", "Q"], "dealer": "9"}, [HIT]) for seed in range(30)}
    assert (-1.0, True, False, False) in busts
    assert busts - {(-1.0, True, False, False)} <= {(0.0, False, False, False)}
    # A hand of 21 never loses by standing, and a natural has no bonus.
    rewards = {play_out(env, seed, {"player": ["A", "K"], "dealer": "A"}, [STAND])[0] for seed in range(60)}
    assert rewards == {0.0, 1.0}


def test_dealer_draws_to_17_and_stands_on_soft_17():
    env, finals = Blackjack(), set()
    for seed in range(400):
        env.reset(seed=seed, options={"player": ["K", "Q"], "dealer": "A"})
        hidden = env._dealer[1].rank
        env.step(STAND)
        ranks = [card.rank for card in env._dealer]
        finals.add(hand_value(min(10, "A23456789_JQK".index(rank) + 1) for rank in ranks)[0])
        if hidden in "6789":
            assert len(ranks) == 2  # soft 17 to 20
    assert min(finals) == 17


def test_deck():
    env, counts = Blackjack(), {}
    for seed in range(2000):
        for rank in env.reset(seed=seed)[1]["player"]:
            counts[rank] = counts.get(rank, 0) + 1
    assert set(counts) == set("A23456789JQK")  # ten cards look like J, Q or K
    # 4,000 cards: 1/13 each is 308, the ten-valued ones 4/39 each are 410.
    assert all(240 < counts[rank] < 380 for rank in "A23456789")
    assert all(340 < counts[rank] < 485 for rank in "JQK")


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ((16, False, 10), "hit"),
        ((17, False, 1), "stand"),
        ((12, False, 2), "hit"),
        ((13, False, 3), "stand"),
        ((12, False, 4), "stand"),
        ((11, False, 6), "hit"),
        ((18, True, 9), "hit"),
        ((18, True, 8), "stand"),
        ((19, True, 1), "stand"),
        ((17, True, 5), "hit"),
    ],
)
def test_optimal_rule(state, action):
    from lightning_vlmq.envs.blackjack import BlackjackState

    assert optimal_action(BlackjackState(*state)) == action


def test_words():
    env = Blackjack()
    env.reset(seed=0, options={"player": ["A", "7"], "dealer": "K"})
    assert env.summary() == "Dealer shows K. You hold A 7, soft 18."
    assert env.state() == (18, True, 10)
    assert env.expert_action() == "hit"
    assert [env.parse(text) for text in ("stand", " `hit` ", "HIT", "")] == [0, 1, None, None]


def test_mistakes_are_named():
    env = Blackjack()
    with pytest.raises(ValueError, match="call reset"):
        env.step(0)
    with pytest.raises(ValueError, match="rank '1' is unknown"):
        env.reset(options={"player": ["1", "K"], "dealer": "K"})
    with pytest.raises(ValueError, match="empty or over 21"):
        env.reset(options={"player": ["9", "K", "3"], "dealer": "K"})
    with pytest.raises(ValueError, match="give both player and dealer"):
        env.reset(options={"player": ["9"]})
    env.reset()
    with pytest.raises(ValueError, match="action 7"):
        env.step(7)


def test_speed():
    env = Blackjack()
    env.reset(seed=0)
    start = time.process_time()
    for index in range(1000):
        if env.step(index % 2)[2]:
            env.reset()
    assert 1000 / (time.process_time() - start) > 1000
