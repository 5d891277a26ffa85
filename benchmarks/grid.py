"""The grid that chose the defaults: {trace 0, 1} x {full vocabulary, nucleus} x {MLP, embeddings} over seeds.

    python -m benchmarks.grid configs/numberline.yaml --seeds 1 2 3 --folder runs/grid --parallel 2

Everything behind ``--`` goes to ``vlmq fit``. A run whose ``results.json`` stands already is not repeated. All cells of
a seed train on the same demonstrations. The table holds, for each cell, the mean and the worst seed of what matters:
goal reached greedily, at temperature .4 and 1, and syntax accuracy at 1.
"""

import argparse
import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from scripts.seeds import run_one, split_arguments

TRACES = (0.0, 1.0)
SUPPORTS = {"full": None, "nucleus": 8}
CRITICS = ("mlp", "embeddings")
COLUMNS = (
    ("trained", "goal_reached"),
    ("trained at 0.4", "goal_reached"),
    ("trained at 1", "goal_reached"),
    ("trained at 1", "syntax_accuracy"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=Path("runs/grid"))
    parser.add_argument("--parallel", type=int, default=1, help="runs at once (each then gets one thread)")
    arguments, passed_on = split_arguments(sys.argv[1:])
    options = parser.parse_args(arguments)

    def run(cell: tuple[float, str, str], seed: int) -> dict[str, Any]:
        trace, support, critic = cell
        extra = [f"--model.trace={trace}", f"--model.critic={critic}"]
        extra += [f"--model.top_k={json.dumps(SUPPORTS[support])}"]
        extra += [f"--data.folder={options.folder / f'data-{seed}'}", *passed_on]
        folder = options.folder / f"trace{trace:g}-{support}-{critic}" / f"seed-{seed}"
        return run_one(options.config, seed, folder, extra, options.parallel)

    rows: dict[str, dict[str, Any]] = {}
    cells = list(itertools.product(TRACES, SUPPORTS, CRITICS))
    with ThreadPoolExecutor(options.parallel) as pool:
        # Cell by cell, so that runs at the same time have different seeds: each then collects its own demonstrations.
        runs = [[pool.submit(run, cell, seed) for seed in options.seeds] for cell in cells]
        for (trace, support, critic), futures in zip(cells, runs, strict=True):
            results, name = [future.result() for future in futures], f"trace {trace:g}, {support}, {critic}"
            rows[name] = {"/".join(c): [result[c[0]][c[1]] for result in results] for c in COLUMNS}
            print(_line(name, rows[name]), flush=True)
    print("\n| | " + " | ".join("/".join(c) for c in COLUMNS) + " |\n|---|" + "---|" * len(COLUMNS))
    for name, row in rows.items():
        print(_line(name, row))
    (options.folder / "grid.json").write_text(json.dumps(rows, indent=1))


def _line(name: str, row: dict[str, list[float]]) -> str:
    cells = (f"{sum(values) / len(values):.1%} ({min(values):.1%})" for values in row.values())
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
