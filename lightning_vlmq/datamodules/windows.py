"""Turns of a store in windows: consecutive turns of an episode, drawn together so that the next turn is read once."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_vlmq.store import TurnStore
from lightning_vlmq.turns import Turn

__all__ = ["Rows", "Window", "Windows", "drawn", "read"]

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Window(NamedTuple):
    """Consecutive turns of an episode.

    Attributes:
        store: Where they are.
        row: Of the first one.
        turns: How many.
    """

    store: TurnStore
    row: int
    turns: int


class Windows:
    """A store's turns, cut into windows; those of one turn each are the turns.

    A window ends after ``length`` turns, where the episode ends, and before a turn that is not to be drawn. Cuts count
    from an episode's first turn, so that an episode of at most ``length`` turns is one window.

    Args:
        store: The store.
        rows: Rows to draw, in order ``[N]``; a row and the one behind it are turns of one episode.
        length: Turns of a window at most.
    """

    def __init__(self, store: TurnStore, rows: Rows, length: int) -> None:
        self.store = store
        self.rows = rows
        runs = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        inside = np.arange(len(rows)) - np.repeat(runs, np.diff(runs, append=len(rows)))
        self.starts: Rows = np.flatnonzero(inside % length == 0)
        self._bounds = np.append(self.starts, len(rows))

    def window(self, place: int, most: int) -> Window:
        """Turns from a place in ``rows`` to the end of its window, ``most`` at most."""
        end = int(self._bounds[np.searchsorted(self.starts, place, side="right")])
        return Window(self.store, int(self.rows[place]), min(end - place, most))

    def shuffled(self, first: int, count: int, *seed: int) -> list[Window]:
        """``count`` turns, from number ``first`` on, of endless passes over the windows.

        A pass has every turn once, its windows in an order of its own. A window may be cut at both ends of what is
        asked for; the rest of it is what comes before or behind.

        Args:
            first: Turns that came before.
            count: Turns to give.
            *seed: Of the orders.
        """
        found: list[Window] = []
        while count:
            number, place = divmod(first, len(self.rows))
            order, ends = _pass(self, *seed, number)
            at = int(np.searchsorted(ends, place, side="right"))
            left = int(ends[at]) - place
            found.append(self.window(int(self._bounds[order[at] + 1]) - left, count))
            first, count = first + found[-1].turns, count - found[-1].turns
        return found

    def lengths(self) -> Rows:
        """Turns of each window."""
        return np.diff(self._bounds)


def drawn(own: Windows, others: Windows, share: float, count: int, rng: np.random.Generator) -> list[Window]:
    """``count`` turns, drawn with replacement: at each place own ones with the chance ``share``, each as likely.

    The first window begins at any turn, whole ones follow, and the last one is cut. This is a stationary process: if
    all turns were equally likely at one place, they are at the next one. (Were the first one whole, too, an episode's
    first turns would come more often than its last ones.)

    Args:
        own: Windows of own turns.
        others: Windows of other ones.
        share: Share of own turns.
        count: Turns to draw.
        rng: The generator.
    """
    chances = rng.random(count)
    # windows of the two kinds are not equally long, and it is turns that are to have this share
    windows = [part * len(of.starts) / max(1, len(of.rows)) for part, of in ((share, own), (1 - share, others))]
    found: list[Window] = []
    while count:
        if not found:
            source = own if chances[0] < share else others
            place = rng.choice(len(source.rows))
        else:
            source = own if chances[len(found)] < windows[0] / sum(windows) else others
            place = rng.choice(source.starts)
        found.append(source.window(int(place), count))
        count -= found[-1].turns
    return found


def read(windows: Sequence[Window]) -> tuple[list[Turn], list[Turn | None]]:
    """Turns of windows and the row after each of them; ``None`` where that is the turn behind it."""
    turns: list[Turn] = []
    successors: list[Turn | None] = []
    for store, row, count in windows:
        turns += [store[row + step] for step in range(count)]
        successors += [*[None] * (count - 1), store[row + count]]
    return turns, successors


@functools.lru_cache(maxsize=4)
def _pass(windows: Windows, *seed: int) -> tuple[Rows, Rows]:
    """Windows in the order of a pass, and behind which turn of it each of them ends."""
    order = np.random.default_rng(seed).permutation(len(windows.starts))
    return order, np.cumsum(windows.lengths()[order])
