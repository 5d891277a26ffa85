"""What `critic_states: base` costs: losses and gradients of a batch, the ways in turn, as ratios.

    python -m benchmarks.base_states --threads 1

The batch is of random Blackjack turns; the adapter is on the embedded VLM's last ``--layers`` of four layers. ``base``
runs the layers below it once for both passes; ``base, all twice`` is what it would cost without that.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median
from tempfile import TemporaryDirectory

import torch

import lightning_vlmq.vlm
from lightning_vlmq import VLM, VLMQ, TurnStore
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.collection import collect
from lightning_vlmq.envs import AgentEnv, Blackjack
from lightning_vlmq.frozen_layers import layers_below_adapter


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2, help="layers with an adapter, the last ones")
    parser.add_argument("--turns", type=int, default=16, help="turns of the batch")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    modules = {states: VLMQ(VLM(lora_layers=options.layers), critic_states=states) for states in ("adapted", "base")}  # type: ignore[arg-type]
    batch = some_turns(TurnEncoder(modules["base"].vlm), options.turns)
    times: dict[str, list[float]] = {"adapted": [], "base": [], "base, all twice": []}
    for number in range(options.rounds + 2):
        for name, found in times.items():
            lightning_vlmq.vlm.layers_below_adapter = (lambda _: []) if "twice" in name else layers_below_adapter
            module = modules[name.partition(",")[0]].train()
            start = time.perf_counter()
            module.losses(batch)[0].backward()
            if number >= 2:  # the first ones warm up
                found.append(time.perf_counter() - start)
            module.zero_grad()
    print("| | seconds, median | times `adapted`: median (least, most) |\n|---|---|---|")
    for name, found in times.items():
        print(f"| {name} | {median(found):.3f} | {ratios(found, times['adapted'])} |")


def ratios(found: Sequence[float], others: Sequence[float]) -> str:
    """Median, least and most of the ratios of two rows of times, pair by pair."""
    each = [one / other for one, other in zip(found, others, strict=True)]
    return f"{median(each):.2f} ({min(each):.2f}, {max(each):.2f})"


def some_turns(encoder: TurnEncoder, count: int) -> TokenBatch:
    """A batch of random valid turns and their successors."""
    with TemporaryDirectory() as folder:
        collect(
            AgentEnv(Blackjack()), encoder, folder, turns=2 * count, mixture={"random": 1.0}, seed=1, parallel=count
        )
        store = TurnStore(folder)
        rows = [row for row in range(len(store)) if store[row].reply is not None][:count]
        return encoder.batch([store[row] for row in rows], [store[row + 1] for row in rows])


if __name__ == "__main__":
    main()
