"""What one cell of the table is, what is scored in it, and the file that keeps the finished ones."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_vlmq.evaluation import Scores, episode_intervals, score_episodes
from lightning_vlmq.files import write_atomic
from lightning_vlmq.intervals import Interval, mean_interval
from lightning_vlmq.prompts import AnyActionPrompt
from lightning_vlmq.turns import Episode

__all__ = ["Cell", "Result", "Sheet", "score_cell"]


@dataclass(frozen=True, slots=True)
class Cell:
    """A line of the table.

    Attributes:
        model: Folder or hub name; empty for ``random``, which needs none.
        action_prompt: How replies come about.
        thought: True if the prompt asks for a thought.
    """

    model: str
    action_prompt: AnyActionPrompt
    thought: bool

    def __str__(self) -> str:
        words = (self.model, self.action_prompt, "thought" if self.thought else "")
        return ", ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class Result:
    """What was seen in a cell.

    Attributes:
        scores: As everywhere.
        tokens_a_reply: Tokens that the model wrote for a reply, its stop token included; 0 for ``random``.
        cut: Share of replies that hit the limit before they ended.
        intervals: 95 % intervals by the name of the score.
        replies: The most frequent replies and how many of all were so.
        base: Fingerprint of the model's weights; empty for ``random``.
        seconds: Time it took.
    """

    scores: Scores
    tokens_a_reply: float
    cut: float
    intervals: dict[str, Interval]
    replies: list[tuple[str, int]]
    base: str = ""
    seconds: float = 0.0


def score_cell(episodes: Sequence[Episode], base: str = "", seconds: float = 0.0) -> Result:
    """Scores complete episodes, at least two.

    Args:
        episodes: What was played.
        base: Fingerprint of the model's weights.
        seconds: Time it took.
    """
    turns = [turn for episode in episodes for turn in episode.turns if turn.reply is not None]
    lengths = [len(episode) for episode in episodes]
    tokens = [sum(len(turn.log_probs) for turn in episode.turns) for episode in episodes]
    return Result(
        scores=score_episodes(episodes),
        tokens_a_reply=sum(tokens) / len(turns),
        cut=sum(turn.cut for turn in turns) / len(turns),
        intervals=episode_intervals(episodes) | {"tokens_a_reply": mean_interval(tokens, lengths)},
        replies=Counter(turn.reply or "" for turn in turns).most_common(3),
        base=base,
        seconds=round(seconds, 1),
    )


class Sheet:
    """The finished cells of a folder in ``prompting.json``, which is written anew as a whole with each.

    Args:
        folder: Where the file is; made if missing.
        settings: What all cells have in common.

    Attributes:
        results: By cell, in the order in which they were played.
        failed: Why a model could not be played this time, by its name.

    Raises:
        ValueError: The folder's cells were played with other settings.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(folder) / "prompting.json"
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # tuples as they will be read back
        self.results: dict[Cell, Result] = {}
        self.failed: dict[str, str] = {}
        if self.path.exists():
            self._read()
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, cell: Cell, result: Result) -> None:
        """Notes a finished cell and writes the file."""
        self.results[cell] = result
        cells = [asdict(cell) | asdict(result) for cell, result in self.results.items()]
        content = {"settings": self.settings, "cells": cells}
        write_atomic(self.path, json.dumps(content, indent=1, ensure_ascii=False).encode())

    def _read(self) -> None:
        found = json.loads(self.path.read_text())
        for key in sorted(self.settings.keys() | found["settings"].keys()):
            own, other = self.settings.get(key), found["settings"].get(key)
            if own != other:
                raise ValueError(
                    f"{self.path}: these cells were played with {key} = {other!r}, not {own!r}; "
                    f"choose another folder or delete this file"
                )
        for row in found["cells"]:
            cell = Cell(**{name: row.pop(name) for name in Cell.__slots__})
            row["intervals"] = {name: (low, high) for name, (low, high) in row["intervals"].items()}
            row["replies"] = [(reply, count) for reply, count in row["replies"]]
            self.results[cell] = Result(**row)
