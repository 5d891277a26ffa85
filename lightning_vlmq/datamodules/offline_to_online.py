"""From demonstrations to an agent's own experience, in one stream of batches."""

from pathlib import Path
from typing import Any

import numpy as np

from lightning_vlmq.datamodules.demonstrations import Demonstrations
from lightning_vlmq.datamodules.windows import Rows, Window, drawn
from lightning_vlmq.experience import ExperienceStore

__all__ = ["OfflineToOnline"]


class OfflineToOnline(Demonstrations):
    """Demonstrations first, and what the agent plays itself as soon as there is some.

    The callback :class:`~lightning_vlmq.callbacks.OnlineCollector` fills ``experience``; every batch asks it anew what
    there is. Until the first own turn, batches are those of :class:`~lightning_vlmq.datamodules.Demonstrations`;
    afterwards turns are drawn with replacement.

    Args:
        own_share: Share of own turns in the batches; ``null`` draws evenly from demonstrations and own turns together
            (the paper). Without demonstrations every turn is an own one.
        min_turns: Own turns to collect, on each rank, before training goes on the first time (paper: 5,000 in BabyAI).
        capacity: Own turns to keep, on each rank, the newest; 0 for no limit (paper: 50,000 to 100,000).
        experience_folder: Of own turns, with a folder for each rank in it; ``null`` takes ``experience`` in the
            trainer's ``default_root_dir``, the run's folder.
        **demonstrations: As in ``Demonstrations``; ``turns: 0`` without turns in ``folder`` begins with nothing.

    Attributes:
        experience: Store of this rank's own turns.

    Raises:
        ValueError: ``own_share`` is no share, or a number of turns is negative.
    """

    _needs_turns = False

    def __init__(
        self,
        own_share: float | None = None,
        min_turns: int = 0,
        capacity: int = 50_000,
        experience_folder: str | None = None,
        **demonstrations: Any,
    ) -> None:
        super().__init__(**demonstrations)
        if own_share is not None and not 0 <= own_share <= 1:
            raise ValueError(f"own_share must be a share from 0 to 1, or null, not {own_share}")
        if min_turns < 0 or capacity < 0:
            raise ValueError(f"min_turns {min_turns}, capacity {capacity}: give numbers of turns, or 0")
        if 0 < capacity < min_turns:
            raise ValueError(f"min_turns {min_turns} is more than the capacity, {capacity}")
        self.own_share = own_share
        self.min_turns = min_turns
        self.capacity = capacity
        self._experience_folder = experience_folder
        self.experience: ExperienceStore

    def setup(self, stage: str) -> None:
        """Opens both stores."""
        super().setup(stage)
        rank = self.trainer.global_rank if self.trainer else 0
        root = Path(self.trainer.default_root_dir if self.trainer else ".") / "experience"
        root = Path(self._experience_folder) if self._experience_folder else root
        self.experience = ExperienceStore(
            root / f"rank-{rank}", capacity=self.capacity, skip_damaged=self.skip_damaged, writer=str(rank)
        )

    def _chosen(self, rows: Rows, part: int, number: int, rng: np.random.Generator) -> list[Window]:
        own = self.experience.samples
        held_out = part == 1 and len(rows)
        if not len(own) or held_out:
            if not len(rows):
                raise ValueError(
                    "there are no turns yet, neither demonstrations nor own ones: add an OnlineCollector with "
                    "start_epoch: 0, and set trainer.num_sanity_val_steps: 0"
                )
            return super()._chosen(rows, part, number, rng)
        share = len(own) / (len(own) + len(rows)) if self.own_share is None else self.own_share
        windows = self._windows("own", self.experience, own), self._windows(f"part {part}", self.store, rows)
        return drawn(*windows, share if len(rows) else 1.0, self.batch_size, rng)
