"""Blackjack: hit or stand, with the cards read from a picture."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from lightning_vlmq.envs.cards import RANKS, SUITS, on_table, table
from lightning_vlmq.envs.pictures import Picture
from lightning_vlmq.parsing import exact_match

__all__ = ["Blackjack", "BlackjackState", "card_layout", "card_value", "hand_value", "optimal_action"]

_SIZE = 300
_GAP = 6
_DEALER_Y = 8
_PLAYER_Y = 118
_CARD = (60, 84)
_ACTIONS = ("stand", "hit")


class BlackjackState(NamedTuple):
    """What decides a player's move: the state of the exact solution, equal to the plain tuple.

    Attributes:
        total: The hand's value, an ace counted as 11 where that does not exceed 21.
        soft: True if an ace counts as 11.
        dealer: Value of the dealer's open card, 1 (ace) to 10.
    """

    total: int
    soft: bool
    dealer: int


class Card(NamedTuple):
    """A card as it looks."""

    rank: str
    suit: str


class Blackjack(gym.Env[Picture, np.int64]):
    """The dealer's row (one card open, one covered) above the player's cards; ``stand`` (0) or ``hit`` (1).

    Infinite deck; cards worth ten are shown as J, Q or K; the dealer draws to 17 and stands on soft 17. Reward +1, 0 or
    -1 at the end, no bonus for a natural; the goal is a win. Implements :class:`~lightning_vlmq.envs.text.TextTask`.

    Args:
        render_mode: ``rgb_array``, for Gymnasium.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  Gymnasium declares it so
    name = "Blackjack"
    objective = "Beat the dealer without going over 21."
    actions = "hit draws a card, stand ends your turn."
    example = "hit"

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (_SIZE, _SIZE, 3), np.uint8)
        self.action_space = spaces.Discrete(2)
        self._player: list[Card] = []
        self._dealer: list[Card] = []
        self._over = True
        self._won = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]:
        """Deal two cards each.

        Args:
            seed: Seeds everything that is drawn, the looks of the cards too; ``None`` goes on from the last seed.
            options: ``player`` (list of ranks, not over 21) and ``dealer`` (rank of the open card) set the hands
                instead of drawing them; suits and the dealer's covered card are still drawn.

        Raises:
            ValueError: If an option or a rank is unknown, or the player's hand is empty or over 21.
        """
        super().reset(seed=seed)
        self._player = [self._draw(), self._draw()]
        self._dealer = [self._draw(), self._draw()]
        self._over = self._won = False
        if options:
            if options.keys() != {"player", "dealer"}:
                raise ValueError(f"options {sorted(options)} are not Blackjack's: give both player and dealer")
            ranks = [*options["player"], options["dealer"]]
            unknown = [rank for rank in ranks if rank not in RANKS]
            if unknown:
                raise ValueError(f"rank {unknown[0]!r} is unknown: choose from {', '.join(RANKS)}")
            if not options["player"] or hand_value(map(card_value, options["player"]))[0] > 21:
                raise ValueError(f"player {options['player']!r} is empty or over 21: give a hand that can still play")
            cards = [Card(rank, self._draw().suit) for rank in ranks]
            self._player, self._dealer[0] = cards[:-1], cards[-1]
        return self.render(), self._info()

    def step(self, action: int | np.int64) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        """Stand (0) or hit (1).

        Raises:
            ValueError: If the episode is over or the action is not 0 or 1.
        """
        if self._over:
            raise ValueError("the episode is over: call reset() before step()")
        if action not in (0, 1):
            raise ValueError(f"action {action!r} is not Blackjack's: 0 stands, 1 hits")
        reward = 0.0
        if action == 1:
            self._player.append(self._draw())
            self._over = _total(self._player) > 21
            reward = -1.0 if self._over else 0.0
        else:
            while _total(self._dealer) < 17:
                self._dealer.append(self._draw())
            mine, theirs = _total(self._player), _total(self._dealer)
            self._over = True
            reward = 1.0 if theirs > 21 else float(np.sign(mine - theirs))
        self._won = reward > 0
        return self.render(), reward, self._over, False, self._info()

    def render(self) -> Picture:
        """Draw the state, ``[300, 300, 3]``; the dealer's second card stays covered."""
        picture = table(_SIZE).copy()
        if self._dealer:
            places, (width, height) = card_layout(2)
            for face, (x, _) in zip((self._dealer[0], None), places, strict=True):
                picture[_DEALER_Y : _DEALER_Y + height, x : x + width] = on_table(face, width, height)
        places, (width, height) = card_layout(len(self._player))
        for card, (x, y) in zip(self._player, places, strict=True):
            picture[y : y + height, x : x + width] = on_table(card, width, height)
        return picture

    def images(self) -> tuple[Picture, ...]:
        """Return the one picture."""
        return (self.render(),)

    def text(self) -> str:
        """Return nothing: the picture says it all."""
        return ""

    def summary(self) -> str:
        """Return for instance ``Dealer shows K. You hold A 7, soft 18.``."""
        state = self.state()
        ranks = " ".join(card.rank for card in self._player)
        return f"Dealer shows {self._dealer[0].rank}. You hold {ranks}, {'soft ' * state.soft}{state.total}."

    def state(self) -> BlackjackState:
        """Return the state of the exact solution (see :mod:`lightning_vlmq.envs.exact_blackjack`)."""
        total, soft = hand_value(card_value(card.rank) for card in self._player)
        return BlackjackState(total, soft, card_value(self._dealer[0].rank))

    def parse(self, text: str) -> int | None:
        """Return 0 for ``stand``, 1 for ``hit``, by exact match."""
        return exact_match(text, _ACTIONS)

    def valid_actions(self) -> list[str]:
        """Return ``stand`` and ``hit``."""
        return list(_ACTIONS)

    def expert_action(self) -> str | None:
        """Return the optimal action; ``None`` once the episode is over."""
        return None if self._over else optimal_action(self.state())

    def goal_reached(self) -> bool:
        """Return True if the hand was won."""
        return self._won

    def _draw(self) -> Card:
        value = min(10, int(self.np_random.integers(1, 14)))
        rank = RANKS[10 + int(self.np_random.integers(3))] if value == 10 else RANKS[value - 1]
        return Card(rank, SUITS[int(self.np_random.integers(4))])

    def _info(self) -> dict[str, Any]:
        return {"player": tuple(card.rank for card in self._player), "dealer": self._dealer[0].rank}


