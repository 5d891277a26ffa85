"""Memory of a fit before it runs: parameters, memory by part and by stage, and the largest batch that fits a card."""

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_vlmq.datamodules import Demonstrations
from lightning_vlmq.estimate.batch import LongestTurns
from lightning_vlmq.estimate.parts import Part, weights_by_part, weights_of
from lightning_vlmq.estimate.stages import StepMemory, Training, encoding, generation
from lightning_vlmq.modules import VLMQ
from lightning_vlmq.shapes import drop_numbers

__all__ = ["CARDS_GB", "Estimate", "estimate", "print_estimate"]

CARDS_GB = (16.0, 24.0, 40.0, 80.0)
"""Usual cards."""

_GB = 2**30
_CONTEXT = _GB // 2
"""Of a process on a GPU before it holds a tensor: CUDA's context, kernels and workspaces of its libraries; varies by
card and driver."""
_USABLE = 0.95
"""Share of a card's nominal memory to plan with: some is the driver's, some lies in pieces too small to hand out."""
_ENCODED_AT_ONCE, _GENERATED_AT_ONCE = 16, 128
"""Defaults of :class:`~lightning_vlmq.features.FeatureCache` and :class:`~lightning_vlmq.policy.VLMPolicy`."""


class Estimate(NamedTuple):
    """Bytes expected on one GPU.

    Attributes:
        parts: Weights, with numbers of parameters.
        gradients: Of trained weights, buckets of several GPUs included.
        states: The optimiser's state.
        critic_memory: Batches that the critic replays.
        step: A step of training.
        a_turn: What each further turn of the batch adds to a step's peak.
        stages: Peaks of what a fit does, a step of training among it, by name.
        batch_size: Turns of the batch.
        prompt_tokens: Of each of its prompts, pictures included.
        reply_tokens: Of each of its replies.
    """

    parts: list[Part]
    gradients: int
    states: int
    critic_memory: int
    step: StepMemory
    a_turn: float
    stages: dict[str, int]
    batch_size: int
    prompt_tokens: int
    reply_tokens: int

    @property
    def peak(self) -> int:
        """Most of all stages, CUDA's own part included."""
        return max(self.stages.values()) + _CONTEXT

    def largest_batch(self, card_gb: float) -> int:
        """Turns of the largest batch with which a fit stays within a card; 0 where none does."""
        room = card_gb * _GB * _USABLE - _CONTEXT
        if any(peak > room for name, peak in self.stages.items() if name != _TRAINING):
            return 0
        return max(0, math.floor(self.batch_size + (room - self.stages[_TRAINING]) / self.a_turn))


_TRAINING = "training step"


def estimate(
    module: VLMQ,
    data: Demonstrations,
    *,
    precision: Any,
    callbacks: Sequence[Any] = (),
    accumulate: int = 1,
    clip: bool = True,
    exchanged: bool = False,
) -> Estimate:
    """Runs each stage of a fit once on shapes.

    Args:
        module: The module, its VLM made of shapes; its other weights become shapes.
        data: The DataModule.
        precision: The trainer's precision plugin.
        callbacks: The trainer's, of which some play.
        accumulate: Micro-batches of an optimiser step.
        clip: Whether gradients are clipped.
        exchanged: Whether several GPUs exchange gradients (DDP), for which each keeps them once more.

    Raises:
        ValueError: There are no turns to measure a batch by.
    """
    drop_numbers(module)
    turns = LongestTurns(module.vlm, data)
    parts = weights_by_part(module)
    before_fit = weights_of(module.vlm)
    stages: dict[str, int] = {}
    played = [] if data.environment is None else _played(data, callbacks)
    collected = min(_GENERATED_AT_ONCE, _collected_at_once(data))
    if collected:
        stages[f"collecting demonstrations, {collected} replies at once"] = _generated(
            module, turns, collected, before_fit
        )
    meanwhile = _played_meanwhile(callbacks)
    other = 0
    if meanwhile:  # with a VLM of its own
        generated = _generated(module, turns, meanwhile, before_fit)
        stages[f"collecting meanwhile, {meanwhile} replies at once, beside all below"] = generated
        other = generated + _CONTEXT
    training = Training(module, precision, accumulate=accumulate, clip=clip)
    buckets = training.gradients if exchanged else 0
    step = training.step(turns.batch(data.batch_size))
    critic_memory = training.critic_memory
    beside = buckets + critic_memory + other
    twice = training.step(turns.batch(2 * data.batch_size))
    stages[_TRAINING] = step.peak + buckets + other
    # a tower that is trained encodes in the steps themselves
    if not module.vlm.trains_vision_tower and (pictures := turns.pictures(_ENCODED_AT_ONCE)):
        name = f"encoding pictures, {len(pictures)} at once"
        stages[name] = encoding(module.vlm, pictures, training.resident()) + beside
    for what, rows in played:
        stages[f"{what}, {rows} replies at once"] = _generated(module, turns, rows, training.resident()) + beside
    return Estimate(
        parts,
        training.gradients + buckets,
        training.states,
        critic_memory,
        step,
        (twice.peak - step.peak) / data.batch_size,
        stages,
        data.batch_size,
        turns.prompt_tokens,
        turns.reply_tokens,
    )


