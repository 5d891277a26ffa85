"""Exact scores and action values of Blackjack by dynamic programming: a scoreboard without sampling noise.

There are 280 states, so a policy that is read out over all of them can be scored exactly. Rewards are the
environment's own.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from lightning_vlmq.envs.blackjack import BlackjackState, card_value, hand_value, optimal_action
from lightning_vlmq.envs.cards import RANKS

__all__ = [
    "BlackjackScore",
    "HandOptions",
    "blackjack_q",
    "blackjack_states",
    "optimal_blackjack",
    "optimal_blackjack_policy",
    "sample_every_state",
    "sample_hands",
    "score_blackjack",
    "state_means",
]

_CARDS = tuple((value, 4 / 13 if value == 10 else 1 / 13) for value in range(1, 11))


@dataclass(frozen=True, slots=True)
class BlackjackScore:
    """Score of a Blackjack policy.

    Attributes:
        win: Probability of a win (goal reached, return above 0).
        lose: Probability of a loss.
        draw: Probability of a draw.
        mean_return: Expected return, ``win - lose``.
    """

    win: float
    lose: float
    draw: float
    mean_return: float


class HandOptions(TypedDict):
    """Options of ``Blackjack.reset`` that set the hands."""

    player: list[str]
    dealer: str


def blackjack_states() -> list[BlackjackState]:
    """Return the 280 states in which a player decides: hard 4 to 21 and soft 12 to 21, each against 10 cards."""
    hands = [(total, False) for total in range(4, 22)] + [(total, True) for total in range(12, 22)]
    return [BlackjackState(total, soft, dealer) for total, soft in hands for dealer in range(1, 11)]


def score_blackjack(hit_probability: Mapping[BlackjackState, float]) -> BlackjackScore:
    """Score a policy from the deal on.

    Args:
        hit_probability: Probability of ``hit`` in each of :func:`blackjack_states` (keys may be plain tuples).

    Returns:
        The exact score.

    Raises:
        ValueError: If a state is missing.
    """
    missing = [state for state in blackjack_states() if state not in hit_probability]
    if missing:
        raise ValueError(f"hit_probability lacks {len(missing)} of 280 states, such as {missing[0]}: give all of them")
    value = _evaluator(hit_probability)
    total = np.zeros(3)
    for dealer, dealer_chance in _CARDS:
        for first, first_chance in _CARDS:
            for second, second_chance in _CARDS:
                state = BlackjackState(*hand_value((first, second)), dealer)
                total += dealer_chance * first_chance * second_chance * value(state)
    win, lose, draw = (float(x) for x in total)
    return BlackjackScore(win, lose, draw, win - lose)


def blackjack_q(
    hit_probability: Mapping[BlackjackState, float], discount: float = 1.0
) -> dict[BlackjackState, dict[str, float]]:
    """Return the action values of a policy.

    Args:
        hit_probability: As for :func:`score_blackjack`.
        discount: Discount of a whole turn.

    Returns:
        From each state to the values of ``hit`` and ``stand``.
    """

    @functools.cache
    def q(state: BlackjackState) -> tuple[float, float]:
        stand = _stand(state.total, state.dealer)
        hit = 0.0
        for card, chance in _CARDS:
            following = _hit(state, card)
            if following is None:
                hit -= chance
            else:
                ahead, probability = q(following), hit_probability[following]
                hit += chance * discount * (probability * ahead[0] + (1 - probability) * ahead[1])
        return hit, float(stand[0] - stand[1])

    return {state: dict(zip(("hit", "stand"), q(state), strict=True)) for state in blackjack_states()}


def optimal_blackjack_policy() -> dict[BlackjackState, float]:
    """Return the hit probabilities of the optimal rule."""
    return {state: float(optimal_action(state) == "hit") for state in blackjack_states()}


def optimal_blackjack() -> BlackjackScore:
    """Return the highest mean return there is, with its win rate."""
    return score_blackjack(optimal_blackjack_policy())


def sample_hands(state: BlackjackState, rng: np.random.Generator, count: int) -> list[HandOptions]:
    """Draw hands of a state as natural play reaches it: two cards and hits until the state is met.

    Args:
        state: One of :func:`blackjack_states`.
        rng: Source of randomness.
        count: Number of hands.

    Returns:
        Options for ``Blackjack.reset``; cards worth ten are drawn as J, Q or K.

    Raises:
        ValueError: If the state is none of a deciding player's.
    """
    if state not in blackjack_states():
        raise ValueError(f"state {tuple(state)} is unknown: choose from blackjack_states()")
    state = BlackjackState(*state)
    hands: list[HandOptions] = []
    while len(hands) < count:
        values = np.minimum(rng.integers(1, 14, size=24), 10).tolist()
        for size in range(2, 22):
            total, soft = hand_value(values[:size])
            if (total, soft) == (state.total, state.soft):
                looks = [_look(value, rng) for value in [*values[:size], state.dealer]]
                hands.append({"player": looks[:-1], "dealer": looks[-1]})
            if total > 21 or (not soft and total >= state.total):
                break
    return hands


def sample_every_state(rng: np.random.Generator, count: int) -> list[tuple[BlackjackState, HandOptions]]:
    """Draw hands of each state, as :func:`sample_hands` does.

    Args:
        rng: Source of randomness.
        count: Number of hands of each state.

    Returns:
        States with their hands, in the order of :func:`blackjack_states`.
    """
    return [(state, hand) for state in blackjack_states() for hand in sample_hands(state, rng, count)]


def state_means(
    shown: Sequence[tuple[BlackjackState, HandOptions]], values: Iterable[float]
) -> dict[BlackjackState, float]:
    """Return the mean over the hands of each state.

    Args:
        shown: States with their hands.
        values: One a hand.
    """
    found: dict[BlackjackState, list[float]] = {}
    for (state, _), value in zip(shown, values, strict=True):
        found.setdefault(state, []).append(float(value))
    return {state: float(np.mean(row)) for state, row in found.items()}


def _look(value: int, rng: np.random.Generator) -> str:
    """Return a rank that counts so much, as the environment draws it."""
    ranks = [rank for rank in RANKS if card_value(rank) == value and rank != "10"]
    return ranks[int(rng.integers(len(ranks)))]


def _evaluator(
    hit_probability: Mapping[BlackjackState, float],
) -> Callable[[BlackjackState], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return a function from a state to the probabilities (win, lose, draw) under the policy."""

    @functools.cache
    def value(state: BlackjackState) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        probability = float(hit_probability[state])
        result = (1 - probability) * np.array(_stand(state.total, state.dealer))
        if probability:
            for card, chance in _CARDS:
                following = _hit(state, card)
                result += probability * chance * (np.array([0.0, 1.0, 0.0]) if following is None else value(following))
        return result

    return value


