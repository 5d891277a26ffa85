"""Schedules of what is not a learning rate."""

from typing import Any

import lightning as L

__all__ = ["ThresholdSchedule"]


class ThresholdSchedule(L.Callback):
    """Steps the filter's threshold (beta of eq. 5): everything is imitated at first, then only what helps.

    The threshold jumps, it is never interpolated: there is nothing between minus infinity and a number.

    Args:
        steps: Optimiser steps at which a threshold begins, ascending.
        values: The thresholds, in units of reward, one a step. Before the first step nothing is filtered,
            whatever the module's own threshold.

    Raises:
        ValueError: The lists do not fit each other or ``steps`` do not ascend.
    """

    sets_threshold = True
    """By this a module knows that its threshold will be set."""

    def __init__(self, steps: list[int], values: list[float]) -> None:
        if len(steps) != len(values) or not steps:
            raise ValueError(f"ThresholdSchedule needs as many values as steps, not {len(values)} for {len(steps)}")
        if sorted(set(steps)) != list(steps):
            raise ValueError(f"ThresholdSchedule.steps must ascend, not {steps}")
        self.steps = steps
        self.values = values

    def at(self, step: int) -> float | None:
        """Threshold at an optimiser step; ``None`` filters nothing."""
        begun = [value for start, value in zip(self.steps, self.values, strict=True) if start <= step]
        return begun[-1] if begun else None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the module's threshold; a function of the step alone, so that it resumes by itself."""
        pl_module.threshold = self.at(trainer.global_step)  # type: ignore[assignment]
