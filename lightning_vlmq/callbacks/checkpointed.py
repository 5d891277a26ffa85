"""Which own turns a run's checkpoints name, read without their weights."""

import pickle
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_vlmq.callbacks.ranks import of_all_ranks

__all__ = ["CheckpointedStores"]

States = list[Any]


class CheckpointedStores:
    """States of the experience in every checkpoint that a run may be resumed from.

    These are all ``*.ckpt`` in the folders of the trainer's checkpoint callbacks, and the one that the run came from. A
    file is read again only when it has changed, by memory map: its tensors stay on disk.

    Args:
        key: ``state_key`` of the :class:`~lightning_vlmq.callbacks.OnlineCollector` that saved them.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._read: dict[Path, tuple[int, States]] = {}  # time of the last change, states by rank

    def __call__(self, trainer: L.Trainer) -> States | None:
        """This rank's states, one a checkpoint; ``None``, with a warning, where a checkpoint cannot be read.

        All ranks must call it: the first one reads, others may not see its files.
        """
        checkpoints = of_all_ranks(self._of_ranks(trainer) if trainer.is_global_zero else None)[0]
        rank = trainer.global_rank
        return None if checkpoints is None else [states[rank] for states in checkpoints if rank < len(states)]

    def _of_ranks(self, trainer: L.Trainer) -> list[States] | None:
        """The states of all ranks in each checkpoint."""
        folders = {str(getattr(each, "dirpath", None) or "") for each in trainer.checkpoint_callbacks} - {""}
        paths = {path for folder in folders for path in Path(folder).rglob("*.ckpt")}
        paths |= {path for path in [Path(trainer.ckpt_path or "")] if path.is_file()}
        try:
            remote = [folder for folder in folders if "://" in folder]
            if remote:
                raise OSError(f"{remote[0]} is not a folder of this file system")
            self._read = {path: self._states(path) for path in paths}
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            rank_zero_warn(f"evicted turns are kept, as checkpoints that may name them cannot be read: {reason}")
            return None
        return [states for _, states in self._read.values()]

    def _states(self, path: Path) -> tuple[int, States]:
        changed = path.stat().st_mtime_ns
        if path in self._read and self._read[path][0] == changed:
            return self._read[path]
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        state = checkpoint.get("callbacks", {}).get(self._key, {})
        return changed, [rank["store"] for rank in state.get("ranks", [])]