def card_value(rank: str) -> int:
    """Return what a card counts: 1 for an ace, 10 for pictures."""
    return min(10, RANKS.index(rank) + 1)


def hand_value(values: Iterable[int]) -> tuple[int, bool]:
    """Return the value of a hand and whether an ace counts as 11.

    Args:
        values: Values of the cards, aces as 1.
    """
    hand = list(values)
    total = sum(hand)
    soft = 1 in hand and total + 10 <= 21
    return total + 10 * soft, soft


def optimal_action(state: BlackjackState) -> str:
    """Return the action of the optimal rule (infinite deck, dealer stands on soft 17, no naturals).

    Hard hands hit below 17 against an ace and 7 to 10, below 13 against 2 and 3, below 12 against 4 to 6. Soft hands
    stand from 19 against an ace, 9 and 10, else from 18.
    """
    if state.soft:
        stand_from = 19 if state.dealer in (1, 9, 10) else 18
    elif state.dealer in (2, 3):
        stand_from = 13
    elif state.dealer in (4, 5, 6):
        stand_from = 12
    else:
        stand_from = 17
    return "hit" if state.total < stand_from else "stand"


@functools.cache
def card_layout(count: int) -> tuple[tuple[tuple[int, int], ...], tuple[int, int]]:
    """Place the player's cards in rows, each card wholly visible, as large as their number allows.

    Up to eight cards keep their size and a new card moves no other one; 22 cards, one more than a hand can
    hold, still fit.

    Args:
        count: Number of cards.

    Returns:
        The left upper corner ``(x, y)`` of each card, and ``(width, height)`` of all of them, in pixels.
    """
    for width in range(_CARD[0], 0, -1):
        height = width * _CARD[1] // _CARD[0]
        columns = (_SIZE - _GAP) // (width + _GAP)
        rows = -(-count // columns)
        if _PLAYER_Y + rows * (height + _GAP) <= _SIZE:
            left = (_SIZE - columns * (width + _GAP) + _GAP) // 2
            places = ((left + i % columns * (width + _GAP), i // columns * (height + _GAP)) for i in range(count))
            return tuple((x, _PLAYER_Y + y) for x, y in places), (width, height)
    raise AssertionError(f"{count} cards do not fit")


def _total(cards: list[Card]) -> int:
    return hand_value(card_value(card.rank) for card in cards)[0]
