"""Reads out what a Blackjack run's critic and policy think of every state, in several hands each.

    python -m scripts.blackjack_critic runs/blackjack --hands 8

Hit and stand part at one token of the reply; there Q and pi are read. Greedy policies are scored exactly: the
language head's choice and the critic's, each hand by hand and after averaging over the hands of a state (what is lost
between these two is lost by judging hands of the same state differently), and the language head's in hard or soft
hands only. Then, by the number of cards: how far the advantage of hitting lies from its state's mean, and how often its
sign is the optimal one. Last, how often the policy plays soft hands right, by their total and number of cards.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.progress import track
from torch import Tensor

from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs import AgentEnv, Blackjack
from lightning_vlmq.envs.blackjack import BlackjackState, optimal_action
from lightning_vlmq.envs.exact_blackjack import HandOptions, sample_every_state, score_blackjack, state_means
from lightning_vlmq.parsing import TagParser
from lightning_vlmq.scoreboards import first_seen
from lightning_vlmq.turns import Turn

Shown = list[tuple[BlackjackState, HandOptions]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `vlmq fit`, with config.yaml")
    parser.add_argument("--checkpoint", default="last", help="name in the run's checkpoints, without .ckpt")
    parser.add_argument("--hands", type=int, default=4, help="hands shown for each state")
    parser.add_argument("--seed", type=int, default=0, help="of the hands")
    options = parser.parse_args()
    torch.set_flush_denormal(True)

    model = load(options.run, options.checkpoint)
    rng = np.random.default_rng(options.seed)
    shown = sample_every_state(rng, options.hands)
    with torch.no_grad():
        hidden, tokens = fork(model.vlm, shown, options.seed)
        read = hidden
        if model.hparams["critic_states"] == "base":
            with model.vlm.base():
                read, _ = fork(model.vlm, shown, options.seed)
        q = model.critic.q(read, tokens.expand(len(read), 2))
        pi = model.vlm.logits(hidden)[:, tokens]
    gap = (q[:, 0] - q[:, 1]).numpy()
    means = state_means(shown, gap)
    choices = {
        "policy": state_means(shown, (pi[:, 0] > pi[:, 1]).numpy()),
        "critic": state_means(shown, gap > 0),
        "critic, mean over hands": {state: float(mean > 0) for state, mean in means.items()},
    }
    odds, best = pi[:, 0] - pi[:, 1], {state: float(optimal_action(state) == "hit") for state in means}
    choices["policy, mean over hands"] = {state: float(x > 0) for state, x in state_means(shown, odds.numpy()).items()}
    for name, own in (("hard", False), ("soft", True)):
        choices[f"policy in {name} hands, optimal in others"] = {
            state: hit if state.soft == own else best[state] for state, hit in choices["policy"].items()
        }
    print(f"{len(shown)} hands\n\n| greedy choice of | wins | mean return |\n|---|---|---|")
    for name, choice in choices.items():
        score = score_blackjack(choice)
        print(f"| {name} | {score.win:.2%} | {score.mean_return:+.3f} |")

    print("\n| cards | hands | mean distance of Q(hit) - Q(stand) from its state's | sign is the optimal one |")
    print("|---|---|---|---|")
    cards = np.array([len(hand["player"]) for _, hand in shown])
    distance = np.abs(gap - np.array([means[state] for state, _ in shown]))
    right = np.array(
        [(value > 0) == (optimal_action(state) == "hit") for (state, _), value in zip(shown, gap, strict=True)]
    )
    for count in range(2, 6):
        rows = (cards == count) if count < 5 else (cards >= 5)
        label = str(count) if count < 5 else "5 or more"
        print(f"| {label} | {rows.sum()} | {distance[rows].mean():.3f} | {right[rows].mean():.1%} |")

    print("\n| soft total | 2 cards | 3 cards | 4 cards |\n|---|---|---|---|")
    played = np.array([(x > 0) == (best[state] == 1.0) for (state, _), x in zip(shown, odds.tolist(), strict=True)])
    totals = np.array([state.total if state.soft else 0 for state, _ in shown])
    for low, high in ((12, 17), (18, 18), (19, 19), (20, 20), (21, 21)):
        cells = [played[(low <= totals) & (totals <= high) & (cards == count)] for count in (2, 3, 4)]
        label = f"{low} to {high}" if low < high else str(low)
        print(f"| {label} | " + " | ".join(f"{c.mean():.0%} of {len(c)}" if len(c) else "" for c in cells) + " |")


def load(run: Path, checkpoint: str) -> VLMQ:
    """The trained module of a run."""
    path = run / "checkpoints" / f"{checkpoint}.ckpt"
    for needed in (run / "config.yaml", path):
        if not needed.exists():
            raise SystemExit(f"{needed} is missing: name the folder of a `vlmq fit` and one of its checkpoints")
    config = yaml.safe_load((run / "config.yaml").read_text())
    vlm = VLM(**config["model"]["init_args"]["vlm"]["init_args"])
    model: VLMQ = VLMQ.load_from_checkpoint(path, vlm=vlm, map_location="cpu")
    return model.eval()


def fork(vlm: VLM, shown: Shown, seed: int) -> tuple[Tensor, Tensor]:
    """Hidden states where the replies "hit" and "stand" part, ``[hands, D]``, and the two tokens."""
    env = AgentEnv(Blackjack())
    seen = first_seen(env, (hand for _, hand in shown), seed)
    return fork_states(TurnEncoder(vlm), [Turn(env.name, str(row), 0, each) for row, each in enumerate(seen)])


@torch.no_grad()
def fork_states(
    encoder: TurnEncoder, turns: Sequence[Turn], actions: Sequence[str] = ("hit", "stand")
) -> tuple[Tensor, Tensor]:
    """Hidden states where the replies with some actions part, ``[turns, D]``, and the tokens, one an action."""
    replies = [TagParser().format(action) for action in actions]
    ids = [encoder.encode_text(reply) for reply in replies]
    place = next(i for i, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1)
    shown = [replace(turn, reply=replies[0], reply_ids=(), log_probs=(), terminated=True) for turn in turns]
    found = []
    for start in track(range(0, len(shown), 64), "reading", disable=len(shown) < 1000):
        batch = encoder.batch(some := shown[start : start + 64], some)
        found.append(encoder.vlm.hidden(batch.inputs)[torch.arange(len(some)), batch.positions[:, place]])
    return torch.cat(found), torch.tensor([row[place] for row in ids])


if __name__ == "__main__":
    main()
