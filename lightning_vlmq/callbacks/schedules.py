"""Schedules of what is not a learning rate."""

import bisect
import math
from typing import Any, Literal

import lightning as L

__all__ = ["Schedule", "apply_schedules"]


class Schedule(L.Callback):
    """Moves a number as training goes on, a function of the step or epoch alone, so that it resumes by itself.

    ``threshold`` is the filter's (beta of eq. 5, in units of reward): before the first place nothing is filtered, so
    everything is imitated at first, then only what helps. ``filter_temperature`` is the exponential filter's,
    ``epsilon`` and ``temperature`` are the :class:`~lightning_vlmq.callbacks.OnlineCollector`'s; these have the first
    value before the first place.

    Args:
        quantity: What to set.
        at: Where the values hold, ascending.
        values: One for each place.
        unit: Whether ``at`` counts optimiser steps or epochs.
        shape: ``"steps"`` keeps a value until the next place, ``"linear"`` goes from one to the next evenly. There is
            nothing between no threshold and the first.

    Raises:
        ValueError: The lists do not fit, ``at`` does not ascend, or a value is out of range (not finite,
            where the shape is linear).
    """

    def __init__(
        self,
        quantity: Literal["threshold", "filter_temperature", "epsilon", "temperature"],
        at: list[int],
        values: list[float],
        unit: Literal["step", "epoch"] = "step",
        shape: Literal["steps", "linear"] = "steps",
    ) -> None:
        if len(at) != len(values) or not at:
            raise ValueError(f"Schedule of {quantity} needs as many values as places, not {len(values)} for {len(at)}")
        if sorted(set(at)) != list(at):
            raise ValueError(f"Schedule.at of {quantity} must ascend, not {at}")
        if shape == "linear" and not all(map(math.isfinite, values)):
            raise ValueError(
                f"Schedule of {quantity}: shape: linear needs finite values, not {values}; take shape: steps"
                f" (a threshold filters nothing before its first place)"
            )
        if quantity == "epsilon" and not all(0 <= value <= 1 for value in values):
            raise ValueError(f"Schedule of epsilon: values must be probabilities, not {values}")
        if quantity == "temperature" and min(values) < 0:
            raise ValueError(f"Schedule of temperature: values must not be below 0, not {values}")
        if quantity == "filter_temperature" and min(values) <= 0:
            raise ValueError(f"Schedule of filter_temperature: values must be above 0, not {values}")
        self.quantity = quantity
        self.places = at
        self.values = values
        self.unit = unit
        self.shape = shape
        self.sets_threshold = quantity == "threshold"
        """By this a module knows that its threshold will be set."""

    def value(self, position: int) -> float | None:
        """Value at a step or epoch; ``None`` is a threshold that filters nothing."""
        index = bisect.bisect_right(self.places, position) - 1
        if index < 0:
            return None if self.quantity == "threshold" else self.values[0]
        if self.shape == "steps" or index + 1 == len(self.places):
            return self.values[index]
        start, end = self.places[index : index + 2]
        before, after = self.values[index : index + 2]
        return before + (after - before) * (position - start) / (end - start)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Checks that there is somebody to set it for."""
        if not self._holders(trainer, pl_module):
            raise ValueError(f"Schedule of {self.quantity} needs the callback OnlineCollector in the same trainer")
        if self.quantity == "filter_temperature" and not hasattr(pl_module, self.quantity):
            raise ValueError(f"Schedule of filter_temperature: {type(pl_module).__name__} has no such filter")

    def apply(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sets the number as it is now."""
        found = self.value(trainer.global_step if self.unit == "step" else trainer.current_epoch)
        for holder in self._holders(trainer, pl_module):
            setattr(holder, self.quantity, found)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Sets the number."""
        self.apply(trainer, pl_module)

    def _holders(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[Any]:
        if self.quantity in ("threshold", "filter_temperature"):
            return [pl_module]
        callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
        return [each for each in callbacks if getattr(each, "collects", False)]


def apply_schedules(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Sets all numbers as they are now, for a callback that needs them before the next batch."""
    for callback in list(trainer.callbacks):  # type: ignore[attr-defined]
        if isinstance(callback, Schedule):
            callback.apply(trainer, pl_module)
