"""Host memory of a growing store: turns of random play are appended as a collector does, and read at random.

    python -m benchmarks.memory --turns 5000 50000 --folder runs/memory

Prints resident memory, memory-mapped pages included, after each number of turns and as many random reads, and the
difference to the first. The folder must be empty.
"""

import argparse
import itertools
import json
import re
from pathlib import Path

import numpy as np

from lightning_vlmq.envs import AgentEnv, Blackjack
from lightning_vlmq.experience import ExperienceStore
from lightning_vlmq.policy import RandomPolicy
from lightning_vlmq.rollout import Rollout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--folder", type=Path, default=Path("runs/memory"))
    options = parser.parse_args()
    if (options.folder / "store").exists():
        raise SystemExit(f"{options.folder / 'store'} exists: give another folder, or delete it")
    store, rng = ExperienceStore(options.folder / "store"), np.random.default_rng(0)
    rollout = Rollout(AgentEnv(Blackjack()), ((seed, {}) for seed in itertools.count()), 16)
    rows = []
    for turns in sorted(options.turns):
        while len(store.samples) < turns:
            for _ in range(96):  # an epoch of the paper
                for episode in rollout.turn([RandomPolicy()]):
                    store.append(episode)
            store.evict()
        for row in rng.choice(store.samples, size=turns):
            store[int(row)]
        rows.append({"turns": len(store.samples), "resident_mb": _resident()})
        rows[-1]["more_than_first_mb"] = rows[-1]["resident_mb"] - rows[0]["resident_mb"]
        print(rows[-1], flush=True)
    rollout.close()
    (options.folder / "memory.json").write_text(json.dumps(rows, indent=1))


def _resident() -> int:
    """Megabytes, as Linux counts them."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


if __name__ == "__main__":
    main()
