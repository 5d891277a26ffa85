"""The grid that chose the defaults: {trace 0, 1} x {full vocabulary, nucleus} x {MLP, embeddings} over seeds.

    python -m benchmarks.grid configs/numberline.yaml --seeds 1 2 3 --folder runs/grid

All cells of a seed train on the same demonstrations. The table holds, for each cell, the mean and the worst seed of
what matters: goal reached greedily, at temperature .4 and 1, and syntax accuracy at 1.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from scripts.seeds import run_one

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
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    for trace, support, critic in itertools.product(TRACES, SUPPORTS, CRITICS):
        name = f"trace {trace:g}, {support}, {critic}"
        results = []
        for seed in options.seeds:
            extra = [f"--model.trace={trace}", f"--model.critic={critic}"]
            extra += [f"--model.top_k={json.dumps(SUPPORTS[support])}"]
            extra += [f"--data.folder={options.folder / f'data-{seed}'}", f"--threads={options.threads}"]
            folder = options.folder / name.replace(", ", "-").replace(" ", "") / f"seed-{seed}"
            results.append(run_one(options.config, seed, folder, extra, 1))
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
