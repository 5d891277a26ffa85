"""What hidden states know of the picture behind prompts that ask nothing: linear heads, in training only.

A model that adds a row of cards only behind "Lower total?" has to learn it again behind any other prompt: an agent from
its rewards, for example. With these heads the sums stand ready behind every prompt that asks for nothing else.
"""

from random import Random

import torch
from torch import Tensor, nn

from lightning_vlmq.envs.blackjack import hand_value
from scripts.embedded_vlm.alignment import Facts
from scripts.embedded_vlm.tables import card_value, total
from scripts.embedded_vlm.world_questions import thing_from_agent

__all__ = ["KNOWN", "NAMED", "Knowledge", "known", "name_thing"]

KNOWN = {"upper number": 100, "lower number": 100, "order": 3, "upper total": 80, "lower total": 80, "lower ace": 2}
KNOWN |= {"agent's column": 8, "agent's row": 8, "agent's direction": 4, "lower points": 80}
KNOWN |= {"ahead of the agent": 7, "left of the agent": 7, "right of the agent": 7}
"""Facts and their number of classes; points are a total in which an ace counts 11 where the row stays within 21. Beside
an agent there is nothing, or one of :data:`_KINDS`."""

_KINDS = ("wall", "ball", "box", "key", "goal", "door")

NAMED = {"cells ahead": 16, "cells to the right": 16}
"""Facts of a thing that the prompt names, as seen from the agent of a grid world: -7 to 7, or not in the picture."""

_NOWHERE = 15

_MENTIONS = (
    "Mission: go to the {}.",
    "Mission: go to the {}.",
    "Mission: pick up the {}.",
    "Mission: find a {}.",
    "Objective: reach the {}.",
    "Objective: the {}.",
    "Look for the {}.",
    "The {} counts.",
    "You want the {}.",
)

_DIRECTIONS = ("right", "down", "left", "up")


def known(facts: Facts) -> list[int]:
    """Classes of a picture's facts in the order of :data:`KNOWN`, -1 where a picture has none."""
    kind, seen = facts
    found = dict.fromkeys(KNOWN, -1)
    if kind == "labels":
        upper, lower = seen["labels"][0][1], seen["labels"][-1][1]
        found |= {"upper number": upper, "lower number": lower, "order": (upper > lower) + 2 * (upper == lower)}
    elif kind == "cards" and seen.get("rows"):
        upper, lower = seen["rows"][0], seen["rows"][-1]
        found |= {"upper total": min(79, total(upper)), "lower total": min(79, total(lower))}
        found["lower ace"] = int(any(card is not None and card[0] == "A" for card in lower))
        found["lower points"] = hand_value(card_value(card[0]) for card in lower if card)[0]
    elif kind == "grid":
        column, row = seen["agent"]
        direction = _DIRECTIONS.index(seen["facing"])
        found |= {"agent's column": column, "agent's row": row, "agent's direction": direction}
        for side, cell in zip(("ahead", "left", "right"), seen.get("beside", ()), strict=False):
            found[f"{side} of the agent"] = 1 + _KINDS.index(cell[1].split("_")[0]) if cell else 0
    return list(found.values())


def name_thing(rng: Random, facts: Facts, simple: bool = False) -> tuple[str, tuple[int, int]] | None:
    """A sentence that names a thing of a grid world, and its classes of :data:`NAMED`; ``None`` for other pictures.

    Args:
        rng: Source of randomness.
        facts: The picture's.
        simple: Always in the same form; what is said in many forms at once is not learned.
    """
    if facts[0] != "grid":
        return None
    name, place = thing_from_agent(rng, facts[1])
    sentence = (_MENTIONS[0] if simple else rng.choice(_MENTIONS)).format(name)
    return sentence, (place[0] + 7, place[1] + 7) if place else (_NOWHERE, _NOWHERE)


class Knowledge(nn.Module):
    """A linear head for each fact of :data:`KNOWN`, then of :data:`NAMED`.

    Args:
        width: Width of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, classes) for classes in (*KNOWN.values(), *NAMED.values()))

    def forward(self, hidden: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of all facts, each counted alike, and how many are named right.

        Args:
            hidden: States behind prompts that ask nothing ``[N, width]``.
            wanted: Classes ``[N, facts]``, -1 for none.

        Returns:
            Mean loss over the facts that occur; right and all of each fact ``[facts, 2]``.
        """
        losses, counts = [], []
        for head, classes in zip(self.heads, wanted.unbind(1), strict=True):
            there = classes >= 0
            scores = head(hidden[there])
            if len(scores):
                losses.append(nn.functional.cross_entropy(scores, classes[there]))
            counts.append(torch.stack([(scores.argmax(-1) == classes[there]).sum(), there.sum()]))
        return torch.stack(losses).mean() if losses else hidden.sum() * 0.0, torch.stack(counts)
