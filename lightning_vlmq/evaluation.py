"""Scores of episodes: one set of names, the same in tables, files and TensorBoard."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_vlmq.intervals import Interval, mean_interval, share_interval
from lightning_vlmq.turns import Episode

__all__ = ["EpisodeScores", "Scores", "episode_intervals", "print_scores", "score_episodes"]


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


class EpisodeScores(Metric):
    """Scores of episodes with 95 % intervals; under DDP of those of all ranks, who may have played unequally many.

    ``compute`` returns :class:`Scores` and the intervals of those that have one, by name.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Tensor]
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, episodes: Iterable[Episode]) -> None:
        """Adds complete episodes; a rank without any says so."""
        rows = torch.tensor(_rows(episodes), dtype=torch.float64, device=self.device)
        self.rows.append(rows.view(-1, len(_Row._fields)))

    def compute(self) -> tuple[Scores, dict[str, Interval]]:
        """Scores and intervals.

        Raises:
            ValueError: There is no episode with a reply.
        """
        rows = [_Row(*row) for row in dim_zero_cat(self.rows).tolist()]
        return _scores(rows), _intervals(rows)


class _Row(NamedTuple):
    """What counts of an episode."""

    replies: float
    valid: float
    goal: float
    env_return: float
    shaped_return: float


def score_episodes(episodes: Iterable[Episode]) -> Scores:
    """Scores of complete episodes; shares are of episodes, syntax accuracy is of replies.

    Raises:
        ValueError: There is no episode with a reply.
    """
    return _scores(_rows(episodes))


def episode_intervals(episodes: Iterable[Episode]) -> dict[str, Interval]:
    """95 % intervals of :func:`score_episodes`, by name; empty for less than two episodes."""
    return _intervals(_rows(episodes))


def _rows(episodes: Iterable[Episode]) -> list[_Row]:
    return [_Row(len(e), e.valid_replies, e.goal, e.env_return, e.shaped_return) for e in episodes if len(e)]


def _scores(rows: Sequence[_Row]) -> Scores:
    if not rows:
        raise ValueError("there are no complete episodes to score; collect or play some first")
    count, turns = len(rows), int(sum(row.replies for row in rows))
    return Scores(
        episodes=count,
        turns=turns,
        syntax_accuracy=sum(row.valid for row in rows) / turns,
        goal_reached=sum(row.goal for row in rows) / count,
        return_above_0=sum(row.env_return > 0 for row in rows) / count,
        mean_return=math.fsum(row.env_return for row in rows) / count,
        mean_shaped_return=math.fsum(row.shaped_return for row in rows) / count,
        mean_length=turns / count,
    )


def _intervals(rows: Sequence[_Row]) -> dict[str, Interval]:
    if len(rows) < 2:
        return {}
    ones, replies = [1.0] * len(rows), [row.replies for row in rows]
    return {
        "syntax_accuracy": share_interval([row.valid for row in rows], replies),
        "goal_reached": share_interval([row.goal for row in rows], ones),
        "return_above_0": share_interval([float(row.env_return > 0) for row in rows], ones),
        "mean_return": mean_interval([row.env_return for row in rows], ones),
        "mean_shaped_return": mean_interval([row.shaped_return for row in rows], ones),
        "mean_length": mean_interval(replies, ones),
    }


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
