"""Rows of benchmarks: ratios of two ways that were measured in turn, with their spread, as JSON.

Each benchmark writes its rows to ``benchmarks/results/<bench>.json``; ``python -m benchmarks.table`` makes the tables
of docs/benchmarks.md of them.
"""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

__all__ = ["RESULTS", "Row", "Spent", "machine", "read_rows", "row", "save", "spent", "without_demands"]

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "transformers", "peft", "trl")


class Row(NamedTuple):
    """One way over another.

    Attributes:
        bench: Name of the benchmark.
        case: What both ways did it on, and what was counted.
        ours: Name of the one way.
        other: Name of the other.
        ratio_median: Of the ratios of all rounds.
        ratio_min: The least of them.
        ratio_max: The largest.
        n: Rounds.
        machine: What it ran on, in plain words.
        versions: Of Python and of the packages that it took.
        unit: Of the next two.
        ours_median: What the one way took.
        other_median: What the other took.
        demanded: The figure that the ratio is held against; empty where there is none.
    """

    bench: str
    case: str
    ours: str
    other: str
    ratio_median: float
    ratio_min: float
    ratio_max: float
    n: int
    machine: str
    versions: dict[str, str]
    unit: str
    ours_median: float
    other_median: float
    demanded: str = ""


class Spent(NamedTuple):
    """Seconds on the two clocks: of this process's CPU time, which other jobs do not enter, and on the wall."""

    cpu: float
    wall: float

    def __str__(self) -> str:
        return f"{self.cpu:.2f} CPU s, {self.wall:.2f} s"

    def __add__(self, other: "Spent") -> "Spent":  # type: ignore[override]
        return Spent(self.cpu + other.cpu, self.wall + other.wall)


def spent(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Spent]:
    """What a function returns, and what it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function(*arguments)
    return result, Spent(time.process_time() - cpu, time.perf_counter() - wall)


def row(
    bench: str,
    case: str,
    ours: tuple[str, Sequence[float]],
    other: tuple[str, Sequence[float]],
    *,
    unit: str,
    machine: str,
    demanded: str = "",
) -> Row:
    """A row of two ways, each with its name and what it took, round by round; paired, since the rounds differ."""
    ratios = [one / two for one, two in zip(ours[1], other[1], strict=True)]
    return Row(
        bench=bench,
        case=case,
        ours=ours[0],
        other=other[0],
        ratio_median=round(median(ratios), 4),
        ratio_min=round(min(ratios), 4),
        ratio_max=round(max(ratios), 4),
        n=len(ratios),
        machine=machine,
        versions=_versions(),
        unit=unit,
        ours_median=float(f"{median(ours[1]):.4g}"),
        other_median=float(f"{median(other[1]):.4g}"),
        demanded=demanded,
    )


def without_demands(rows: Sequence[Row]) -> list[Row]:
    """Rows of another case than the figures are demanded for."""
    return [each._replace(demanded="") for each in rows]


def machine(note: str = "") -> str:
    """The machine in plain words, with the threads that PyTorch takes of it, and what else is to be said of it."""
    kind = {"x86_64": "x86", "AMD64": "x86", "aarch64": "ARM"}.get(platform.machine(), platform.machine())
    threads = torch.get_num_threads()
    words = f"{os.cpu_count()}-core {kind} CPU, {threads} thread{'s' if threads > 1 else ''}"
    return f"{words}, {note}" if note else words


def save(rows: Sequence[Row], folder: Path = RESULTS) -> Path:
    """Writes the rows of one benchmark, in place of those of an earlier run, and prints them."""
    (bench,) = {each.bench for each in rows}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{bench}.json"
    path.write_text(json.dumps([each._asdict() for each in rows], indent=1) + "\n")
    for each in rows:
        print(f"{each.case}: {each.ours} / {each.other} {each.ratio_median} ({each.ratio_min} to {each.ratio_max})")
    return path


def read_rows(path: Path) -> list[Row]:
    """Rows of a file."""
    return [Row(**each) for each in json.loads(path.read_text())]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
