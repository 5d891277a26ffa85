"""Kills a fit with SIGKILL at random instants, resumes it each time, and looks whether anything broke.

    python -m scripts.kills configs/numberline_online.yaml --kills 100 --folder runs/kills -- --data.turns 200

Everything behind ``--`` goes to ``vlmq fit``. Nine of ten kills come at random up to --longest seconds after the fit
has restored its state, the others that long after its start. It goes on until --kills of the killed fits had gone on
from a checkpoint: had restored it and made at least one step. The last fit is left to run to its end; it should be long
enough.

After each kill the checkpoint must load, every store must open, and what the checkpoint names must be there, evicted or
not; after each restoration the experience must hold that and nothing else.
"""

import argparse
import json
import random
import subprocess
import sys
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightning_vlmq import TurnStore
from lightning_vlmq.rows import from_text
from scripts.seeds import FIT, split_arguments
from scripts.witness import testimony

EARLY = 0.1
"""Share of kills that do not wait for the fit to restore its state."""


@dataclass
class Kills:
    """What was found.

    Attributes:
        kills: All of them.
        resumed: Killed fits that had restored a checkpoint and made a step.
        fell: Kills by what they interrupted: start-up, play, training, evaluation, saving.
        failed: Fits that ended by an error, which ends the search.
        damaged: What was found damaged or missing after a kill.
        wrong: Restorations that did not give the turns that the checkpoint names.
        ended: Whether the last fit ran to its end.
        steps: Of the last checkpoint behind each kill.
    """

    kills: int = 0
    resumed: int = 0
    fell: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    damaged: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ended: bool = False
    steps: list[int] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Writes ``kills.json``, after each kill anew: nothing is lost where the search itself is stopped."""
        (folder / "kills.json").write_text(json.dumps(vars(self), indent=1))


def main() -> None:
    """Entry."""
    arguments, extra = split_arguments(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration of `vlmq fit`")
    parser.add_argument("--folder", type=Path, required=True, help="of the run; kills.json goes there")
    parser.add_argument("--kills", type=int, default=100, help="of fits that had gone on from a checkpoint")
    parser.add_argument("--longest", type=float, default=30.0, help="seconds until a kill at most")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    options = parser.parse_args(arguments)
    found = kill_often(
        [f"--config={options.config}", *extra], options.folder, options.kills, options.longest, options.seed
    )
    print({key: value for key, value in vars(found).items() if key != "steps"})
    if found.ended and found.resumed < options.kills:
        print("the fit ended too early: give it more epochs or steps")


def kill_often(arguments: list[str], folder: Path, kills: int, longest: float, seed: int = 0) -> Kills:
    """Runs, kills, looks; then lets the fit end."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    command = [*FIT, *arguments, "--trainer.callbacks+=scripts.witness.Witness", f"--folder={folder}"]
    command.append("--ckpt_path=last")
    witness = folder / "witness.jsonl"
    found = Kills()
    with (folder / "kills.log").open("w") as log:
        while found.resumed < kills:
            checkpoint = _checkpoint(folder)
            witness.unlink(missing_ok=True)
            process = subprocess.Popen(command, stdout=log, stderr=log)
            early = rng.random() < EARLY
            while not early and not testimony(witness) and process.poll() is None:
                time.sleep(0.05)
            try:
                code = process.wait(timeout=rng.uniform(0, longest))
                found.failed += code != 0
                found.ended = code == 0
                found.write(folder)
                return found
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            lines = testimony(witness)
            found.kills += 1
            found.fell[lines[-1]["phase"] if lines else "start-up"] += 1
            if lines and checkpoint:
                found.resumed += lines[-1]["step"] > lines[0]["step"]
                found.wrong += _differences(checkpoint, lines[0])
            found.damaged += _damage(folder)
            found.steps.append((_checkpoint(folder) or {"global_step": 0})["global_step"])
            found.write(folder)
            print(f"{found.resumed} of {found.kills} kills behind a step of a resumed fit", end="\r", flush=True)
        found.ended = subprocess.run(command, stdout=log, stderr=log, check=False).returncode == 0
    found.write(folder)
    return found


def _checkpoint(folder: Path) -> dict[str, Any] | None:
    path = folder / "checkpoints" / "last.ckpt"
    found: dict[str, Any] | None = torch.load(path, weights_only=True) if path.exists() else None
    return found


def _ranks(checkpoint: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What each rank's collector saved."""
    callbacks = checkpoint["callbacks"] if checkpoint else {}
    ranks: list[dict[str, Any]] = callbacks.get("OnlineCollector", {"ranks": []})["ranks"]
    return ranks


def _damage(folder: Path) -> list[str]:
    """Stores that do not open; shards that the last checkpoint names and that are gone."""
    damaged = []
    for manifest in folder.glob("**/manifest.json"):
        try:
            TurnStore(manifest.parent)
        except ValueError as error:
            damaged.append(str(error))
    for rank, state in enumerate(_ranks(_checkpoint(folder))):
        there = {
            (path.name if path.parent.name.startswith("rank-") else f"{path.name.rpartition('-')[0]}.parquet", crc)
            for path in folder.glob(f"**/rank-{rank}/**/*.parquet")
            for crc in [zlib.crc32(path.read_bytes())]
        }
        damaged += [
            f"rank {rank}: {name} is gone" for name, _, crc in state["store"]["shards"] if (name, crc) not in there
        ]
    return damaged


def _differences(checkpoint: dict[str, Any], restored: dict[str, Any]) -> list[str]:
    """How the step and the first rank's experience differ from what the checkpoint names, open episodes included."""
    if restored["step"] != checkpoint["global_step"]:
        return [f"step {restored['step']}, not {checkpoint['global_step']}"]
    if "store" not in restored or not _ranks(checkpoint):
        return []
    saved, store = _ranks(checkpoint)[0], restored["store"]
    there = {(name, crc) for name, _, crc in store["shards"]}
    where = f"step {checkpoint['global_step']}: "
    wrong = [f"{where}{name} is gone" for name, _, crc in saved["store"]["shards"] if (name, crc) not in there]
    rows = sum(rows for _, rows, _ in store["shards"]) + store["buffered"]
    expected = sum(rows for _, rows, _ in saved["store"]["shards"])
    expected += sum(len(from_text(turns)) for turns in saved["open"])
    return wrong if rows == expected else [*wrong, f"{where}{rows} rows, not {expected}"]


if __name__ == "__main__":
    main()
