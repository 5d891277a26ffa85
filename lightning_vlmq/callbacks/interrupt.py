"""Ctrl-C: a fit ends between two steps, with a checkpoint from which it goes on as if it had never stopped."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

__all__ = ["InterruptCheckpoint", "interrupted"]

_NOTED = b"\ninterrupted: the fit ends behind this step with a checkpoint (once more: at once and without one)\n"


class InterruptCheckpoint(L.Callback):
    """Saves ``last.ckpt`` when a fit is interrupted by Ctrl-C (SIGINT), then ends it.

    The signal is noted, and the fit ends on all ranks at the next place where a checkpoint is whole: behind an
    optimiser step, behind an evaluation, between two turns of an :class:`~lightning_vlmq.callbacks.OnlineCollector`.
    A second signal ends it at once, without a checkpoint. ``vlmq fit`` has this callback; it changes nothing where
    somebody else handles or ignores SIGINT.

    Attributes:
        path: The checkpoint: in the folder of the trainer's first ``ModelCheckpoint``, or in ``checkpoints`` of its
            ``default_root_dir``.
        asked: Whether this rank has got the signal.
    """

    def __init__(self) -> None:
        self.path: Path
        self.asked = False
        self._handles = False
        self._step = 0

    # -- Lightning's hooks ----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Takes the last place: only behind all others' hooks is what a checkpoint holds of one step."""
        trainer.callbacks = [*(c for c in trainer.callbacks if c is not self), self]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begins to listen."""
        folder = getattr(trainer.checkpoint_callback, "dirpath", None)
        self.path = Path(folder or Path(trainer.default_root_dir) / "checkpoints") / "last.ckpt"
        self.asked = False
        self._step = trainer.global_step
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._handles = True

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the fit behind the evaluation of the epoch before or, where somebody plays first, in the play."""
        if self._wanted(trainer):
            _leave_epoch(trainer)
            self._end(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends the fit if this batch made a step, but for an epoch's last one: what follows it comes first."""
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if stepped and not trainer.is_last_batch and self._wanted(trainer):
            self._end(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the fit, or listens no longer."""
        if self._wanted(trainer):
            self._end(trainer)
        self._release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Listens no longer."""
        self._release()

    # -- parts ----------------------------------------------------------------------------------------------

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self._release()
            raise KeyboardInterrupt
        self.asked = True
        os.write(2, _NOTED)  # print is not allowed in a handler: it may have been interrupted itself

    def _wanted(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.asked, all=False)

    def _end(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        rank_zero_info(f"interrupted at step {trainer.global_step}: wrote {self.path}")
        self._release()
        raise KeyboardInterrupt

    def _release(self) -> None:
        if self._handles:
            self._handles = False
            signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(trainer: L.Trainer) -> bool:
    """Whether this rank's fit should come to its end: what takes long looks now and then."""
    return any(c.asked for c in trainer.callbacks if isinstance(c, InterruptCheckpoint))  # type: ignore[attr-defined]


def _leave_epoch(trainer: L.Trainer) -> None:
    """Sets Lightning's counts to those between two epochs: one that has just begun would be taken for a full one."""
    epochs, loop = trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop
    for count in (epochs.total, epochs.current):
        count.ready = count.completed
    loop.batch_progress.reset_on_run()
    loop.scheduler_progress.reset_on_run()
    loop.automatic_optimization.optim_progress.reset_on_run()
    loop.val_loop.batch_progress.total.reset()
