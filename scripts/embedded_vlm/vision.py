"""Stage 1: the vision tower learns to read, with plain classification heads on its patches.

A fresh tower that sees whole pictures stays at the prior for thousands of steps: each patch must find its neighbours
among 256. So attention first stays within windows of 4 x 4 patches, then of 8 x 8, and is whole in the end
(:data:`LESSONS`). Windows are a matter of training only; the model that is shipped always sees whole pictures.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

from scripts.embedded_vlm.canvas import HEADS, PATCHES
from scripts.embedded_vlm.model import encode_pictures, make_config, make_local
from scripts.embedded_vlm.pictures import DENSE_SHARES, MIDDLE_SHARES, WHOLE_SHARES, make_scene
from scripts.embedded_vlm.training import Trained, worker_random

__all__ = ["LESSONS", "Classifier", "Lesson", "Pictures", "train_vision"]

NOTHING = 0.05
"""Weight of a patch that shows nothing of a head's classes."""

WEIGHTS = {"char": 3.0, "rank": 1.5, "number": 1.0, "word": 1.0, "line": 0.6, "suit": 0.5, "total": 0.1}
"""Weights of the heads' losses, 0.3 for the others: heads that cannot be right yet would drown those that learn."""


class Lesson(NamedTuple):
    """What a part of the stage practises.

    Attributes:
        end: Step at which it ends.
        window: Side of the attention windows in patches.
        shares: Share of each kind of picture.
        batch: Pictures a step; a quarter of them fresh, the rest repeated from a pool of recent ones.
    """

    end: int
    window: int
    shares: dict[str, float]
    batch: int = 16


LESSONS = (
    Lesson(528, 4, MIDDLE_SHARES),
    Lesson(1320, 8, DENSE_SHARES),
    Lesson(3300, PATCHES, WHOLE_SHARES),
    # Words need many more pictures than digits and cards; meant for a GPU.
    Lesson(5900, PATCHES, WHOLE_SHARES, 128),
)


class Classifier(nn.Module):
    """Vision tower with a linear head for each kind of label on every patch.

    Args:
        vision: The tower.
    """

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision
        self.head = nn.Linear(160, sum(HEADS.values()))

    def forward(self, pixels: Tensor, window: int = PATCHES, corner: tuple[int, int] = (0, 0)) -> list[Tensor]:
        """Logits of each head for pictures.

        Args:
            pixels: Pictures ``[B, 3, 256, 256]``.
            window: Side of the windows in patches that attention stays in.
            corner: Row and column of the first window's corner; the raster wraps around.

        Returns:
            Logits ``[B, 256, classes]`` of each head.
        """
        if window == PATCHES:
            hidden = self.vision(pixel_values=pixels).last_hidden_state
        else:
            embeddings, count = self.vision.embeddings, PATCHES // window
            hidden = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
            hidden = hidden + embeddings.position_embedding.weight
            order = torch.arange(PATCHES**2).view(PATCHES, PATCHES).roll((-corner[0], -corner[1]), (0, 1))
            order = order.view(count, window, count, window).transpose(1, 2).flatten()  # window by window
            windows = hidden[:, order].reshape(-1, window**2, hidden.shape[-1])
            windows = self.vision.encoder(inputs_embeds=windows, attention_mask=None).last_hidden_state
            hidden = self.vision.post_layernorm(windows).reshape(hidden.shape)[:, order.argsort()]
        return list(self.head(hidden).split(list(HEADS.values()), -1))


