import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_vlmq import AtomicCheckpointIO


def test_a_checkpoint_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``TMPDIR`` may be another file system: then a move is a copy into the place of the old checkpoint."""

    def no_move(*args: Any, **options: Any) -> None:
        raise OSError("the move was interrupted")

    monkeypatch.setattr(shutil, "move", no_move)
    path = tmp_path / "new" / "last.ckpt"
    trainer = _fit(tmp_path)
    trainer.save_checkpoint(path)
    before = path.read_bytes()
    assert torch.load(path, weights_only=True)["global_step"] == 2
    monkeypatch.setattr(os, "replace", no_move)
    with pytest.raises(OSError, match="interrupted"):
        trainer.save_checkpoint(path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    trainer.save_checkpoint(path)
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    assert trainer.strategy.load_checkpoint(path, weights_only=True)["global_step"] == 2


def test_other_places_are_lightnings(tmp_path: Path) -> None:
    trainer = _fit(tmp_path)
    trainer.save_checkpoint("memory://folder/last.ckpt")
    assert trainer.strategy.load_checkpoint("memory://folder/last.ckpt", weights_only=True)["global_step"] == 2


def _fit(folder: Path) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=2,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(BoringModel())
    return trainer