def _generated(module: VLMQ, turns: LongestTurns, rows: int, resident: Sequence[Tensor]) -> int:
    return generation(module.vlm, turns.batch(rows).inputs, resident)


def _played(data: Demonstrations, callbacks: Sequence[Any]) -> list[tuple[str, int]]:
    """What plays while a fit goes on, and how many replies it samples at once; the most of each kind."""
    found: dict[str, int] = {}
    for callback in callbacks:
        if getattr(callback, "asynchronous", False):
            continue  # in a process of its own
        for name, what in (("environments", "collecting"), ("episodes", "scoring")):
            rows = getattr(callback, name, None)
            if isinstance(rows, int) and not isinstance(rows, bool):
                found[what] = max(found.get(what, 0), min(rows, _GENERATED_AT_ONCE))
    return [(what, rows) for what, rows in found.items() if rows > 0]


def _played_meanwhile(callbacks: Sequence[Any]) -> int:
    """Replies that a process of its own samples at once while the trainer trains; 0 where there is none."""
    found = [callback.environments for callback in callbacks if getattr(callback, "asynchronous", False)]
    return min(_GENERATED_AT_ONCE, max(found, default=0))


def _collected_at_once(data: Demonstrations) -> int:
    """Replies that the VLM itself samples at once for demonstrations; 0 where these are there or not asked of it."""
    if data.turns <= 0 or data.environment is None or any(data.folder.glob("*.parquet")):
        return 0
    own = sum(share for policy, share in data.mixture.items() if policy.startswith("base"))
    return math.ceil(own * data.parallel)


def print_estimate(found: Estimate, cards_gb: Sequence[float], console: Console | None = None) -> None:
    """Prints three tables: by part, by stage, by card."""
    console = console or Console(width=None if sys.stdout.isatty() else 125)
    table = Table(title="parameters and memory of a training step")
    for header in ("", "trained", "frozen", "GB"):
        table.add_column(header, justify="left" if not header else "right")
    for part in found.parts:
        table.add_row(part.name, f"{part.trained:,}", f"{part.frozen:,}", _gb(part.bytes))
    table.add_row(
        "together",
        f"{sum(part.trained for part in found.parts):,}",
        f"{sum(part.frozen for part in found.parts):,}",
        _gb(sum(part.bytes for part in found.parts)),
        end_section=True,
    )
    step = found.step
    others = {
        "gradients": found.gradients,
        "optimiser's state": found.states,
        "critic's memory": found.critic_memory,
        "kept for the backward pass": step.kept,
        "for a moment, at the peak": step.peak - step.fixed - step.kept,
        "CUDA's context": _CONTEXT,
    }
    for name, taken in others.items():
        if taken > 0:
            table.add_row(name, "", "", _gb(taken))
    table.add_section()
    table.add_row("training step", "", "", _gb(found.stages[_TRAINING] + _CONTEXT))
    console.print(table)

    table = Table(title="expected GPU memory, CUDA's context included")
    table.add_column("")
    table.add_column("GB", justify="right")
    for name, peak in found.stages.items():
        table.add_row(name, _gb(peak + _CONTEXT))
    table.add_row("peak of the fit", _gb(found.peak))
    console.print(table)

    table = Table(title=f"largest data.batch_size that fits (each turn more: {found.a_turn / _GB:.3f} GB)")
    table.add_column("card")
    table.add_column("data.batch_size", justify="right")
    for card in cards_gb:
        largest = found.largest_batch(card)
        table.add_row(f"{card:g} GB", f"{largest:,}" if largest else "none")
    console.print(table)
    console.print(
        f"A batch of {found.batch_size} turns, {found.prompt_tokens} tokens a prompt and {found.reply_tokens} a reply: "
        "the longest prompt of some random play, the longest reply that data.max_reply_tokens allows. A GB: 2^30 bytes."
    )


def _gb(number: float) -> str:
    return f"{number / _GB:.3f}"
