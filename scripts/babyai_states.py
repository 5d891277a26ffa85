"""What a VLM's states hold of BabyAI's worlds, before anything is learned from rewards.

    python -m scripts.babyai_states                       # the embedded VLM, three ways to show a world
    python -m scripts.babyai_states --name FOLDER --views agent

Worlds of a level are looked at after some random steps. A small MLP reads the frozen states where the replies "left"
and "forward" part, and is fitted to what minigrid's bot would do, to where the ball is, as seen from the agent, and to
whether a thing is in its way. How often it is right in other worlds says what a critic or an actor can build on without
changing the VLM.
"""

import argparse
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vlmq import VLM
from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs import AgentEnv, BabyAI
from lightning_vlmq.turns import Observation, Turn
from scripts.blackjack_critic import fork_states
from scripts.embedded_vlm.games import ahead_of, told
from scripts.embedded_vlm.worlds import from_agent

STEPS = (0, 0, 1, 2, 4, 8)
"""Random steps before a world is looked at, one of them."""

VIEWS: dict[str, dict[str, Any]] = {
    "full": {"view": "full"},
    "agent": {"view": "agent"},
    "agent, padded to 8": {"view": "agent", "pad_to": 8},
}


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="embedded", help="VLM: embedded, a folder, or a name on the hub")
    parser.add_argument("--views", nargs="+", choices=list(VIEWS), default=list(VIEWS))
    parser.add_argument("--worlds", type=int, default=3000, help="a sixth of them is scored")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    encoder = TurnEncoder(VLM(options.name, lora_rank=0))
    print("| view | fact | right in other worlds | always the commonest |\n|---|---|---|---|")
    for view in options.views:
        turns, facts = worlds(view, options.worlds)
        states, _ = fork_states(encoder, turns, ("left", "forward"))
        for name, classes in facts.items():
            right, commonest = read_out(states, torch.tensor(classes))
            print(f"| {view} | {name} | {right:.0%} | {commonest:.0%} |", flush=True)


def worlds(view: str, count: int) -> tuple[list[Turn], dict[str, list[int]]]:
    """What is seen of worlds of GoToRedBallGrey, and facts of them as numbers of classes; -1 where there is none."""
    env, rng = AgentEnv(BabyAI("BabyAI-GoToRedBallGrey-v0", **VIEWS[view])), Random(0)
    turns: list[Turn] = []
    facts: dict[str, list[int]] = {"the bot's action": [], "ball in view": [], "its side": [], "cells ahead": []}
    facts["a thing in the way (in every second world)"] = []
    in_the_way = 0
    for number in range(count):
        seen = walk(env, rng, number)
        ahead, right = from_agent(*told(seen))
        visible = 0 <= ahead < 7 and abs(right) <= 3
        turns.append(Turn(env.name, str(number), 0, seen))
        expert = env.expert_action()
        facts["the bot's action"].append({"left": 0, "right": 1, "forward": 2}.get(expert or "", -1))
        facts["ball in view"].append(int(visible))
        facts["its side"].append(int(right > 0) + 2 * int(right == 0) if visible else -1)
        facts["cells ahead"].append(ahead if visible else -1)
        # walls and most free cells are left out: always "free" would be right in nine of ten worlds
        thing = ahead_of(seen)
        counts = thing not in ("wall", "nothing") or (thing == "nothing" and in_the_way > 0)
        if counts:
            in_the_way += 1 if thing != "nothing" else -1
        facts["a thing in the way (in every second world)"].append(int(thing != "nothing") if counts else -1)
    return turns, facts


def walk(env: AgentEnv, rng: Random, seed: int) -> Observation:
    """A world after some random steps; a new one where they end the episode."""
    seen = env.reset(seed=seed)
    for step in range(rng.choice(STEPS)):
        outcome = env.step(env.parser.format(rng.choice(["left", "right", "forward", "forward"])))
        seen = outcome.observation
        if outcome.terminated or outcome.truncated:
            return env.reset(seed=10**6 + 100 * seed + step)
    return seen


def read_out(states: Tensor, classes: Tensor) -> tuple[float, float]:
    """Share of the last sixth that an MLP fitted to the rest names right, and that of the commonest class."""
    known = classes >= 0
    split = len(states) * 5 // 6
    first, last = known[:split], known[split:]
    fitted, wanted = states[:split][first], classes[:split][first]
    middle, scale = fitted.mean(0), fitted.std(0)
    torch.manual_seed(0)
    width = int(classes.max()) + 1
    network = nn.Sequential(nn.Linear(states.shape[1], 400), nn.SiLU(), nn.Dropout(0.3), nn.Linear(400, width))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(1500):
        rows = torch.randint(len(fitted), (64,))
        loss = nn.functional.cross_entropy(network((fitted[rows] - middle) / scale), wanted[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    found = network((states[split:][last] - middle) / scale).argmax(-1)
    right = (found == classes[split:][last]).float().mean()
    return float(right), float((classes[split:][last] == wanted.bincount().argmax()).float().mean())


if __name__ == "__main__":
    main()
