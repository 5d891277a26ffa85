"""Exact scores and action values of NumberLine by dynamic programming: a scoreboard without sampling noise.

There are 30 start pairs, so a policy that is read out over all of them can be scored exactly. Rewards are the
environment's own; the step limit is the wrapper's.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["NumberLineScore", "numberline_pairs", "numberline_q", "optimal_numberline", "score_numberline"]

NumberLinePolicy = Callable[[int, int], "float | str"]
"""From (current, target) to the probability of ``+``, or to an action's text."""


@dataclass(frozen=True, slots=True)
class NumberLineScore:
    """Score of a NumberLine policy that always gives valid actions.

    Attributes:
        goal_reached: Probability of reaching the goal within the step limit.
        return_above_0: Probability of a return above 0, the original's "success".
        mean_return: Expected sum of the environment's own rewards.
        mean_steps: Expected number of steps.
        shortest_pairs: Start pairs (of 30) that are surely solved by the shortest way.
    """

    goal_reached: float
    return_above_0: float
    mean_return: float
    mean_steps: float
    shortest_pairs: int


def numberline_pairs() -> dict[tuple[int, int], float]:
    """Return the probability of each start pair (current, target): 30 pairs, not all alike."""
    pairs: dict[tuple[int, int], float] = {}
    for start in range(6):
        for drawn in range(6):
            pair = (start, (drawn + 1) % 5 if drawn == start else drawn)
            pairs[pair] = pairs.get(pair, 0.0) + 1 / 36
    return dict(sorted(pairs.items()))


def optimal_numberline(current: int, target: int) -> str:
    """Return the action of the shortest way, the policy with the highest score."""
    return "+" if current < target else "-"


def score_numberline(policy: NumberLinePolicy, step_limit: int = 10) -> NumberLineScore:
    """Score a policy over the distribution of start pairs.

    Args:
        policy: From (current, target) to the probability of ``+``, or to ``+`` or ``-``.
        step_limit: Steps that end an episode.

    Returns:
        The exact score.
    """

    @functools.cache
    def play(current: int, target: int, left: int, errors: int) -> tuple[float, float, float, float]:
        """Expected (goal reached, return above 0, return to go, steps to go)."""
        if left == 0:
            return 0.0, 0.0, 0.0, 0.0
        plus, result = _plus(policy(current, target)), np.zeros(4)
        for chance, move in ((plus, 1), (1 - plus, -1)):
            following, reward = _move(current, target, move)
            if following == target:
                result += chance * np.array([1.0, float(errors == 0), 1.0, 1.0])
            elif chance:
                goal, above, value, steps = play(following, target, left - 1, errors + (reward < 0))
                result += chance * np.array([goal, above, value + reward, steps + 1])
        goal, above, value, steps = (float(x) for x in result)
        return goal, above, value, steps

    total, shortest = np.zeros(4), 0
    for (start, target), chance in numberline_pairs().items():
        result = play(start, target, step_limit, 0)
        total += chance * np.array(result)
        shortest += result[1] > 1 - 1e-9
    goal, above, value, steps = (float(x) for x in total)
    return NumberLineScore(goal, above, value, steps, shortest)


def numberline_q(
    policy: NumberLinePolicy, discount: float = 1.0, step_limit: int = 10, end_penalty: float = -10.0
) -> dict[tuple[int, int, int], dict[str, float]]:
    """Return the action values of a policy under the wrapper's rewards, all replies being valid.

    Args:
        policy: As for :func:`score_numberline`.
        discount: Discount of a whole turn.
        step_limit: Replies that end the episode.
        end_penalty: Added where the step limit ends it.

    Returns:
        From (current, target, replies given so far) to the values of ``+`` and ``-``.
    """
    values: dict[tuple[int, int, int], dict[str, float]] = {}
    for step in reversed(range(step_limit)):
        for current, target in numberline_pairs():
            entry = {}
            for action, move in (("+", 1), ("-", -1)):
                following, value = _move(current, target, move)
                if following != target:
                    if step == step_limit - 1:
                        value += end_penalty
                    else:
                        plus, ahead = _plus(policy(following, target)), values[following, target, step + 1]
                        value += discount * (plus * ahead["+"] + (1 - plus) * ahead["-"])
                entry[action] = value
            values[current, target, step] = entry
    return values


def _move(current: int, target: int, move: int) -> tuple[int, float]:
    """Return the following number and the reward."""
    following = min(5, max(0, current + move))
    if following == target:
        return following, 1.0
    return following, 0.0 if abs(target - following) < abs(target - current) else -1.0


def _plus(choice: float | str) -> float:
    """Return the probability of ``+``."""
    if isinstance(choice, str):
        if choice not in ("+", "-"):
            raise ValueError(f"policy returned {choice!r}: return '+', '-' or the probability of '+'")
        return float(choice == "+")
    return float(choice)
