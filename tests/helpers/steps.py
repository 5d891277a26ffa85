"""Modules of numbers and of shapes, to compare what their steps take; and a loop of steps on one batch."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.shapes import drop_numbers, shapes


class Precision:
    """The part of a precision plugin that counts here."""

    def __init__(self, mixed: bool) -> None:
        self.mixed = mixed

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if self.mixed else nullcontext()


def a_module(folder: Path, of_vlm: dict[str, Any], of_module: dict[str, Any], *, numbers: bool) -> VLMQ:
    torch.manual_seed(0)
    with nullcontext() if numbers else shapes():
        module = VLMQ(VLM(str(folder), **{"lora_rank": 4, **of_vlm}), **{"critic_width": 40, **of_module})
    if not numbers:
        drop_numbers(module)
    return module


def actor_losses(module: VLMQ, batch: TokenBatch, steps: int) -> list[float]:
    """Losses of the language head, one before each of some steps on the same batch."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        loss, logs = module.losses(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(logs["loss/actor"]))
    return losses
