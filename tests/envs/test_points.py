import itertools
import warnings
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lightning_vlmq.envs import AgentEnv, EZPoints, Points24
from lightning_vlmq.envs.arithmetic import solutions, value
from lightning_vlmq.envs.text import TextTask

GAMES = (EZPoints, Points24)


def items(formula: str) -> list[str]:
    return formula.split()


def written(env: Points24, formula: str) -> list[tuple[float, bool]]:
    """Rewards and ends of a formula's items."""
    outcomes = []
    for item in items(formula):
        action = env.parse(item)
        assert action is not None
        _, reward, over, _, _ = env.step(action)
        outcomes.append((reward, over))
    return outcomes


@pytest.mark.parametrize("game", GAMES)
def test_gymnasium_accepts_it(game: type[Points24]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(game())
    assert isinstance(game(), TextTask)


@pytest.mark.parametrize(
    ("formula", "exact", "as_text"),
    [
        ("8 / ( 3 - 8 / 3 )", 24, pytest.approx(24)),  # in floating point a little off
        ("2 4 * 1 * 1", None, 24),
        ("5 * * 2 - 1", None, 24),
        ("7 / / 2", None, 3),
        ("- 1 + 10", 9, 9),
        ("1 / 3", Fraction(1, 3), pytest.approx(1 / 3)),
        ("1 / ( 2 - 2 )", None, None),
        ("5 ( 3 )", None, None),
        ("( )", None, None),
        ("", None, None),
        ("( 1", None, None),
        ("10 * * 10 * * 10 * * 10", None, None),
        ("( - 8 ) * * ( 1 / 3 )", None, None),
    ],
)
def test_value(formula: str, exact: Any, as_text: Any) -> None:
    assert value(items(formula)) == exact
    assert value(items(formula), as_text=True) == as_text


def test_nothing_is_executed(tmp_path: Any) -> None:
    file = tmp_path / "made"
    for as_text in (False, True):
        assert value([f"open({str(file)!r}, 'w')"], as_text=as_text) is None
        assert value(["__import__('os')"], as_text=as_text) is None
        assert value(["True"], as_text=as_text) in (None, 1)
        assert value(["(" * 150, "1"], as_text=as_text) is None
    assert not file.exists()


def test_float_equality_would_refuse_what_is_exact() -> None:
    env, compat = Points24(), Points24(compat=True)
    for game, reward in ((env, 10.0), (compat, -1.0)):
        game.reset(seed=0, options={"cards": ["3", "3", "8", "8"]})
        assert written(game, "8 / ( 3 - 8 / 3 ) =")[-1] == (reward, True)


def test_digits_make_numbers_where_the_published_game_let_them() -> None:
    for compat, reward in ((False, -1.0), (True, 10.0)):
        env = Points24(compat=compat)
        env.reset(seed=0, options={"cards": ["2", "4", "A", "A"]})
        assert written(env, "2 4 * 1 * 1 =")[-1] == (reward, True)
        assert env.goal_reached() == compat


def test_rewards_and_ends() -> None:
    env = EZPoints()
    env.reset(seed=0, options={"cards": ["K", "2"]})
    assert written(env, "10 + 2 =") == [(0, False), (0, False), (0, False), (10, True)]
    assert env.goal_reached()
    with pytest.raises(ValueError, match="over"):
        env.step(0)
    env.reset(seed=0, options={"cards": ["6", "6"]})
    assert written(env, "6 + 6 + 6 * =") == [*[(0, False)] * 4, (-1, False), (0, False), (-1, True)]  # one 6 too many
    assert not env.goal_reached()
    env.reset(seed=0, options={"cards": ["6", "6"]})
    assert written(env, "5 =") == [(-1, False), (-1, True)]
    env.reset(seed=0, options={"cards": ["10", "2"]})
    assert written(env, "2 * 2 + 10 * 2") == [*[(0, False)] * 2, (-1, False), *[(0, False)] * 3, (-1, True)]
    env.reset(seed=0, options={"cards": ["3", "9"]})
    assert written(env, "3 =")[-1] == (-1, True)  # 9 is left
    long = Points24()
    long.reset(seed=0, options={"cards": ["3", "9", "A", "A"]})
    assert written(long, " ".join("(" * 22)) == [*[(0, False)] * 21, (-1, True)]


@pytest.mark.parametrize(
    ("game", "mean_return", "solved"),
    [(EZPoints, -4.20, 0.0006), (Points24, -6.55, 0.0)],  # of the published games
)
def test_random_play_comes_to_what_it_does_in_the_published_game(
    game: type[Points24], mean_return: float, solved: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, rng = game(compat=True), np.random.default_rng(0)
    monkeypatch.setattr(env, "render", lambda: None)
    returns, goals = [], 0
    for seed in range(2500):
        env.reset(seed=seed)
        over, total = False, 0.0
        while not over:
            _, reward, over, _, _ = env.step(int(rng.integers(env.action_space.n)))
            total += reward
        returns.append(total)
        goals += env.goal_reached()
    assert np.mean(returns) == pytest.approx(mean_return, abs=4 * np.std(returns) / 50)
    assert goals / 2500 == pytest.approx(solved, abs=0.002)


def test_the_expert_solves_every_deal_of_ezpoints_in_four_steps() -> None:
    env = EZPoints()
    dealt = set()
    for seed in range(150):
        env.reset(seed=seed)
        dealt.add(tuple(sorted(rank for rank, _ in env._hand)))
        steps = [written(env, env.expert_action() or "") for _ in range(4)]
        assert steps[-1] == [(10, True)], env.summary()
        assert env.expert_action() is None
    assert {("2", "6"), ("10", "2"), ("3", "9"), ("3", "4"), ("6", "6"), ("5", "7")} <= dealt


def test_the_expert_goes_on_from_what_is_written() -> None:
    env = Points24()
    env.reset(seed=0, options={"cards": ["3", "3", "8", "8"]})
    assert written(env, "8 / ( 3 -")[-1] == (0, False)
    assert [env.expert_action(), written(env, "8"), env.expert_action()] == ["8", [(0, False)], "/"]
    env.reset(seed=0, options={"cards": ["A", "A", "A", "A"]})
    assert env.expert_action() == "="  # there is no formula
    env.reset(seed=0, options={"cards": ["6", "6", "6", "6"]})
    written(env, "7")
    assert env.expert_action() == "="  # nor any more


def test_solutions_are_those_of_a_search_by_hand() -> None:
    assert solutions((3, 4), 12, "+*", False) == (("3", "*", "4"), ("4", "*", "3"))
    assert solutions((1, 1, 1, 1), 24) == ()
    assert " ".join(solutions((3, 3, 8, 8), 24)[0]) == "8 / ( 3 - 8 / 3 )"
    for formula in solutions((1, 2, 3, 4), 24):
        assert value(formula) == 24
        assert Counter(item for item in formula if item.isdigit()) == Counter("1234")
    solvable = sum(
        len(set(itertools.permutations(hand)))
        for hand in itertools.combinations_with_replacement(range(1, 5), 4)
        if solutions(hand, 24)
    )
    # counted apart, by trying out numbers two at a time
    assert solvable == sum(_reaches([Fraction(n) for n in hand]) for hand in itertools.product(range(1, 5), repeat=4))


def _reaches(numbers: list[Fraction]) -> bool:
    if len(numbers) == 1:
        return numbers[0] == 24
    for i, j in itertools.permutations(range(len(numbers)), 2):
        a, b = numbers[i], numbers[j]
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        made = [a + b, a - b, a * b, *([a / b] if b else [])]
        if any(_reaches([*rest, new]) for new in made):
            return True
    return False


@pytest.mark.parametrize("game", GAMES)
def test_what_is_seen_tells_the_state_and_stays_on_the_canvas(game: type[Points24]) -> None:
    env = game(formula_in_text=False)
    hand = ["10", "K", "2", "A"][: env.cards]
    pictures = {env.reset(seed=1, options={"cards": hand})[0].tobytes()}
    for count in range(1, env.most_items + 2):
        picture = env.step(env.parse("10"))[0]
        pictures.add(picture.tobytes())
        assert picture.shape == (300, 300, 3)
        assert len(pictures) == count + 1
    assert env.text() == ""
    assert game().text() == "Formula: "
    other = env.reset(seed=1, options={"cards": hand[::-1]})[0]
    assert other.tobytes() not in pictures
    with pytest.raises(ValueError, match="give"):
        env.reset(options={"cards": ["11"]})
    with pytest.raises(ValueError, match="give cards"):
        env.reset(options={"hand": []})


def test_a_seed_gives_the_deal_again_and_deals_are_even() -> None:
    env = Points24()
    deals = [env.reset(seed=seed)[1]["cards"] for seed in range(400)]
    assert deals == [env.reset(seed=seed)[1]["cards"] for seed in range(400)]
    counts = Counter(rank for deal in deals for rank in deal)
    assert len(counts) == 13
    assert max(counts.values()) < 2 * min(counts.values())


def test_an_agent_plays_to_the_end_of_the_longest_formula() -> None:
    env = AgentEnv(Points24())
    env.reset(seed=0, options={"cards": ["3", "3", "8", "8"]})
    outcomes = [env.step(env.parser.format(item)) for item in items("8 / ( 3 - 8 / 3 ) =")]
    assert all(outcome.valid for outcome in outcomes)
    assert outcomes[-1].goal
    assert outcomes[-1].reward == 10
    env.reset(seed=0)
    assert env.step("[action] *").action == "*"
    assert env.step("[action] **10**").action == "10"
    assert not env.step("[action] 24").valid
