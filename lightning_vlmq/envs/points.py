"""EZPoints and Points24: make a formula of the cards, item by item, that comes to a number."""

from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from lightning_vlmq.envs.arithmetic import solutions, value
from lightning_vlmq.envs.cards import RANKS, SUITS, on_table, table
from lightning_vlmq.envs.pictures import Picture, text_sprite
from lightning_vlmq.envs.text import Limits
from lightning_vlmq.parsing import exact_match

__all__ = ["EZPoints", "Points24"]

_SIZE = 300
_CARD = (60, 84)
_GAP = 6
_CARDS_Y = 118
_FORMULA = (12, 24)
"""Left upper corner of the formula."""
_FONT = 32
_NUMBERS = tuple(str(number) for number in range(1, 11))


class Points24(gym.Env[Picture, np.int64]):
    """Four cards that may make 24 (73.1 % of deals can) by + - * / and parentheses; 17 actions.

    An agent writes a formula item by item: a number of a card, J, Q and K counting 10, a sign, or ``=`` to end it.
    Implements :class:`~lightning_vlmq.envs.text.TextTask`.

    Args:
        formula_in_text: The prompt says the formula, too; ``False`` leaves it to the picture.
        compat: Formulas are read as in the Gym Cards that were published: items are written without spaces and handed
            to Python, so that ``2`` and ``4`` make 24 and two ``*`` a power, and compared in floating point.
        render_mode: ``rgb_array``, for Gymnasium.

    Attributes:
        target: What a formula should come to.
        cards: Number of cards.
        signs: Operators and parentheses, without ``=``.
        most_items: A step that begins with more items than this ends the episode.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  Gymnasium declares it so
    name = "Points24"
    objective = "Write a formula of all four cards that equals 24, item by item. J, Q and K count 10."
    actions = "A number 1 to 10 of a card, +, -, *, /, ( or ) goes on with the formula, = ends it."
    example = "+"
    target = 24
    cards = 4
    signs = "+-*/()"
    most_items = 20
    limits = Limits(step_limit=25)

    def __init__(
        self, formula_in_text: bool = True, compat: bool = False, render_mode: str | None = "rgb_array"
    ) -> None:
        self.formula_in_text = formula_in_text
        self.compat = compat
        self.render_mode = render_mode
        self._texts = (*_NUMBERS, *self.signs, "=")
        self.observation_space = spaces.Box(0, 255, (_SIZE, _SIZE, 3), np.uint8)
        self.action_space = spaces.Discrete(len(self._texts))
        self._hand: list[tuple[str, str]] = []
        self._formula: list[str] = []
        self._over = True
        self._solved = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]:
        """Deal.

        Args:
            seed: Seeds everything that is drawn, the looks of the cards too; ``None`` goes on from the last seed.
            options: ``cards`` (list of ranks) sets the cards instead of drawing them; suits are still drawn.

        Raises:
            ValueError: If an option or a rank is unknown, or their number is not the game's.
        """
        super().reset(seed=seed)
        ranks = self._deal()
        if options:
            if options.keys() != {"cards"}:
                raise ValueError(f"options {sorted(options)} are not {self.name}'s: give cards")
            ranks = list(options["cards"])
            if len(ranks) != self.cards or not set(ranks) <= set(RANKS):
                raise ValueError(f"cards {ranks}: give {self.cards} of {', '.join(RANKS)}")
        self._hand = [(rank, SUITS[int(self.np_random.integers(4))]) for rank in ranks]
        self._formula, self._over, self._solved = [], False, False
        return self.render(), self._info()

    def step(self, action: int | np.int64) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        """Write an item; ``=``, the last action, ends the formula.

        +10 for a formula that takes each card once and comes to the target, -1 for another one; -1 for a number that is
        not, or no longer, on the cards, which spoils the formula; -1 and the end where the formula is too long.

        Raises:
            ValueError: If the episode is over or there is no such action.
        """
        if self._over:
            raise ValueError("the episode is over: call reset() before step()")
        if action not in range(len(self._texts)):
            raise ValueError(f"action {action!r} is not {self.name}'s: 0 to {len(self._texts) - 1}")
        item, reward = self._texts[action], 0.0
        if len(self._formula) > self.most_items:
            self._over, reward = True, -1.0
        elif item == "=":
            self._over = True
            taken = Counter(number for number in self._formula if number in _NUMBERS)
            self._solved = taken == self._cards() and value(self._formula, as_text=self.compat) == self.target
            reward = 10.0 if self._solved else -1.0
        else:
            reward = -1.0 if item in _NUMBERS and not self._left()[item] else 0.0
            self._formula.append(item)
        return self.render(), reward, self._over, False, self._info()

    def render(self) -> Picture:
        """Draw the state, ``[300, 300, 3]``: the formula above the cards."""
        picture = table(_SIZE).copy()
        formula = f"Formula: {''.join(self._formula)}"
        x, y = _FORMULA
        size = next(s for s in range(_FONT, 0, -1) if text_sprite(formula, s).shape[1] <= _SIZE - 2 * x)
        sprite = text_sprite(formula, size)
        picture[y : y + sprite.shape[0], x : x + sprite.shape[1]] = sprite
        width, height = _CARD
        for place, (rank, suit) in enumerate(self._hand):
            left = (_SIZE - 4 * (width + _GAP) + _GAP) // 2 + place * (width + _GAP)
            picture[_CARDS_Y : _CARDS_Y + height, left : left + width] = on_table((rank, suit), width, height)
        return picture

    def images(self) -> tuple[Picture, ...]:
        """Return the one picture."""
        return (self.render(),)

    def text(self) -> str:
        """Return for instance ``Formula: 5+``, or nothing where the picture alone shows it."""
        return f"Formula: {''.join(self._formula)}" if self.formula_in_text else ""

    def summary(self) -> str:
        """Return for instance ``Cards: K 2. Formula: 10+``."""
        return f"Cards: {' '.join(rank for rank, _ in self._hand)}. Formula: {''.join(self._formula)}"

    def parse(self, text: str) -> int | None:
        """Return the index of a number, an operator, a parenthesis or ``=``, by exact match."""
        return exact_match(text, self._texts)

    def valid_actions(self) -> list[str]:
        """Return all actions: numbers 1 to 10, operators and ``=``."""
        return list(self._texts)

    def expert_action(self) -> str | None:
        """Return the next item of the shortest formula that goes on from the present one; ``=`` where there is none."""
        if self._over:
            return None
        numbers = tuple(sorted(min(10, RANKS.index(rank) + 1) for rank, _ in self._hand))
        operators = "".join(sign for sign in self.signs if sign not in "()")
        written = tuple(self._formula)
        for items in solutions(numbers, self.target, operators, "(" in self.signs):
            if items[: len(written)] == written:
                return (*items, "=")[len(written)]
        return "="

    def goal_reached(self) -> bool:
        """Return True if the formula came to the target."""
        return self._solved

    def _left(self) -> Counter[str]:
        """Numbers of the cards that the formula has not taken yet."""
        return self._cards() - Counter(self._formula)

    def _cards(self) -> Counter[str]:
        """Numbers of the cards."""
        return Counter(str(min(10, RANKS.index(rank) + 1)) for rank, _ in self._hand)

    def _deal(self) -> list[str]:
        """Ranks of the cards."""
        return [RANKS[int(rank)] for rank in self.np_random.integers(0, 13, size=self.cards)]

    def _info(self) -> dict[str, Any]:
        return {"cards": tuple(rank for rank, _ in self._hand), "formula": tuple(self._formula)}


class EZPoints(Points24):
    """Two cards that always can make 12 by + or *; 13 actions. All else as in :class:`Points24`."""

    name = "EZPoints"
    objective = "Write a formula of both cards that equals 12, item by item. J, Q and K count 10."
    actions = "A number 1 to 10 of a card, + or * goes on with the formula, = ends it."
    target = 12
    cards = 2
    signs = "+*"
    most_items = 5
    limits = Limits()

    def _deal(self) -> list[str]:
        """The second card is the first one's complement, or in half of the cases what multiplies it to 12."""
        first = int(self.np_random.integers(2, 14))
        number = min(10, first)
        by_product = number in (2, 3, 4, 6) and self.np_random.random() < 0.5
        second = 12 // number if by_product else 12 - number
        if second == 10:
            second += int(self.np_random.integers(4))
        ranks = [RANKS[first - 1], RANKS[second - 1]]
        return ranks[::-1] if self.np_random.random() < 0.5 else ranks
