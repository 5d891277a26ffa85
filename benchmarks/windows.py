"""What windows of turns save: losses and gradients of a batch by length of the windows, as ratios to windows of one.

    python -m benchmarks.windows --threads 1

A round takes a batch of each length, made of the same number of turns as the DataModule draws them, so that short
episodes cut windows short; the lengths' order changes from round to round. The adapter is on the embedded VLM's last
``--layers`` of four layers. Pictures are encoded before, as in a fit behind its first epochs. ``SFT`` is what a step
costs without a critic (``td_weight: 0``).
"""

import argparse
import time
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.base_states import ratios
from lightning_vlmq import VLM, VLMQ, TurnStore
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.collection import collect
from lightning_vlmq.datamodules.windows import Windows, read
from lightning_vlmq.envs import AgentEnv, Blackjack, NumberLine

LENGTHS = (1, 2, 4, 8)
GAMES = {"numberline": NumberLine, "blackjack": Blackjack}


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=2, help="layers with an adapter, the last ones")
    parser.add_argument("--turns", type=int, default=16, help="turns of a batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--games", nargs="+", choices=sorted(GAMES), default=sorted(GAMES))
    parser.add_argument("--critic_states", nargs="+", default=["adapted", "base"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    print("| game | critic_states | window | turns read apart | CPU s, median | times window 1: median (least, most) |")
    print("|---|---|---|---|---|---|")
    for game in options.games:
        vlm = VLM(lora_layers=options.layers)
        with TemporaryDirectory() as folder:
            batches = some_batches(TurnEncoder(vlm), GAMES[game](), folder, options.turns, options.rounds + 1)
        sft = VLMQ(vlm, td_weight=0.0).train()
        for states in options.critic_states:
            module = VLMQ(vlm, critic_states=states).train()
            times: dict[Any, list[float]] = {length: [] for length in (*LENGTHS, "SFT")}
            for number in range(options.rounds + 1):
                for name in np.random.default_rng(number).permutation(len(times)).tolist():
                    length = list(times)[name]
                    batch = batches[1 if length == "SFT" else length][number]
                    spent = a_step(sft if length == "SFT" else module, batch)
                    if number:  # the first one warms up
                        times[length].append(spent)
            for length, found in times.items():
                apart = sum(len(batch.next_positions) for batch in batches.get(length, [])) / (options.rounds + 1)
                print(
                    f"| {game} | {states} | {length} | {apart:.1f} | {median(found):.3f} | {ratios(found, times[1])} |"
                )


def a_step(module: VLMQ, batch: TokenBatch) -> float:
    """CPU seconds of the losses and gradients of a batch: what other jobs make us wait does not count."""
    module.zero_grad()
    start = time.process_time()
    loss, _ = module.losses(batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return time.process_time() - start


def some_batches(encoder: TurnEncoder, env: Any, folder: str, turns: int, batches: int) -> dict[int, list[TokenBatch]]:
    """Batches of random valid turns by length of their windows."""
    collect(AgentEnv(env), encoder, folder, turns=turns * batches, mixture={"random": 1.0}, seed=1, parallel=64)
    store = TurnStore(folder)
    made: dict[int, list[TokenBatch]] = {}
    for length in LENGTHS:
        windows = Windows(store, store.samples, length)
        made[length] = []
        for number in range(batches):
            made[length].append(encoder.batch(*read(windows.shuffled(number * turns, turns, 0))))
    return made


if __name__ == "__main__":
    main()
