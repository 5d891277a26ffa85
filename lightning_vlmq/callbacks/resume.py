"""Exact resume: random generators go on where the checkpoint left them."""

import random
import warnings
from typing import Any, cast

import lightning as L
import numpy as np
import torch

from lightning_vlmq.callbacks.ranks import of_all_ranks

__all__ = ["RandomState"]


class RandomState(L.Callback):
    """Saves each rank's generators of Python, NumPy and torch with a checkpoint; restores them before the next batch.

    Without it a resumed run draws other dropout masks and is no longer equal to an uninterrupted one. All ranks must
    take part where a checkpoint is saved, as they do in Lightning.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks as plain types, which the safe checkpoint loader accepts."""
        # the global state is the point
        name, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state())  # noqa: NPY002
        state: dict[str, Any] = {
            "python": random.getstate(),
            "numpy": [name, keys.tolist(), position, has_gauss, gauss],
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        return {"ranks": of_all_ranks(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training really goes on: set-up draws numbers, too."""
        self._pending = state_dict

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restores the states once; a rank that the checkpoint does not know keeps its own."""
        if self._pending is None:
            return
        ranks, self._pending = self._pending["ranks"], None
        if trainer.global_rank >= len(ranks):
            warnings.warn(f"the checkpoint is of {len(ranks)} ranks: further ones draw other numbers", stacklevel=2)
            return
        state = ranks[trainer.global_rank]
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))  # noqa: NPY002
        torch.set_rng_state(state["torch"].cpu())
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
