"""Offline demonstrations: turns of a store as batches of tokens."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_vlmq.augmentation import Augmentation
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.collection import collect
from lightning_vlmq.collectors import Collector
from lightning_vlmq.datamodules.loaders import loader
from lightning_vlmq.datamodules.windows import Rows, Window, Windows, read
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.features import FeatureCache
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.store import TurnStore
from lightning_vlmq.turns import Turn
from lightning_vlmq.vlm import VLM

__all__ = ["Demonstrations"]


class Demonstrations(L.LightningDataModule):
    """Batches of a store's turns, shuffled pass by pass; the store is made on the spot if there is none.

    The VLM that renders and encodes is the one of the module that is fitted (``module.vlm``), so turns that
    another model collected are encoded for the student.

    Args:
        folder: Of the turns, see :class:`~lightning_vlmq.store.TurnStore`; ``null`` takes ``data`` in the trainer's
            ``default_root_dir``, the run's folder.
        environment: What the turns are of; plays to make demonstrations and to score agents. May be left out
            if the folder holds turns and nothing is played.
        prompt: How observations become prompts.
        augmentation: Changes training pictures at random, for instance
            :class:`~lightning_vlmq.augmentation.RandomZoomOut`; held-out turns and play stay as they are.
        turns: Turns to collect if the folder holds none that somebody else put there; 0 collects nothing and takes what
            is there. Whole rounds of episodes are played, so some more are stored.
        mixture: Share of each policy among collected turns, see :data:`~lightning_vlmq.collection.POLICIES`, and of
            each of ``collectors``.
        collectors: Other models by the names that the mixture gives them, for instance
            :class:`~lightning_vlmq.collectors.OtherVLM` and :class:`~lightning_vlmq.collectors.TextLLM`.
        temperature: Of the VLM's replies while collecting.
        parallel: Episodes played at once while collecting; a round is four times as many.
        batch_size: Turns a batch, on each device.
        window: Consecutive turns of an episode that are drawn together, at most: the next turn's state then comes from
            the same forward pass, and the pass for next turns, without a gradient, reads one prompt a window in place
            of one a turn. Every turn is drawn as often as before, but those of a batch resemble each other more.
        batches_per_epoch: Batches an epoch, on each device.
        holdout: Share of the episodes kept for validation, the last ones.
        validation_batches: Batches of held-out turns in validation.
        max_reply_tokens: Longest reply in tokens, stop token included.
        features: File of cached image features; ``null`` puts it into the folder.
        features_memory_mb: Bound of cached features in memory, in MB.
        skip_damaged: True reads on past damaged shards.
        seed: Of collection and of the order of batches; ``null`` takes ``seed_everything``'s.

    Raises:
        ValueError: There are no turns and none are to be collected, a reply that is to be learned cannot be encoded, or
            ``window`` is not from 1 to ``batch_size``.
    """

    _needs_turns = True

    def __init__(
        self,
        folder: str | None = None,
        environment: AgentEnv | None = None,
        *,
        prompt: PromptMethod | None = None,
        augmentation: Augmentation | None = None,
        turns: int = 10_000,
        mixture: dict[str, float] | None = None,
        collectors: dict[str, Collector] | None = None,
        temperature: float = 1.0,
        parallel: int = 256,
        batch_size: int = 16,
        window: int = 1,
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
        if not 1 <= window <= batch_size:
            raise ValueError(f"window {window}: give a number of turns from 1 to batch_size, {batch_size}")
        self._folder = folder
        self.environment = environment
        self.prompt = prompt or PromptMethod()
        self.augmentation = augmentation
        self.turns = turns
        self.mixture = mixture or {"random": 0.75, "base": 0.25}
        self.collectors = collectors or {}
        self.temperature = temperature
        self.parallel = parallel
        self.batch_size = batch_size
        self.window = window
        self.batches_per_epoch = batches_per_epoch
        self.holdout = holdout
        self.validation_batches = validation_batches
        self.max_reply_tokens = max_reply_tokens
        self.features = features
        self.features_memory_mb = features_memory_mb
        self.skip_damaged = skip_damaged
        self.seed = seed
        self._drawn = 0
        self._known: dict[str, Windows] = {}
        self.encoder: TurnEncoder
        self.store: TurnStore

    @property
    def folder(self) -> Path:
        """Where the turns are."""
        if self._folder is not None:
            return Path(self._folder)
        return Path(self.trainer.default_root_dir if self.trainer else ".") / "data"

    # -- Lightning's hooks ----------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Collects demonstrations if a folder of our own holds too few; runs on one process of each node."""
        collected = (self.folder / "collection.json").exists()
        given = any(self.folder.glob("*.parquet")) and (self.environment is None or not collected)
        if self.turns <= 0 or given:
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
            seed=self.run_seed,
            parallel=self.parallel,
            skip_damaged=self.skip_damaged,
            collectors=self.collectors,
        )
        vlm.to(home)

    def setup(self, stage: str) -> None:
        """Opens the store and encodes with the fitted module's VLM."""
        self.store = TurnStore(self.folder, skip_damaged=self.skip_damaged)
        self.encoder = self._make_encoder()
        if self.window > 1 and self.encoder.reads_next_apart:
            rank_zero_warn(
                f"window: {self.window} saves nothing: in training the VLM drops out, so next turns are read apart; "
                f"set vlm.lora_dropout: 0 (and dropout in the model's own configuration), or window: 1"
            )
        masks = self.store.columns(["imitate", "td"])
        samples = self.store.samples
        samples = samples[(masks["imitate"] | masks["td"])[samples]]  # what neither loss may use is not even encoded
        if not len(samples) and self._needs_turns:
            raise ValueError(
                f"{self.folder} holds no turns to train on; run `vlmq collect` or set data.turns and data.environment"
            )
        self._check_replies(samples)
        split = self._split(samples)
        self.training_rows, self.validation_rows = samples[:split], samples[split:]

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Batches of shuffled turns, a function of seed, rank and the number of batches drawn before."""
        return loader(self._training_batches, self.batches_per_epoch)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """Batches of held-out turns, the same each time."""
        return loader(self._validation_batches, self.validation_batches)

    def test_dataloader(self) -> DataLoader[TokenBatch]:
        """As in validation."""
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The number of batches drawn, so that a resumed run goes on with the next one."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on behind the batches that were drawn."""
        self._drawn = int(state_dict["drawn"])

    def _training_batches(self) -> Iterator[TokenBatch]:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        while True:
            number = self._drawn
            # counted before it is handed out: at the end of its step the batch is done
            self._drawn += 1
            yield self._draw(self.training_rows, 0, number * ranks + rank, self.augmentation)

    def _validation_batches(self) -> Iterator[TokenBatch]:
        for number in itertools.count():
            yield self._draw(self._held_out_rows, 1, number)

    def _draw(self, rows: Rows, part: int, number: int, augmentation: Augmentation | None = None) -> TokenBatch:
        """The batch of that number, counted over all ranks."""
        rng = np.random.default_rng([self.run_seed, part, number])
        turns, successors = read(self._chosen(rows, part, number, rng))
        if augmentation is not None:
            turns = [_augmented(turn, augmentation, rng) for turn in turns]
            successors = [after and _augmented(after, augmentation, rng) for after in successors]
        return self.encoder.batch(turns, successors)

    def _chosen(self, rows: Rows, part: int, number: int, rng: np.random.Generator) -> list[Window]:
        """Windows of a batch: those of a shuffled pass."""
        windows = self._windows(f"part {part}", self.store, rows)
        return windows.shuffled(number * self.batch_size, self.batch_size, self.run_seed, part)

    def _windows(self, name: str, store: TurnStore, rows: Rows) -> Windows:
        """Rows in windows, cut anew when there are others under that name."""
        known = self._known.get(name)
        if known is None or known.rows is not rows:
            known = self._known[name] = Windows(store, rows, self.window)
        return known

    def held_out(self, count: int) -> list[tuple[Turn, Turn]]:
        """Held-out turns and the rows after them, spread evenly and the same each time, to look at.

        Args:
            count: How many at most.
        """
        rows = self._held_out_rows
        return [(self.store[row], self.store[row + 1]) for row in rows[spread(len(rows), count)].tolist()]

    # -- parts ----------------------------------------------------------------------------------------------

    @property
    def _held_out_rows(self) -> Rows:
        """What validation shows: the training turns where none are held out."""
        rows: Rows = self.validation_rows if len(self.validation_rows) else self.training_rows
        return rows

    def _vlm(self) -> Any:
        module = self.trainer.lightning_module if self.trainer else None
        if module is None or not hasattr(module, "vlm"):
            raise ValueError("Demonstrations needs a module with a `vlm` (such as VLMQ) in the same Trainer")
        return module.vlm

    def encoder_recipe(self) -> Callable[[VLM], TurnEncoder]:
        """Makes the encoder of a VLM; it can be sent to a process that plays."""
        path = Path(self.features) if self.features else self.folder / "features.sqlite"
        return partial(
            _encoder,
            prompt=self.prompt,
            features=path,
            memory_mb=self.features_memory_mb,
            max_reply_tokens=self.max_reply_tokens,
        )

    def _make_encoder(self) -> TurnEncoder:
        return self.encoder_recipe()(self._vlm())

    def _check_replies(self, rows: Rows) -> None:
        """Encodes every distinct reply as text once, and looks at the longest one in our tokens: before the fit."""
        columns = self.store.columns(["reply", "tokenizer", "cut", "reply_ids"])
        reply, tokenizer, cut, ids = (column[rows] for column in columns.values())
        lengths = np.array([len(each) for each in ids], dtype=np.int64)
        ours = (tokenizer == self.encoder.tokenizer_fingerprint) & (lengths > 0)
        texts = list(zip(reply[~ours].tolist(), cut[~ours].tolist(), rows[~ours].tolist(), strict=True))
        looked_at = list({(text, is_cut): row for text, is_cut, row in reversed(texts)}.values())
        if ours.any():
            looked_at.append(int(rows[ours][lengths[ours].argmax()]))
        for row in looked_at:
            try:
                self.encoder.reply_ids(self.store[row])
            except ValueError as error:
                raise ValueError(f"{self.folder}: {error}") from None

    @property
    def run_seed(self) -> int:
        """Seed of the run: the own one or ``seed_everything``'s."""
        if self.seed is not None:
            return self.seed
        return int(os.environ.get("PL_GLOBAL_SEED", "0"))

    def _split(self, samples: Rows) -> int:
        """Number of training samples; held out are the last episodes, whole ones."""
        split = round(len(samples) * (1 - self.holdout))
        if split in (0, len(samples)):
            return len(samples)
        episodes = self.store.columns(["episode"])["episode"]
        while split < len(samples) and episodes[samples[split]] == episodes[samples[split - 1]]:
            split += 1
        return split


def spread(length: int, count: int) -> Rows:
    """Places from 0 to ``length - 1``, ``count`` at most, both ends among them and the others evenly between."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def _encoder(vlm: VLM, *, prompt: PromptMethod, features: Path, memory_mb: int, max_reply_tokens: int) -> TurnEncoder:
    cache = FeatureCache(vlm, features, memory_mb=memory_mb)
    return TurnEncoder(vlm, prompt, features=cache, max_reply_tokens=max_reply_tokens)


def _augmented(turn: Turn, augmentation: Augmentation, rng: np.random.Generator) -> Turn:
    images = tuple(augmentation(image, rng) for image in turn.observation.images)
    return replace(turn, observation=replace(turn.observation, images=images))
