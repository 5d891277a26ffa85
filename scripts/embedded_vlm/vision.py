"""Stage 1b: the vision tower learns whole pictures with plain classification heads on its patches."""

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

from scripts.embedded_vlm.canvas import HEADS
from scripts.embedded_vlm.model import Average, encode_pictures, make_config, make_optimizers, set_rate
from scripts.embedded_vlm.pictures import DENSE_SHARES, MIDDLE_SHARES, make_scene

__all__ = ["Classifier", "Pictures", "train_vision"]

NOTHING = 0.05
"""Weight of a patch that shows nothing of a head's classes."""


WEIGHTS = {"char": 3.0, "rank": 1.5, "number": 1.0, "suit": 0.5, "total": 0.1}
"""Weights of the heads' losses, 0.3 for the others: heads that cannot be right yet would drown those that learn."""

LESSONS = ((1500, MIDDLE_SHARES), (10**9, DENSE_SHARES))
"""Pictures up to which each mixture is drawn."""


class Classifier(nn.Module):
    """Vision tower with a linear head for each kind of label on every patch.

    Args:
        vision: The tower.
    """

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.head = nn.Linear(160, sum(HEADS.values()))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Logits of each head ``[B, 256, classes]`` for pictures ``[B, 3, 256, 256]``."""
        return list(self.head(self.vision(pixel_values=pixels).last_hidden_state).split(list(HEADS.values()), -1))


class Pictures(IterableDataset[tuple[np.ndarray, np.ndarray]]):
    """Endless fresh pictures with their labels.

    Args:
        seed: Seed of the stream.
        first: Pictures that were drawn before: the easy ones come first (:data:`LESSONS`).
    """

    def __init__(self, seed: int, first: int = 0) -> None:
        self.seed, self.first = seed, first

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draw pictures for ever."""
        os.nice(10)  # the renderer must not hold up the training threads
        rng = Random(self.seed)
        for drawn in itertools.count(self.first):
            shares = next(shares for end, shares in LESSONS if drawn < end)
            scene = make_scene(rng, shares=shares)
            yield scene.image.copy(), scene.labels


def _loss(logits: list[Tensor], labels: Tensor) -> tuple[Tensor, list[tuple[float, float]]]:
    """Weighted cross-entropy of all heads; per head correct and present labelled patches."""
    losses, counts = [], []
    for head, scores in enumerate(logits):
        target = labels[:, head].reshape(-1)
        scores = scores.reshape(len(target), -1).float()
        weight = torch.where(target > 0, 1.0, NOTHING)
        losses.append((nn.functional.cross_entropy(scores, target, reduction="none") * weight).sum() / weight.sum())
        seen = target > 0
        counts.append((float((scores.argmax(-1) == target)[seen].sum()), float(seen.sum())))
    weights = torch.tensor([WEIGHTS.get(head, 0.3) for head in HEADS])
    return (weights * torch.stack(losses)).sum(), counts


def train_vision(folder: Path, steps: int, batch: int = 16, rate: float = 1.5e-3, seed: int = 1) -> None:
    """Train the tower and keep it in ``folder/vision.pt``; continues where an interrupted run stopped.

    The tower starts from ``folder/glyphs.pt`` (stage 1a).

    Args:
        folder: Working folder.
        steps: Optimiser steps.
        batch: Pictures a step; half of them fresh, the rest repeated from a pool of recent ones.
        rate: Peak learning rate.
        seed: Seed of heads and pictures.
    """
    torch.manual_seed(seed)
    ids = {"image": 1, "eos": 2, "pad": 0, "bos": 3}
    model = Classifier(Idefics3VisionTransformer(make_config(1536, ids).vision_config))
    model.vision.load_state_dict(torch.load(folder / "glyphs.pt", weights_only=True))
    average = Average(model)
    optimizers = make_optimizers([(model, rate)])
    fresh_size = batch // 4
    start, path = 0, folder / "vision.pt"
    if path.is_file():
        state = torch.load(path, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        average.values, average.steps = state["average"], start
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            peaks = [group["peak"] for group in optimizer.param_groups]
            optimizer.load_state_dict(kept)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak
    stream = iter(
        DataLoader(
            Pictures(1_000_000 * seed + start, start * fresh_size),
            batch_size=fresh_size,
            num_workers=1,
            prefetch_factor=16,
        )
    )
    pool: list[tuple[Tensor, Tensor]] = [next(stream) for _ in range(150)]
    rng, clock, tallies = Random(seed), time.time(), np.zeros((len(HEADS), 2))
    for step in range(start, steps):
        fresh = next(stream)
        pool.append(fresh)
        if len(pool) > 450:
            pool.pop(0)  # the oldest: lessons move on
        repeated = rng.choices(pool, k=(batch - fresh_size) // fresh_size)
        pictures, labels = (torch.cat(parts) for parts in zip(fresh, *repeated, strict=True))
        set_rate(optimizers, step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(encode_pictures(pictures))
        loss, counts = _loss(logits, labels.long())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(model)
        tallies += np.array(counts)
        if (step + 1) % 50 == 0:
            right = " ".join(f"{n} {a / max(1, b):.2f}" for n, (a, b) in zip(HEADS, tallies, strict=True))
            print(
                f"vision {step + 1}/{steps} {(time.time() - clock) / 50:.2f} s/step loss {loss:.2f} | {right}",
                flush=True,
            )
            clock, tallies = time.time(), np.zeros((len(HEADS), 2))
        if (step + 1) % 250 == 0 or step + 1 == steps:
            folder.mkdir(parents=True, exist_ok=True)
            kept = {"step": step + 1, "model": model.state_dict(), "average": average.values}
            kept["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            torch.save(kept, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
