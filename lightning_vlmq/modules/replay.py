"""What the critic's loss takes of turns, and a memory of it: states of a frozen base need no second forward pass."""

from collections import deque
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.functional import pad

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.losses import Support

__all__ = ["CriticReplay", "Transitions", "transitions"]


class Transitions(NamedTuple):
    """Turns as the critic's loss takes them; only ``states`` may carry a gradient to the VLM.

    Attributes:
        states: Hidden states that the critic reads ``[B, T, D]``.
        support: What expectations under pi run over, at each of them ``[B, T, K]``.
        reply_ids: Tokens of the reply ``[B, T]``.
        mask: True at tokens that count ``[B, T]``.
        next_states: First states of the next turns, where there are any ``[B', D]``.
        next_support: The same of them ``[B', K]``.
        has_next: Turns that have a next one ``[B]``, ``B'`` of them.
        reward: ``[B]``.
        terminated: True where the episode ended for good ``[B]``.
        weight: Of the turns; 0 where the critic may not learn from them ``[B]``.
    """

    states: Tensor
    support: Support
    reply_ids: Tensor
    mask: Tensor
    next_states: Tensor
    next_support: Support
    has_next: Tensor
    reward: Tensor
    terminated: Tensor
    weight: Tensor


@torch.no_grad()
def transitions(
    batch: TokenBatch, states: Tensor, support: Support, apart: tuple[Tensor, Support] | None
) -> Transitions:
    """What the critic's loss takes of a batch.

    A next turn in the batch has its first state there, where its reply's first token is predicted (section "One step"
    of docs/method.md).

    Args:
        batch: The turns.
        states: What the critic reads of them ``[B, T, D]``.
        support: What expectations under pi run over, at each of these states ``[B, T, K]``.
        apart: The same two of the next turns that were read apart, ``[B', D]`` and ``[B', K]``; ``None`` if none was.
    """
    there, others = batch.has_next.nonzero().squeeze(-1), (batch.has_next & ~batch.next_in_batch).nonzero().squeeze(-1)

    def following(of: Tensor, read: Tensor | None) -> Tensor:
        first = of[:, 0].roll(-1, dims=0)  # of the row behind, whoever's it is
        if read is not None:
            first[others] = read.to(first.dtype)
        return first[there]

    read, read_ids, read_probs = (None, None, None) if apart is None else (apart[0], *apart[1])
    ids = None if support.ids is None else following(support.ids, read_ids)
    return Transitions(
        states=states,
        support=support,
        reply_ids=batch.reply_ids,
        mask=batch.mask,
        next_states=following(states, read),
        next_support=Support(ids, following(support.probs, read_probs)),
        has_next=batch.has_next,
        reward=batch.reward,
        terminated=batch.terminated,
        weight=batch.weight * batch.td,
    )


class CriticReplay:
    """The last batches as the critic saw them, from which each update of it takes some again.

    A batch is kept with the policy's probabilities of its day; they are as old as the memory is long.

    Args:
        length: Batches to keep.
    """

    def __init__(self, length: int) -> None:
        self._batches: deque[Transitions] = deque(maxlen=length)

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, batch: Transitions) -> None:
        """Keeps a batch, and drops the oldest where there is no room."""
        self._batches.append(apply_to_collection(batch, Tensor, Tensor.detach))

    def draw(self, number: int, device: torch.device) -> Transitions:
        """``number`` batches, drawn with replacement by torch's generator, as one."""
        chosen = [self._batches[k] for k in torch.randint(len(self._batches), (number,)).tolist()]
        chosen = move_data_to_device(chosen, device)  # those of a checkpoint are elsewhere
        width = max(batch.mask.shape[1] for batch in chosen)
        return _joined([_widened(batch, width) for batch in chosen])

    def state(self) -> list[dict[str, Any]]:
        """Plain values for a checkpoint."""
        return [_plain(batch) for batch in self._batches]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Takes the batches of a checkpoint."""
        self._batches.clear()
        for batch in state:
            supports = {name: Support(**batch[name]) for name in ("support", "next_support")}
            self._batches.append(Transitions(**{**batch, **supports}))


def _plain(batch: Transitions) -> dict[str, Any]:
    return {k: v._asdict() if isinstance(v, Support) else v for k, v in batch._asdict().items()}


def _widened(batch: Transitions, width: int) -> Transitions:
    """With replies padded to ``width`` tokens, which do not count."""
    more = width - batch.mask.shape[1]
    if not more:
        return batch
    ids, probs = batch.support
    support = Support(None if ids is None else pad(ids, (0, 0, 0, more)), pad(probs, (0, 0, 0, more)))
    return batch._replace(
        states=pad(batch.states, (0, 0, 0, more)),
        support=support,
        reply_ids=pad(batch.reply_ids, (0, more)),
        mask=pad(batch.mask, (0, more)),
    )


def _joined(batches: list[Transitions]) -> Transitions:
    def of(values: tuple[Any, ...]) -> Any:
        if isinstance(values[0], Support):
            return Support(*map(of, zip(*values, strict=True)))
        return None if values[0] is None else torch.cat(values)

    return Transitions(*map(of, zip(*batches, strict=True)))
