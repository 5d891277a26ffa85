"""Kills a fit with SIGKILL at random instants, resumes it each time, and looks whether anything broke.

    python scripts/kills.py configs/numberline_online.yaml --kills 100 --folder runs/kills -- --data.turns 200

Everything behind ``--`` goes to ``vlmq fit``. After each kill every store under the folder is opened, which compares
all shards with their checksums. The last fit is left to run to its end.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from lightning_vlmq import TurnStore
from scripts.seeds import FIT, split_arguments


def main() -> None:
    """Entry."""
    arguments, extra = split_arguments(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration of `vlmq fit`")
    parser.add_argument("--folder", type=Path, required=True, help="of the run; kills.json goes there")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=30.0, help="seconds until a kill at most, start included")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args(arguments)
    result = kill_often(
        [f"--config={options.config}", *extra], options.folder, options.kills, options.longest, options.seed
    )
    (options.folder / "kills.json").write_text(json.dumps(result, indent=1))
    print({key: value for key, value in result.items() if key != "steps"})


def kill_often(arguments: list[str], folder: Path, kills: int, longest: float, seed: int = 0) -> dict[str, Any]:
    """Runs, kills, looks; then lets the fit end.

    Returns:
        ``kills``, ``resumed`` (starts from a checkpoint that did not fail), ``failed`` (starts that ended by an error),
        ``damaged`` (stores that did not open), ``ended`` (whether the last fit ran to its end), ``steps`` (of the last
        checkpoint behind each kill).
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"kills": 0, "resumed": 0, "failed": 0, "damaged": 0, "ended": False, "steps": []}
    checkpoint = folder / "checkpoints" / "last.ckpt"
    with (folder / "kills.log").open("w") as log:

        def start() -> tuple[subprocess.Popen[bytes], bool]:
            resumes = checkpoint.exists()
            command = [*FIT, *arguments, f"--folder={folder}", *(["--ckpt_path=last"] if resumes else [])]
            return subprocess.Popen(command, stdout=log, stderr=log), resumes

        for _ in track(range(kills), description="killing"):
            process, resumes = start()
            try:
                code = process.wait(timeout=rng.uniform(0, longest))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = 0
                result["kills"] += 1
            result["failed"] += code != 0
            result["resumed"] += resumes and code == 0
            for manifest in folder.glob("**/manifest.json"):
                try:
                    TurnStore(manifest.parent)
                except ValueError as error:
                    result["damaged"] += 1
                    log.write(f"{error}\n")
            step = torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.exists() else 0
            result["steps"].append(int(step))
        process, _ = start()
        result["ended"] = process.wait() == 0
    return result


if __name__ == "__main__":
    main()
