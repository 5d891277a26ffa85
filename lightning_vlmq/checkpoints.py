"""Checkpoints that a killed run cannot damage."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lightning_vlmq.files import write_atomic

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way of saving, but the old checkpoint stands until the new one is whole, also after a crash.

    Lightning writes to ``TMPDIR`` and moves, which between two file systems is a copy into the place of the old one.
    Here a checkpoint is written beside the old one, synchronised and renamed; meanwhile it is in memory twice. ``vlmq``
    saves in this way; elsewhere say ``Trainer(plugins=[AtomicCheckpointIO()])``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves to a folder, which is made; other places (``s3://...``) are Lightning's."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(path, buffer.getbuffer())
