"""Peak memory of a training step beyond what stands there anyway: ours, TRL's SFTTrainer, AFSFT as the text reads.

    python -m benchmarks.training_memory --threads 1                  # the table's rows
    python -m benchmarks.training_memory --case tiny --results runs   # seconds; its ratios say nothing

Each way runs in a process of its own. Counted are all bytes that PyTorch's allocator for CPUs gives out and takes
back, those inside of its operations included, from the beginning of the collation to the end of the step; the figure is
the largest running sum. Parameters, the optimiser's state and the target critic stand there before, and so do
gradients: the step adds to those of a step before it, as within an accumulation. Not counted is what is not PyTorch's:
pictures in Pillow, scratch memory of matrix libraries. Each process takes one step before; ``n`` is the number of steps
counted, which hardly differ.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.case import CASES, MEASURED, make_folder
from benchmarks.rows import RESULTS, machine, row, save, without_demands
from benchmarks.ways import AFSFT, BASE, NAIVE, NO_CACHE, SFT, SINGLE, TRL_REPLIES, TRL_SFT, WAYS, Ways

BENCH = "training_memory"
PAIRS = (
    (AFSFT, TRL_SFT, "<= .60"),
    (AFSFT, TRL_REPLIES, ""),
    (SINGLE, TRL_SFT, ""),
    (NO_CACHE, TRL_SFT, ""),
    (BASE, TRL_SFT, ""),
    (SFT, TRL_SFT, ""),
    (AFSFT, NAIVE, ""),
    (TRL_SFT, NAIVE, ""),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), default=MEASURED)
    parser.add_argument("--turns", type=int, default=8, help="turns of a batch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without_trl", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--way", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)  # a process of its own
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    case = CASES[options.case]
    if options.way:
        name, folder = options.way
        way = Ways(case, Path(folder), options.turns).make(name, keep_gradients=True)
        way.step(way.collate())
        found = [peak(lambda: way.step(way.collate())) for _ in range(options.rounds)]
        print(json.dumps(found))
        return
    names = [name for name in WAYS if "TRL" not in name or not options.without_trl]
    peaks = {}
    with TemporaryDirectory() as folder:
        make_folder(case, Path(folder))
        for name in names:
            passed = [*(arguments or sys.argv[1:]), "--way", name, folder]
            run = subprocess.run(
                [sys.executable, "-m", "benchmarks.training_memory", *passed], check=True, stdout=subprocess.PIPE
            )
            peaks[name] = [number / 2**20 for number in json.loads(run.stdout.splitlines()[-1])]
            print(f"{name}: {max(peaks[name]):,.0f} MB", flush=True)
    what = f"{options.case}, {case}, batch {options.turns}"
    pairs = [pair for pair in PAIRS if {*pair[:2]} <= set(names)]
    rows = [
        row(BENCH, what, *((name, peaks[name]) for name in pair), unit="MB", machine=machine(), demanded=demanded)
        for *pair, demanded in pairs
    ]
    save(rows if options.case == MEASURED else without_demands(rows), options.results)


def peak(function: Callable[[], Any]) -> int:
    """Most bytes that PyTorch holds at once while a function runs, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(number for _, number in changes), default=0)


if __name__ == "__main__":
    main()
