"""Time of a training step: ours, TRL's SFTTrainer, AFSFT as the paper's text reads, and the bound of the machine.

    python -m benchmarks.training_step --threads 1                     # the table's rows: half an hour, 12 GB
    python -m benchmarks.training_step --case tiny --results runs      # seconds; its ratios say nothing

The rounds take all ways in turn, in an order that changes. A step is losses, gradients, clipping, AdamW and, with a
critic, the target's; collation is from turns (TRL: rows) in memory to a batch. Without a feature cache pictures are
encoded in the collation, so that this is compared with it. AFSFT has the paper's options where nothing else is said,
and pictures were encoded before. Every turn goes on: the value of its next one is needed. The bound: floating-point
operations of the step, as PyTorch counts them, over what a product of two 2,048 x 2,048 matrices reaches in that round.
On a CPU TRL's language head scores all positions of a row, on GPUs those of the reply: that is compared, too. On a
machine with other work take ``--clock cpu`` and say so by ``--note``. TRL has to be there
(``pip install -c constraints.txt -e ".[bench]"``), or ``--without_trl``.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.case import CASES, MEASURED, make_folder
from benchmarks.rows import RESULTS, Row, Spent, machine, row, save, spent, without_demands
from benchmarks.ways import AFSFT, BASE, NAIVE, NO_CACHE, SFT, SINGLE, TRL_REPLIES, TRL_SFT, WAYS, Way, Ways

BENCH, BOUND = "training_step", "bound"
COLLATED, COLLATION = "collation included", "collation"
# ours, the other, whether with collation, what is demanded
PAIRS = (
    (AFSFT, TRL_SFT, False, "<= .36"),
    (AFSFT, TRL_SFT, True, "<= .36"),
    (SINGLE, TRL_SFT, False, ""),
    (NO_CACHE, TRL_SFT, True, "<= 1.15"),
    (AFSFT, TRL_REPLIES, False, ""),
    (NO_CACHE, TRL_REPLIES, True, ""),
    (BASE, TRL_SFT, False, ""),
    (SFT, TRL_SFT, False, ""),
    (AFSFT, SFT, False, ""),
    (AFSFT, NAIVE, False, "<= .18"),
    (AFSFT, NAIVE, True, "<= .18"),
    (TRL_SFT, NAIVE, False, ""),
)
_EDGE = 2048


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


def _product_in_place(_: Any, one: Any, other: Any, **__: Any) -> int:
    return 2 * math.prod(one) * other[1]


# by itself PyTorch counts attention on GPUs only, and no products that are added in place
_ON_CPU: Any = {
    torch.ops.aten.addmm_: _product_in_place,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), default=MEASURED)
    parser.add_argument("--turns", type=int, default=8, help="turns of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=Spent._fields, default="wall", help="what the rows are made of")
    parser.add_argument("--note", default="", help='of the machine, for instance "beside other jobs"')
    parser.add_argument("--without_trl", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    case = CASES[options.case]
    names = [name for name in WAYS if "TRL" not in name or not options.without_trl]
    with TemporaryDirectory() as folder:
        ways = Ways(case, make_folder(case, Path(folder)), options.turns)
        times, flops = rounds({name: ways.make(name) for name in names}, options.rounds)
    rows = rows_of(times, flops, f"{options.case}, {case}, batch {options.turns}", options.clock, machine(options.note))
    save(rows if options.case == MEASURED else without_demands(rows), options.results)


def rounds(ways: dict[str, Way], count: int) -> tuple[dict[str, list[Spent]], dict[str, int]]:
    """What each way's step took in each round, its collation, both together; and the operations of a step."""
    flops = {name: _operations(way) for name, way in ways.items()}  # this is the warm-up, too
    times: dict[str, list[Spent]] = {}
    for number in range(count):
        for name in np.random.default_rng(number).permutation([*ways, BOUND]).tolist():
            if name == BOUND:
                times.setdefault(BOUND, []).append(_seconds_an_operation())
                continue
            batch, before = spent(ways[name].collate)
            _, step = spent(ways[name].step, batch)
            times.setdefault(name, []).append(step)
            times.setdefault(f"{name}, {COLLATION}", []).append(before)
            times.setdefault(f"{name}, {COLLATED}", []).append(before + step)
            print(f"round {number}: {name} {step}; collation {before}", flush=True)
    return times, flops


def rows_of(times: dict[str, list[Spent]], flops: dict[str, int], case: str, clock: str, where: str) -> list[Row]:
    """The table's rows."""
    unit = {"cpu": "CPU s", "wall": "s"}[clock]
    found = {name: [getattr(each, clock) for each in spent] for name, spent in times.items()}
    rows = []
    share = [(name, found[name]) for name in (f"{AFSFT}, {COLLATION}", f"{AFSFT}, {COLLATED}")]
    rows.append(row(BENCH, case, *share, unit=unit, machine=where, demanded="<= .05"))
    for ours, other, collated, demanded in PAIRS:
        if ours in found and other in found:
            behind = f", {COLLATED}" if collated else ""
            pair = [(name, found[name + behind]) for name in (ours, other)]
            rows.append(row(BENCH, case + behind, *pair, unit=unit, machine=where, demanded=demanded))
    for name, count in flops.items():
        bound = (f"{BOUND} ({count / 1e12:.2f} TFLOP)", [count * each for each in found[BOUND]])
        rows.append(row(BENCH, case, (name, found[name]), bound, unit=unit, machine=where))
    return rows


def operations() -> FlopCounterMode:
    """Counts floating-point operations of what runs within it, those of attention included."""
    return FlopCounterMode(display=False, custom_mapping=_ON_CPU)


def _operations(way: Way) -> int:
    batch = way.collate()
    with operations() as counter:
        way.step(batch)
    return counter.get_total_flops()


def _seconds_an_operation() -> Spent:
    one, other = torch.rand(2, _EDGE, _EDGE).unbind(0)
    product: Callable[..., Any] = torch.mm
    product(one, other)
    each = [spent(product, one, other)[1] for _ in range(3)]
    return Spent(*(min(times) / (2 * _EDGE**3) for times in zip(*each, strict=True)))


if __name__ == "__main__":
    main()
