"""Runs a configuration with several seeds and prints mean and worst of every score.

    python scripts/seeds.py configs/numberline.yaml --seeds 1 2 3 4 5 --folder runs/seeds/numberline
    python scripts/seeds.py configs/numberline.yaml --seeds 1 2 3 --folder runs/seeds/sft -- \
        --model.td_weight 0

Everything behind ``--`` goes to ``vlmq fit``. A run whose ``results.json`` stands already is not repeated.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FIT = [sys.executable, "-c", "from lightning_vlmq.cli import main; main()", "fit"]
HIGHER_IS_WORSE = {"lose", "mean_length", "minutes", "peak_memory_mb"}


def main() -> None:
    """Entry."""
    arguments, extra = split_arguments(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration of `vlmq fit`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--folder", required=True, help="runs go to FOLDER/seed-N, the table to FOLDER/summary.json")
    parser.add_argument("--parallel", type=int, default=1, help="runs at once (each then gets one thread)")
    options = parser.parse_args(arguments)

    def run(seed: int) -> dict[str, Any]:
        return run_one(options.config, seed, Path(options.folder) / f"seed-{seed}", extra, options.parallel)

    with ThreadPoolExecutor(options.parallel) as pool:
        results = list(pool.map(run, options.seeds))
    summary = summarise(results)
    path = Path(options.folder) / "summary.json"
    path.write_text(json.dumps({"config": options.config, "arguments": extra, "scores": summary}, indent=1))
    print_table(summary)
    print(f"{len(results)} seeds; summary: {path}")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits a command line at ``--``: our own arguments, those of ``vlmq fit``."""
    if "--" not in arguments:
        return arguments, []
    split = arguments.index("--")
    return arguments[:split], arguments[split + 1 :]


def run_one(config: str, seed: int, folder: Path, extra: list[str], parallel: int) -> dict[str, Any]:
    """Fits with one seed and returns its results with wall time and peak memory."""
    path = folder / "results.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [*FIT, "--config", config]
        command += ["--folder", str(folder), "--seed_everything", str(seed)]
        command += ["--threads", "1"] if parallel > 1 else []
        start = time.monotonic()
        with (folder / "fit.log").open("w") as log:
            code = subprocess.run([*command, *extra], stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if code:
            raise SystemExit(f"seed {seed} failed with code {code}; see {folder / 'fit.log'}")
        results = json.loads(path.read_text())
        results["run"] = {"minutes": (time.monotonic() - start) / 60}
        if parallel == 1:
            # the largest child so far: kilobytes on Linux
            results["run"]["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        path.write_text(json.dumps(results, indent=1))
        print(f"seed {seed}: {results['run']['minutes']:.1f} minutes", flush=True)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def summarise(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, worst and all values of each number in the results, by ``row/score``."""
    rows: dict[str, list[float]] = {}
    for result in results:
        tables = {k: v for k, v in result.items() if isinstance(v, dict) and k != "scoreboards"}
        tables |= result.get("scoreboards", {})
        for name, scores in tables.items():
            for score, value in scores.items():
                rows.setdefault(f"{name}/{score}", []).append(float(value))
    return {
        name: {
            "mean": sum(values) / len(values),
            "worst": (max if name.rsplit("/", 1)[-1] in HIGHER_IS_WORSE else min)(values),
            "values": values,  # type: ignore[dict-item]
        }
        for name, values in rows.items()
    }


def print_table(summary: dict[str, dict[str, float]]) -> None:
    """Prints a Markdown table."""
    print("| score | mean | worst |\n|---|---|---|")
    for name, row in summary.items():
        print(f"| {name} | {row['mean']:.4g} | {row['worst']:.4g} |")


if __name__ == "__main__":
    main()