class Pictures(IterableDataset[tuple[np.ndarray, np.ndarray]]):
    """Endless fresh pictures with their labels.

    Args:
        seed: Seed of the stream.
        shares: Share of each kind of picture.
    """

    def __init__(self, seed: int, shares: dict[str, float]) -> None:
        self.seed, self.shares = seed, shares

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Draw pictures for ever."""
        os.nice(10)  # the renderer must not hold up the training threads
        rng, _, _ = worker_random(self.seed)
        while True:
            scene = make_scene(rng, shares=self.shares)
            yield scene.image.copy(), scene.labels


def _loss(logits: list[Tensor], labels: Tensor) -> tuple[Tensor, np.ndarray]:
    """Weighted cross-entropy of all heads; per head correct and present labelled patches ``[heads, 2]``."""
    losses, counts = [], []
    for head, scores in enumerate(logits):
        target = labels[:, head].reshape(-1)
        scores = scores.reshape(len(target), -1).float()
        weight = torch.where(target > 0, 1.0, NOTHING)
        losses.append((nn.functional.cross_entropy(scores, target, reduction="none") * weight).sum() / weight.sum())
        seen = target > 0
        counts.append(torch.stack([((scores.argmax(-1) == target) & seen).sum(), seen.sum()]))
    weights = torch.tensor([WEIGHTS.get(head, 0.3) for head in HEADS], device=labels.device)
    return (weights * torch.stack(losses)).sum(), torch.stack(counts).cpu().numpy()


def train_vision(
    folder: Path, lessons: tuple[Lesson, ...] = LESSONS, *, rate: float = 2e-3, seed: int = 1, device: str = "cpu",
    workers: int = 1,
) -> None:  # fmt: skip
    """Train the tower and keep it in ``folder/vision.pt``; continues where an interrupted run stopped.

    Args:
        folder: Working folder.
        lessons: What is practised when; the last one's end is the number of optimiser steps.
        rate: Peak learning rate.
        seed: Seed of weights and pictures.
        device: Device to train on.
        workers: Processes that draw pictures.
    """
    torch.manual_seed(seed)
    ids = dict.fromkeys(("image", "eos", "pad", "bos"), 0)
    model = Classifier(Idefics3VisionTransformer(make_config(1536, ids).vision_config))
    make_local(model.vision)
    model.to(device)
    steps = lessons[-1].end
    trained = Trained(model, folder / "vision.pt", steps, rate, clip=2.0)
    start = trained.start
    rng, clock, tallies = Random(seed + start), time.time(), np.zeros((len(HEADS), 2))
    current, stream, pool = None, iter(()), []
    for step in range(start, steps):
        lesson = next(entry for entry in lessons if step < entry.end)
        window, fresh_size = lesson.window, lesson.batch // 4
        if lesson is not current:
            current = lesson
            data = Pictures(1_000_000 * seed + 1000 * step, lesson.shares)
            stream = iter(DataLoader(data, batch_size=fresh_size, num_workers=workers, prefetch_factor=16))
            pool = [next(stream) for _ in range(150)]
        fresh = next(stream)
        pool.append(fresh)
        if len(pool) > 500:
            pool.pop(0)
        repeated = rng.choices(pool, k=(lesson.batch - fresh_size) // fresh_size)
        pictures, labels = (torch.cat(parts).to(device) for parts in zip(fresh, *repeated, strict=True))
        if window < PATCHES:  # every place sees everything: pictures are rolled by whole patches
            rows, columns = rng.randrange(PATCHES), rng.randrange(PATCHES)
            pictures = pictures.roll((16 * rows, 16 * columns), (1, 2))
            labels = labels.roll((rows, columns), (2, 3))
        corner = (rng.randrange(window), rng.randrange(window))
        loss, counts = _loss(model(encode_pictures(pictures), window, corner), labels.long())
        trained.update(step, loss)
        tallies += counts
        if (step + 1) % 50 == 0:
            right = " ".join(f"{n} {a / max(1, b):.2f}" for n, (a, b) in zip(HEADS, tallies, strict=True))
            print(
                f"vision {step + 1}/{steps} window {window} {(time.time() - clock) / 50:.2f} s/step "
                f"loss {float(loss.detach()):.2f} | {right}",
                flush=True,
            )
            clock, tallies = time.time(), np.zeros((len(HEADS), 2))
