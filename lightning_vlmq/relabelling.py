"""Stores with other masks and weights: plain SFT, return-filtered SFT and instruction rows are runs, not code."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_vlmq.store import TurnStore
from lightning_vlmq.turns import Episode, Turn

__all__ = ["keep_returns", "relabel"]


def relabel(store: TurnStore, folder: str | Path, function: Callable[[Turn], Turn], **options: Any) -> TurnStore:
    """Copy of a store with other ``imitate``, ``td`` and ``weight``; episodes with missing rows are left out.

    Args:
        store: Where the turns come from; it stays as it is.
        folder: New folder.
        function: Turn -> turn that differs in the three fields at most, e.g. from :func:`keep_returns`.
        **options: Arguments of the new :class:`TurnStore`.

    Raises:
        ValueError: The folder holds turns already, or the function changes another field.
    """
    copy = TurnStore(folder, **options)
    if len(copy):
        raise ValueError(f"{copy.folder} holds turns already; give a new folder")
    for episode in store.episodes():
        turns = tuple(function(turn) for turn in episode.turns)
        for old, new in zip(episode.turns, turns, strict=True):
            if replace(new, imitate=old.imitate, td=old.td, weight=old.weight) != old:
                raise ValueError(
                    f"episode {old.episode!r}, turn {old.index}: relabel changes only imitate, td and weight"
                )
        copy.append(Episode(turns))
    copy.flush()
    return copy


def keep_returns(
    store: TurnStore, *, minimum: float | None = None, fraction: float | None = None
) -> Callable[[Turn], Turn]:
    """Function for :func:`relabel`: imitate only episodes with a high return of the environment's own rewards.

    Args:
        store: Store whose returns are compared.
        minimum: Least return of an episode that is imitated.
        fraction: Or: share of the episodes to imitate, best first; ties with the last one are imitated too.

    Raises:
        ValueError: Not exactly one of the two is given, or the fraction is not in (0, 1].
    """
    if (minimum is None) == (fraction is None):
        raise ValueError("keep_returns needs either minimum or fraction")
    columns = store.columns(["episode", "env_reward"])
    returns: dict[str, float] = {}
    for episode, reward in zip(columns["episode"].tolist(), columns["env_reward"].tolist(), strict=True):
        returns[episode] = returns.get(episode, 0.0) + reward
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction {fraction} must be above 0 and at most 1")
        ranked = sorted(returns.values(), reverse=True)
        minimum = ranked[math.ceil(fraction * len(ranked)) - 1] if ranked else 0.0
    kept = {episode for episode, value in returns.items() if minimum is not None and value >= minimum}
    return lambda turn: replace(turn, imitate=turn.imitate and turn.episode in kept)
