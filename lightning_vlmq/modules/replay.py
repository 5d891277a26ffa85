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
from lightning_vlmq.modules.reading import Appraisal

__all__ = ["Apart", "Backed", "CriticReplay", "Transitions", "transitions"]


class Transitions(NamedTuple):
    """Turns as the critic's loss takes them; only ``states`` may carry a gradient to the VLM.

    Attributes:
        states: Hidden states that the critic reads ``[B, T, D]``.
        support: What expectations under pi run over, at each of them ``[B, T, K]``; ``None`` where nothing is replayed.
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
    support: Support | None
    reply_ids: Tensor
    mask: Tensor
    next_states: Tensor
    next_support: Support | None
    has_next: Tensor
    reward: Tensor
    terminated: Tensor
    weight: Tensor


class Backed(NamedTuple):
    """What targets of transitions are made of, by the target critic and the policy; no gradient.

    Attributes:
        v: E_pi of the target critic in each state ``[B, T]``.
        q_a: Its values of the reply's tokens ``[B, T]``.
        pi_a: Their probabilities in the expectation ``[B, T]``.
        next_v: E_pi of the target critic in the next turns' first states ``[B']``.
    """

    v: Tensor
    q_a: Tensor
    pi_a: Tensor
    next_v: Tensor


class Apart(NamedTuple):
    """Next turns that a batch does not hold, as they were read.

    Attributes:
        states: Their first states as the critic reads them ``[N, D]``.
        v: E_pi of the target critic there ``[N]``.
        support: What that runs over ``[N, K]``; ``None`` where nothing is replayed.
    """

    states: Tensor
    v: Tensor
    support: Support | None


@torch.no_grad()
def transitions(
    batch: TokenBatch, states: Tensor, appraisal: Appraisal, apart: Apart | None
) -> tuple[Transitions, Backed]:
    """What the critic's loss takes of a batch.

    A next turn in the batch has its first state there, where its reply's first token is predicted (section "One step"
    of docs/method.md).

    Args:
        batch: The turns.
        states: What the critic reads of them ``[B, T, D]``.
        appraisal: What was read off the vocabulary there.
        apart: Next turns that were read apart; ``None`` if none was.
    """
    there, others = batch.has_next.nonzero().squeeze(-1), (batch.has_next & ~batch.next_in_batch).nonzero().squeeze(-1)

    def following(of: Tensor, read: Tensor | None) -> Tensor:
        first = of[:, 0].roll(-1, dims=0)  # of the row behind, whoever's it is
        if read is not None:
            first[others] = read.to(first.dtype)
        return first[there]

    support = next_support = appraisal.support
    if support is not None:
        read_ids, read_probs = (None, None) if apart is None or apart.support is None else apart.support
        ids = None if support.ids is None else following(support.ids, read_ids)
        next_support = Support(ids, following(support.probs, read_probs))
    next_v = following(appraisal.target_v, None if apart is None else apart.v)
    seen = Transitions(
        states=states,
        support=support,
        reply_ids=batch.reply_ids,
        mask=batch.mask,
        next_states=following(states, None if apart is None else apart.states),
        next_support=next_support,
        has_next=batch.has_next,
        reward=batch.reward,
        terminated=batch.terminated,
        weight=batch.weight * batch.td,
    )
    return seen, Backed(appraisal.target_v, appraisal.target_q_a, appraisal.pi_a, next_v)


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
    assert batch.support is not None
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
