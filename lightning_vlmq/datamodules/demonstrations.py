"""Offline demonstrations: turns of a store as batches of tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.collect import collect
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.features import FeatureCache
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.store import TurnStore

__all__ = ["Demonstrations"]


class Demonstrations(L.LightningDataModule):
    """Batches of turns drawn evenly from a store; the store is made on the spot if there is none.

    The VLM that renders and encodes is the one of the module that is fitted (``module.vlm``), so turns that
    another model collected are encoded for the student.

    Args:
        folder: Of the turns; see :class:`~lightning_vlmq.store.TurnStore`.
        environment: What the turns are of; plays to make demonstrations and to score agents. May be left out
            if the folder holds turns and nothing is played.
        prompt: How observations become prompts.
        turns: Turns to collect if the folder holds none; 0 collects nothing.
        mixture: Share of each policy among collected turns, see :data:`~lightning_vlmq.collect.POLICIES`.
        temperature: Of the VLM's replies while collecting.
        batch_size: Turns a batch, on each device.
        batches_per_epoch: Batches an epoch, on each device.
        holdout: Share of the episodes kept for validation, the last ones.
        validation_batches: Batches of held-out turns in validation.
        max_reply_tokens: Longest reply in tokens, stop token included.
        features: File of cached image features; ``null`` puts it into the folder.
        features_memory_mb: Bound of cached features in memory, in MB.
        skip_damaged: True reads on past damaged shards.
        seed: Of collection and of the order of batches; ``null`` takes ``seed_everything``'s.

    Raises:
        ValueError: There are no turns and none are to be collected.
    """

    def __init__(
        self,
        folder: str,
        environment: AgentEnv | None = None,
        *,
        prompt: PromptMethod | None = None,
        turns: int = 10_000,
        mixture: dict[str, float] | None = None,
        temperature: float = 1.0,
        batch_size: int = 16,
        batches_per_epoch: int = 250,
        holdout: float = 0.02,
        validation_batches: int = 4,
        max_reply_tokens: int = 24,
        features: str | None = None,
        features_memory_mb: int = 256,
        skip_damaged: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.environment = environment
        self.prompt = prompt or PromptMethod()
        self.turns = turns
        self.mixture = mixture or {"random": 0.75, "base": 0.25}
        self.temperature = temperature
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.holdout = holdout
        self.validation_batches = validation_batches
        self.max_reply_tokens = max_reply_tokens
        self.features = Path(features) if features else self.folder / "features.sqlite"
        self.features_memory_mb = features_memory_mb
        self.skip_damaged = skip_damaged
        self.seed = seed
        self._position = 0
        self._batches: _Batches | None = None
        self.encoder: TurnEncoder
        self.store: TurnStore

    # -- Lightning's hooks ----------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Collects demonstrations if the folder holds too few; runs on one process only."""
        if self.turns <= 0 or (self.folder.exists() and not (self.folder / "collection.json").exists()):
            return
        if self.environment is None:
            raise ValueError(f"{self.folder} holds no turns; give data.environment to collect some")
        vlm = self._vlm()
        home = vlm.device
        vlm.to(self.trainer.strategy.root_device)  # type: ignore[union-attr]
        collect(
            self.environment,
            self._make_encoder(),
            self.folder,
            turns=self.turns,
            mixture=self.mixture,
            temperature=self.temperature,
            seed=self._seed(),
        )
        vlm.to(home)

    def setup(self, stage: str) -> None:
        """Opens the store and encodes with the fitted module's VLM."""
        self.store = TurnStore(self.folder, skip_damaged=self.skip_damaged)
        self.encoder = self._make_encoder()
        samples = self.store.samples
        if not len(samples):
            raise ValueError(f"{self.folder} holds no turns; run `vlmq collect` or set data.turns and data.environment")
        split = self._split(samples)
        self.training_rows, self.validation_rows = samples[:split], samples[split:]

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Batches drawn with replacement, a function of seed, epoch, batch number and rank."""
        self._batches = _Batches(self, self.training_rows, self.batches_per_epoch, first=self._position)
        self._position = 0
        return DataLoader(self._batches, batch_size=None)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """Batches of held-out turns, the same each time."""
        rows = self.validation_rows if len(self.validation_rows) else self.training_rows
        return DataLoader(_Batches(self, rows, self.validation_batches, fixed=True), batch_size=None)

    def test_dataloader(self) -> DataLoader[TokenBatch]:
        """As in validation."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The position within the epoch, so that a resumed run goes on with the next batch."""
        return {"position": self._batches.position % self.batches_per_epoch if self._batches else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the position over for the next iterator."""
        self._position = int(state_dict["position"])
        if self._batches is not None:
            self._batches.first = self._position
            self._position = 0

    # -- parts ----------------------------------------------------------------------------------------------

    def _vlm(self) -> Any:
        module = self.trainer.lightning_module if self.trainer else None
        if module is None or not hasattr(module, "vlm"):
            raise ValueError("Demonstrations needs a module with a `vlm` (such as VLMQ) in the same Trainer")
        return module.vlm

    def _make_encoder(self) -> TurnEncoder:
        vlm = self._vlm()
        features = FeatureCache(vlm, self.features, memory_mb=self.features_memory_mb)
        return TurnEncoder(vlm, self.prompt, features=features, max_reply_tokens=self.max_reply_tokens)

    def _seed(self) -> int:
        if self.seed is not None:
            return self.seed
        import os

        return int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def _split(self, samples: "np.ndarray[Any, np.dtype[np.int64]]") -> int:
        """Number of training samples; held out are the last episodes, whole ones."""
        split = round(len(samples) * (1 - self.holdout))
        if split in (0, len(samples)):
            return len(samples)
        episodes = self.store.columns(["episode"])["episode"]
        while split < len(samples) and episodes[samples[split]] == episodes[samples[split - 1]]:
            split += 1
        return split


class _Batches(IterableDataset[TokenBatch]):
    """Whole batches, iterated in the training process: an iterable is never re-sampled by Lightning."""

    def __init__(self, data: Demonstrations, rows: Any, length: int, *, first: int = 0, fixed: bool = False) -> None:
        self.data = data
        self.rows = rows
        self.length = length
        self.first = first
        self.fixed = fixed
        self.position = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[TokenBatch]:
        first, self.first = self.first, 0
        for number in range(first, self.length):
            batch = self.batch(number)
            # counted before it is handed out: at the end of its step the batch is done
            self.position = number + 1
            yield batch

    def batch(self, number: int) -> TokenBatch:
        trainer = self.data.trainer
        epoch = 0 if self.fixed or trainer is None else trainer.current_epoch
        rank = 0 if trainer is None else trainer.global_rank
        rng = np.random.default_rng([self.data._seed(), epoch, number, rank, int(self.fixed)])
        chosen = self.rows[rng.integers(len(self.rows), size=self.data.batch_size)]
        store = self.data.store
        return self.data.encoder.batch([store[int(i)] for i in chosen], [store[int(i) + 1] for i in chosen])
