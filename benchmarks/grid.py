"""The grid that chose the defaults: {trace 0, 1} x {full vocabulary, nucleus} x {MLP, embeddings} over seeds.

    python -m benchmarks.grid configs/numberline.yaml --seeds 1 2 3 --folder runs/grid --parallel 2

The critic of its eight cells reads the language head's hidden states, standardised; beside them stand runs in which one
of these two options is changed. Everything behind ``--`` goes to ``vlmq fit``. A run whose
``results.json`` stands already is not repeated. All cells of a seed train on the same demonstrations. The table holds,
for each cell, the mean and the worst seed of what matters: goal reached greedily, at temperature .4 and 1, syntax
accuracy at 1, goal reached on unseen font sizes and places, and start pairs solved greedily by the shortest way.
"""

import argparse
import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import mean
from typing import Any

from scripts.seeds import run_one, split_arguments

TRACES = (0.0, 1.0)
SUPPORTS = {"full": None, "nucleus": 8}
CRITICS = ("mlp", "embeddings")
# Each changes one of these.
COMMON = {"critic_states": "adapted", "critic_inputs": "standardised"}
BESIDE = {
    "critic_inputs": ("raw",),
    "critic_states": ("detached", "base"),
}
COLUMNS = {
    "greedy": ("trained", "goal_reached"),
    "temperature .4": ("trained at 0.4", "goal_reached"),
    "temperature 1": ("trained at 1", "goal_reached"),
    "syntax at 1": ("trained at 1", "syntax_accuracy"),
    "unseen": ("trained, unseen fonts", "goal_reached"),
    "start pairs": ("scoreboards", "NumberLine, every start pair, greedy", "pairs_shortest"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/grid"))
    parser.add_argument("--parallel", type=int, default=1, help="runs at once (each then gets one thread)")
    arguments, passed_on = split_arguments(sys.argv[1:])
    options = parser.parse_args(arguments)

    cells = _cells()

    def run(name: str, seed: int) -> dict[str, Any]:
        extra = [*passed_on, *cells[name], f"--data.folder={options.folder / f'data-{seed}'}"]
        return run_one(options.config, seed, options.folder / name / f"seed-{seed}", extra, options.parallel)

    rows: dict[str, dict[str, list[Any]]] = {}
    with ThreadPoolExecutor(options.parallel) as pool:
        # Cell by cell, so that runs at the same time have different seeds: each then collects its own demonstrations.
        runs = {name: [pool.submit(run, name, seed) for seed in options.seeds] for name in cells}
        for name, futures in runs.items():
            results = [future.result() for future in futures]
            rows[name] = {title: [reduce(getitem, path, r) for r in results] for title, path in COLUMNS.items()}
            print(_line(name, rows[name]), flush=True)
    print("\n| | " + " | ".join(COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
    for name, row in rows.items():
        print(_line(name, row))
    (options.folder / "grid.json").write_text(json.dumps(rows, indent=1))


def _cells() -> dict[str, list[str]]:
    """Arguments of ``vlmq fit`` by a cell's name, which is its folder's, too."""
    options: dict[str, Any]
    cells = {}
    for trace, support, critic in itertools.product(TRACES, SUPPORTS, CRITICS):
        options = COMMON | {"trace": trace, "top_k": json.dumps(SUPPORTS[support]), "critic": critic}
        cells[f"trace{trace:g}-{support}-{critic}"] = [f"--model.{key}={value}" for key, value in options.items()]
    for key, values in BESIDE.items():
        for value in values:
            cells[f"{key}-{value}"] = [f"--model.{k}={v}" for k, v in (COMMON | {key: value}).items()]
    return cells


def _line(name: str, row: dict[str, list[Any]]) -> str:
    cells = (
        f"{mean(values):.1f} ({min(values)})" if title == "start pairs" else f"{mean(values):.1%} ({min(values):.1%})"
        for title, values in row.items()
    )
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
