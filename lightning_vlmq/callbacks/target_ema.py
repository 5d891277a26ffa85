"""The target critic follows the critic."""

from typing import Any

import lightning as L

__all__ = ["TargetCriticEMA"]


class TargetCriticEMA(L.Callback):
    """Moves the target critic towards the critic once per optimiser step: C-bar <- (1 - tau) C-bar + tau C.

    Args:
        tau: Step of the moving average (paper: .008 Gym Cards and BabyAI, .009 MiniWoB).

    Raises:
        ValueError: ``tau`` is not in (0, 1].
    """

    moves_target_critic = True
    """Modules refuse to fit unless one of their callbacks says this."""

    def __init__(self, tau: float = 0.008) -> None:
        if not 0 < tau <= 1:
            raise ValueError(f"tau must be in (0, 1], not {tau}")
        self.tau = tau
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers the step to start from (a resumed run does not begin at 0)."""
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Interpolates if this batch ended an accumulation."""
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            pl_module.critic.ema_update(self.tau)  # type: ignore[union-attr,operator]
