"""Scores of episodes: one set of names, the same in tables, files and TensorBoard."""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from lightning_vlmq.turns import Episode

__all__ = ["Scores", "print_scores", "score_episodes"]


class Scores(TypedDict):
    """What is reported of a set of episodes.

    ``goal_reached`` counts episodes that reached the environment's goal, ``return_above_0`` those whose sum
    of the environment's own rewards is positive (the success of the original Gym Cards); the two differ.
    """

    episodes: int
    turns: int
    syntax_accuracy: float
    goal_reached: float
    return_above_0: float
    mean_return: float
    mean_shaped_return: float
    mean_length: float


def score_episodes(episodes: Iterable[Episode]) -> Scores:
    """Scores of complete episodes; shares are of episodes, syntax accuracy is of replies.

    Raises:
        ValueError: There is no episode with a reply.
    """
    rows = [e for e in episodes if len(e)]
    if not rows:
        raise ValueError("there are no complete episodes to score; collect or play some first")
    count, turns = len(rows), sum(len(e) for e in rows)
    return Scores(
        episodes=count,
        turns=turns,
        syntax_accuracy=sum(e.valid_replies for e in rows) / turns,
        goal_reached=sum(e.goal for e in rows) / count,
        return_above_0=sum(e.env_return > 0 for e in rows) / count,
        mean_return=math.fsum(e.env_return for e in rows) / count,
        mean_shaped_return=math.fsum(e.shaped_return for e in rows) / count,
        mean_length=turns / count,
    )


_COLUMNS = {
    "episodes": ("episodes", "{:d}"),
    "syntax_accuracy": ("syntax accuracy", "{:.1%}"),
    "goal_reached": ("goal reached", "{:.1%}"),
    "return_above_0": ("return > 0", "{:.1%}"),
    "mean_return": ("mean return", "{:.3f}"),
    "mean_shaped_return": ("with penalties", "{:.3f}"),
    "mean_length": ("turns", "{:.2f}"),
}


def print_scores(scores: Mapping[str, Scores], title: str, console: Console | None = None) -> None:
    """Prints a table, one row an agent."""
    # a log has no width of its own: wide enough that no cell of our own tables is wrapped
    console = console or Console(width=None if sys.stdout.isatty() else 125)
    table = Table(title=title)
    table.add_column("")
    for header, _ in _COLUMNS.values():
        table.add_column(header, justify="right")
    for name, row in scores.items():
        values: Mapping[str, object] = {**row}
        table.add_row(name, *(form.format(values[key]) for key, (_, form) in _COLUMNS.items()))
    console.print(table)
