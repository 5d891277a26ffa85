"""What a fit that will be killed says of itself: a callback that writes each step to a file at once."""

import json
from pathlib import Path
from typing import Any

import lightning as L

from lightning_vlmq import OfflineToOnline


class Witness(L.Callback):
    """Writes a line to ``witness.jsonl`` in the trainer's ``default_root_dir`` wherever the fit gets.

    The first line holds the state of the experience, behind what a checkpoint restores. A phase lasts to the next line:
    ``play`` from an epoch's end to the first batch of the next one, ``training``, ``evaluation``, ``saving``.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says what was restored."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, OfflineToOnline):
            self._say(trainer, "play", store=data.experience.state())
        else:
            self._say(trainer, "play")

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """A batch."""
        self._say(trainer, "training")

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Its step."""
        self._say(trainer, "training")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An evaluation."""
        self._say(trainer, "evaluation")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint."""
        self._say(trainer, "saving")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What comes next."""
        self._say(trainer, "play")

    def _say(self, trainer: L.Trainer, phase: str, **more: Any) -> None:
        if trainer.is_global_zero:
            with Path(trainer.default_root_dir, "witness.jsonl").open("a") as file:
                file.write(json.dumps({"phase": phase, "step": trainer.global_step, **more}) + "\n")


def testimony(path: Path) -> list[dict[str, Any]]:
    """The lines; the last one may be cut off."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
