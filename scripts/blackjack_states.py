"""How well Blackjack could be played from what a VLM's states hold, before anything is learned from rewards.

    python -m scripts.blackjack_states                 # the embedded VLM
    python -m scripts.blackjack_states --name FOLDER
    python -m scripts.blackjack_states --run runs/blackjack --noise 0.9

A small MLP reads the frozen states where the replies "hit" and "stand" part and is fitted to the exact values of both,
on hands of all states. What it wins on other hands bounds what a critic can learn without changing the VLM: with
samples of the values instead, it wins less. With ``--run`` it is fitted to the turns of a run, each with the value of
its own action and noise that is drawn once: what a critic of the frozen states could learn from these turns.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lightning_vlmq import VLM, TurnStore
from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs.blackjack import BlackjackState, card_value, optimal_action
from lightning_vlmq.envs.exact_blackjack import (
    blackjack_q,
    optimal_blackjack_policy,
    sample_every_state,
    score_blackjack,
    state_means,
)
from scripts.blackjack_critic import fork, fork_states


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="embedded", help="VLM: embedded, a folder, or a name on the hub")
    parser.add_argument("--run", type=Path, help="folder of `vlmq fit` whose turns are fitted")
    parser.add_argument("--hands", type=int, default=16, help="hands of each state to fit")
    parser.add_argument("--scored", type=int, default=4, help="other hands of each state to score")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of the values' noise")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    vlm = VLM(options.name, lora_rank=0)
    scored = sample_every_state(np.random.default_rng(0), options.scored)
    exact = blackjack_q(optimal_blackjack_policy())
    if options.run:
        hidden, values = own_turns(vlm, options.run, exact)
    else:
        fitted = sample_every_state(np.random.default_rng(1), options.hands)
        hidden = fork(vlm, fitted, 0)[0]
        values = torch.tensor([[exact[state]["hit"], exact[state]["stand"]] for state, _ in fitted])
    unseen = fork(vlm, scored, 10**6)[0]
    inputs, unseen = ((each - hidden.mean(0)) / hidden.std(0) for each in (hidden, unseen))
    best = {state: float(optimal_action(state) == "hit") for state, _ in scored}
    print(
        f"{len(inputs)} hands fitted, {len(scored)} others scored\n\n| seed | wins | mean return | soft hands optimal |"
    )
    print("|---|---|---|---|")
    for seed in options.seeds:
        torch.manual_seed(seed)
        if options.run:
            noise = options.noise * torch.randn_like(values)
            network = _fit(inputs, values + noise, 0.0, steps=5000, batch=16)
        else:
            network = _fit(inputs, values, options.noise)
        q = network(unseen)
        hits = state_means(scored, (q[:, 0] > q[:, 1]).numpy())
        score = score_blackjack(hits)
        hard = score_blackjack({state: best[state] if state.soft else hit for state, hit in hits.items()})
        print(f"| {seed} | {score.win:.2%} | {score.mean_return:+.3f} | {hard.win:.2%} |", flush=True)


def own_turns(vlm: VLM, run: Path, exact: Mapping[BlackjackState, Mapping[str, float]]) -> tuple[Tensor, Tensor]:
    """States of a run's turns with a valid action ``[N, D]``, values ``[N, 2]``: NaN for what was not played."""
    played = [t for episode in TurnStore(run / "data").episodes() for t in episode.turns if t.action]
    values = torch.full((len(played), 2), torch.nan)
    for row, turn in enumerate(played):
        seen = re.fullmatch(r"Dealer shows (\w+)\. You hold .+, (soft )?(\d+)\.", turn.observation.summary)
        assert seen
        state = BlackjackState(int(seen[3]), bool(seen[2]), card_value(seen[1]))
        values[row, int(turn.action == "stand")] = exact[state][turn.action]
    return fork_states(TurnEncoder(vlm), played)[0], values


def _fit(inputs: Tensor, values: Tensor, noise: float, steps: int = 3000, batch: int = 64) -> nn.Module:
    """An MLP like the critic's from standardised states to both values; every visit draws new noise."""
    network = nn.Sequential(nn.Linear(inputs.shape[1], 400), nn.SiLU(), nn.Linear(400, 2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for _ in range(steps):
        rows = torch.randint(len(inputs), (batch,))
        wanted = values[rows] + noise * torch.randn(batch, 2)
        known = ~wanted.isnan()
        loss = (network(inputs[rows]) - wanted)[known].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False)


if __name__ == "__main__":
    main()
