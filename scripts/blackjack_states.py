"""How well Blackjack could be played from what a VLM's states hold, before anything is learned from rewards.

    python -m scripts.blackjack_states                 # the embedded VLM
    python -m scripts.blackjack_states --name FOLDER

A small MLP reads the frozen states where the replies "hit" and "stand" part and is fitted to the exact values of both,
on hands of all states. What it wins on other hands bounds what a critic can learn without changing the VLM: with
samples of the values instead, it wins less.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from lightning_vlmq import VLM
from lightning_vlmq.envs.exact_blackjack import (
    blackjack_q,
    optimal_blackjack_policy,
    sample_every_state,
    score_blackjack,
    state_means,
)
from scripts.blackjack_critic import fork


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="embedded", help="VLM: embedded, a folder, or a name on the hub")
    parser.add_argument("--hands", type=int, default=16, help="hands of each state to fit; 4 others are scored")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of the values' noise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    vlm = VLM(options.name, lora_rank=0)
    fitted = sample_every_state(np.random.default_rng(1), options.hands)
    scored = sample_every_state(np.random.default_rng(0), 4)
    hidden, unseen = fork(vlm, fitted, 0)[0], fork(vlm, scored, 10**6)[0]
    inputs, unseen = ((each - hidden.mean(0)) / hidden.std(0) for each in (hidden, unseen))
    exact = blackjack_q(optimal_blackjack_policy())
    values = torch.tensor([[exact[state]["hit"], exact[state]["stand"]] for state, _ in fitted])
    print(f"{len(fitted)} hands fitted, {len(scored)} others scored\n\n| seed | wins | mean return |\n|---|---|---|")
    for seed in options.seeds:
        torch.manual_seed(seed)
        q = _fit(inputs, values, options.noise)(unseen)
        score = score_blackjack(state_means(scored, (q[:, 0] > q[:, 1]).numpy()))
        print(f"| {seed} | {score.win:.2%} | {score.mean_return:+.3f} |", flush=True)


def _fit(inputs: Tensor, values: Tensor, noise: float, steps: int = 3000, batch: int = 64) -> nn.Module:
    """An MLP like the critic's from standardised states to both values; every visit draws new noise."""
    network = nn.Sequential(nn.Linear(inputs.shape[1], 400), nn.SiLU(), nn.Linear(400, 2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (batch,))
        wanted = values[rows] + noise * torch.randn(batch, 2)
        loss = (network(inputs[rows]) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


if __name__ == "__main__":
    main()
