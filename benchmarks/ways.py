"""Ways to train on the same turns: ours, TRL's SFTTrainer, and AFSFT as the paper's text reads.

Each collates a batch from turns and takes a step on it: losses, gradients, clipping, optimiser, target critic.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.case import PROMPT, Case, make_turns
from benchmarks.naive import PAPER, naive_loss, pixels
from benchmarks.trl_peer import TRL
from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.features import FeatureCache
from lightning_vlmq.modules.optim import Group, clip_groups, make_optimizer
from lightning_vlmq.turns import Turn

__all__ = ["AFSFT", "BASE", "NAIVE", "NO_CACHE", "SFT", "SINGLE", "TRL_REPLIES", "TRL_SFT", "WAYS", "Way", "Ways"]

AFSFT = "AFSFT, windows of 4"
SINGLE = "AFSFT, windows of 1"
NO_CACHE = "AFSFT, windows of 4, no feature cache"
BASE = "AFSFT, windows of 4, default options"
SFT = "SFT (ours)"
TRL_SFT = "TRL SFT"
TRL_REPLIES = "TRL SFT, replies scored only"
NAIVE = "naive AFSFT"
WAYS = (AFSFT, SINGLE, NO_CACHE, BASE, SFT, TRL_SFT, TRL_REPLIES, NAIVE)

_WINDOW = 4
_CLIP, _TAU = 2.0, 0.008  # the paper's


class Way(NamedTuple):
    """How to train on the turns of a batch.

    Attributes:
        collate: Makes a batch of turns.
        step: Trains on it once.
    """

    collate: Callable[[], Any]
    step: Callable[[Any], None]


class Ways:
    """Makes ways on one model, each when it is asked for.

    Args:
        case: Shapes of model and turns.
        folder: Of the model.
        turns: Turns of a batch: windows of four consecutive turns of episodes that all go on.

    Raises:
        ValueError: ``turns`` is no multiple of the window.
    """

    def __init__(self, case: Case, folder: Path, turns: int) -> None:
        if turns % _WINDOW:
            raise ValueError(f"turns {turns}: give a multiple of {_WINDOW}, the length of windows")
        self.case, self.folder, self.turns = case, folder, turns
        self.vlm = VLM(str(folder))
        self._seeds = iter(range(10**6))
        self.windows = self._windows()

    def make(self, name: str, *, keep_gradients: bool = False) -> Way:
        """The way of a name out of ``WAYS``; it may leave gradients in place behind a step, set to zero."""
        self._to_none = not keep_gradients
        if name == TRL_SFT:
            return Way(self._trl.collate, self._trl.step)
        if name == TRL_REPLIES:
            return Way(self._trl.collate, self._trl.step_as_on_a_gpu)
        if name == NAIVE:
            return Way(self._naive_batch, self._paper.naive)
        if name == NO_CACHE:
            return Way(self._batch_of_new_pictures, self._paper.step)
        encoded = functools.partial(_encoded, self._encoder, self.windows)
        if name == SINGLE:
            return Way(functools.partial(encoded, together=False), self._paper.step)
        if name == AFSFT:
            return Way(encoded, self._paper.step)
        options: dict[str, Any] = {SFT: {"td_weight": 0.0}, BASE: {}}[name]
        return Way(encoded, self._update(options).step)

    @functools.cached_property
    def _paper(self) -> "_Update":
        return self._update(PAPER)

    def _update(self, options: dict[str, Any]) -> "_Update":
        return _Update(VLMQ(self.vlm, **options), self._to_none)

    @functools.cached_property
    def _trl(self) -> TRL:
        turns = [turn for window in self.windows for turn in _turns(window)]
        return TRL(self.folder, self.vlm, turns, _CLIP, set_to_none=self._to_none)

    @functools.cached_property
    def _encoder(self) -> TurnEncoder:
        return TurnEncoder(self.vlm, PROMPT)

    @functools.cached_property
    def _forgetful(self) -> TurnEncoder:
        return TurnEncoder(self.vlm, PROMPT, features=FeatureCache(self.vlm, memory_mb=0))

    def _windows(self) -> list[list[Turn]]:
        """Windows, each with the turn behind it, of pictures that were not seen before."""
        return [make_turns(self.case, _WINDOW + 1, next(self._seeds)) for _ in range(self.turns // _WINDOW)]

    def _batch_of_new_pictures(self) -> TokenBatch:
        features, windows = self._forgetful.features, self._windows()
        before = features.computed
        batch = _encoded(self._forgetful, windows)
        assert features.computed - before == sum(map(len, windows)), "no picture was known"
        return batch

    def _naive_batch(self) -> tuple[TokenBatch, Any, Any]:
        batch = _encoded(self._encoder, self.windows, together=False)
        shown, following = ([t for w in self.windows for t in part(w)] for part in (_turns, _successors))
        return batch, pixels(self.vlm, shown), pixels(self.vlm, following)


class _Update:
    """A module and its optimiser, as Lightning runs them: one step."""

    def __init__(self, module: VLMQ, set_to_none: bool) -> None:
        self.module, self._to_none = module.train(), set_to_none
        module.threshold = 0.0
        parts = {"vlm": module.vlm, "critic": module.critic}
        groups = [Group(name, list(part.parameters()), 1e-4, 0) for name, part in parts.items()]
        self._optimizer, self._schedule = make_optimizer("adamw", groups, 0.0)

    def step(self, batch: TokenBatch) -> None:
        self._update(self.module.losses(batch)[0])

    def naive(self, batch: tuple[TokenBatch, Any, Any]) -> None:
        self._update(naive_loss(self.module, *batch))

    def _update(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        clip_groups(self._optimizer, _CLIP, None)
        self._optimizer.step()
        self._schedule.step()
        self.module.critic.commit()
        self.module.critic.ema_update(_TAU)
        self._optimizer.zero_grad(self._to_none)


def _encoded(encoder: TurnEncoder, windows: list[list[Turn]], together: bool = True) -> TokenBatch:
    turns = [turn for window in windows for turn in _turns(window)]
    following = [turn for window in windows for turn in _successors(window)]
    behind = [number % _WINDOW == _WINDOW - 1 for number in range(len(turns))]
    return encoder.batch(
        turns, [turn if last or not together else None for turn, last in zip(following, behind, strict=True)]
    )


def _turns(window: list[Turn]) -> list[Turn]:
    return window[:-1]


def _successors(window: list[Turn]) -> Iterator[Turn]:
    yield from window[1:]
