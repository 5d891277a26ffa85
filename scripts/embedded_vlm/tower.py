"""Held-out accuracy of the tower's classification heads: by patch, and by character."""

from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import nn
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

from scripts.embedded_vlm.canvas import HEADS
from scripts.embedded_vlm.model import encode_pictures, make_config
from scripts.embedded_vlm.pictures import make_scene
from scripts.embedded_vlm.training import Average
from scripts.embedded_vlm.vision import Classifier
from scripts.embedded_vlm.words import PRINTABLE

__all__ = ["characters", "evaluate_tower"]


def _group(character: str) -> str:
    if character.isdigit():
        return "digits"
    return "capitals" if character.isupper() else "small letters" if character.islower() else "signs"


def characters(labels: np.ndarray) -> list[list[tuple[int, int]]]:
    """Group neighbouring patches with the same character: one group is one character, mostly.

    Args:
        labels: Classes of the head ``char`` ``[16, 16]``.

    Returns:
        Rows and columns of each group.
    """
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(labels), strict=True)}
    groups = []
    while left:
        open_, group = [left.pop()], []
        while open_:
            y, x = open_.pop()
            group.append((y, x))
            for other in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if other in left and labels[other] == labels[y, x]:
                    left.remove(other)
                    open_.append(other)
        groups.append(group)
    return groups


@torch.no_grad()
def evaluate_tower(folder: Path, count: int = 60, threads: int = 2, seed: int = 55) -> None:
    """Print a table of the averaged tower's accuracy on held-out pictures.

    Args:
        folder: Working folder with ``vision.pt``.
        count: Pictures a kind.
        threads: CPU threads.
        seed: Seed; training uses other ones.
    """
    torch.set_num_threads(threads)
    model = Classifier(
        Idefics3VisionTransformer(make_config(1536, dict.fromkeys(("image", "eos", "pad", "bos"), 0)).vision_config)
    )
    average = Average(nn.ModuleList())
    average.values = torch.load(folder / "vision.pt", weights_only=True)["average"]
    average.copy_to(model)
    print("| pictures | patches, by head | characters (patches of one voted together) |\n|---|---|---|")
    for kind in ("digits", "deck", "labels", "page", "cards", "grid"):
        rng = Random(seed)
        scenes = [make_scene(rng, kind) for _ in range(count)]
        patches: dict[str, list[float]] = {name: [0.0, 0.0] for name in HEADS}
        voted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for first in range(0, count, 20):
            part = scenes[first : first + 20]
            logits = model(encode_pictures(torch.stack([torch.tensor(scene.image) for scene in part])))
            labels = torch.tensor(np.stack([scene.labels for scene in part])).long()
            for head, name in enumerate(HEADS):
                target = labels[:, head].flatten(1)
                seen = target > 0
                patches[name][0] += float((logits[head].argmax(-1) == target)[seen].sum())
                patches[name][1] += float(seen.sum())
            for row in range(len(part)):
                scores = logits[0][row].view(16, 16, -1)
                for group in characters(part[row].labels[0]):
                    truth = int(part[row].labels[0][group[0]])
                    guess = int(torch.stack([scores[place] for place in group]).sum(0)[1:].argmax()) + 1
                    voted[_group(PRINTABLE[truth - 1])][0] += guess == truth
                    voted[_group(PRINTABLE[truth - 1])][1] += 1
        by_head = ", ".join(f"{name} {a / b:.2f}" for name, (a, b) in patches.items() if b)
        by_group = ", ".join(f"{name} {a / b:.2f} ({b})" for name, (a, b) in sorted(voted.items()))
        print(f"| {kind} | {by_head} | {by_group} |", flush=True)