def _hit(state: BlackjackState, card: int) -> BlackjackState | None:
    """Return the state after a card, ``None`` if it is over 21."""
    total = state.total + card
    if card == 1 and total + 10 <= 21:
        return BlackjackState(total + 10, True, state.dealer)
    if total <= 21:
        return BlackjackState(total, state.soft, state.dealer)
    return BlackjackState(total - 10, False, state.dealer) if state.soft else None


@functools.cache
def _stand(total: int, dealer: int) -> tuple[float, float, float]:
    """Return the probabilities (win, lose, draw) of standing."""
    win = lose = draw = 0.0
    for final, chance in _dealer_totals(*hand_value((dealer,))).items():
        if final > 21 or final < total:
            win += chance
        elif final > total:
            lose += chance
        else:
            draw += chance
    return win, lose, draw


@functools.cache
def _dealer_totals(total: int, soft: bool) -> dict[int, float]:
    """Return the distribution of the dealer's final total, 22 for a bust; the dealer stands on soft 17."""
    if total >= 17:
        return {total: 1.0}
    totals: dict[int, float] = {}
    for card, chance in _CARDS:
        following = _hit(BlackjackState(total, soft, 0), card)
        ahead = {22: 1.0} if following is None else _dealer_totals(following.total, following.soft)
        for final, part in ahead.items():
            totals[final] = totals.get(final, 0.0) + chance * part
    return totals
