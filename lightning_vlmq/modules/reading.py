"""What a step needs of the vocabulary, read off the logits of some reply tokens at a time.

The logits of a token are as many numbers as the vocabulary has tokens, 1 MB of them at 257k, and a loss makes several
tensors of that size. What a step needs of them is a few numbers a token: they are made at once, whole expectations
under pi included, and no tensor of logits outlives its chunk. The backward pass computes a chunk's logits again.

``torch.nn.functional.linear_cross_entropy`` and Liger's kernels do so for log pi alone: the policy's nucleus would take
a second pass over the vocabulary. Neither of them caps logits, the first is not in the oldest PyTorch that this package
takes, the others need Triton.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.chunks import in_chunks
from lightning_vlmq.heads import Critic
from lightning_vlmq.losses import (
    Support,
    action_probability,
    advantage,
    counted,
    expectation,
    policy_support,
    policy_value,
    token_log_probs,
)
from lightning_vlmq.vlm import VLM

__all__ = ["Appraisal", "Others", "Reading", "VocabularyReader", "at_replies", "likeliest_others", "support_of"]

T = TypeVar("T")

_MANY = 512
"""Tokens of a support from which on a critic's values of the whole vocabulary take less than theirs one by one."""


class Appraisal(NamedTuple):
    """What critic and policy make of reply tokens ``[B, T]``; no gradient.

    Attributes:
        q_a: Values of the tokens.
        adv: Their advantages.
        pi_a: Their probabilities in expectations under pi.
        target_q_a: The target critic's values of the tokens.
        target_v: Its expectations under pi.
        support: What expectations run over ``[B, T, K]``; ``None`` where nothing replays it.
    """

    q_a: Tensor
    adv: Tensor
    pi_a: Tensor
    target_q_a: Tensor
    target_v: Tensor
    support: Support | None


class Others(NamedTuple):
    """The likeliest other tokens that generation may sample; no gradient.

    Attributes:
        ids: ``[B, T, K]``.
        log_pi: Of these under the language head ``[B, T, K]``.
        share: Their probabilities in expectations under pi ``[B, T, K]``.
    """

    ids: Tensor
    log_pi: Tensor
    share: Tensor


class Reading(NamedTuple):
    """What was read off the vocabulary at reply tokens, 0 where there is none.

    Attributes:
        log_pi: Of the tokens under the language head ``[B, T]``; carries its gradient.
        expected_q: E_pi Q through pi ``[B, T]``, if that is what the actor maximises; carries its gradient.
        appraisal: What critic and policy make of the tokens; ``None`` without a critic.
        entropy: Of the language head ``[B, T]``, if asked for.
        unseen: Its probability of tokens that the data do not hold ``[B, T]``, if asked for.
        others: The likeliest other tokens, if asked for.
    """

    log_pi: Tensor
    expected_q: Tensor | None = None
    appraisal: Appraisal | None = None
    entropy: Tensor | None = None
    unseen: Tensor | None = None
    others: Others | None = None


class VocabularyReader:
    """Reads the vocabulary in chunks.

    Args:
        vlm: Whose language head is read.
        critic: Which expectations are of.
        options: Of :class:`~lightning_vlmq.modules.vlmq.VLMQ`: ``td_weight``, ``actor``, ``policy_temperature``,
            ``top_k``, ``top_p``, ``min_probability`` and ``critic_replay``.
    """

    def __init__(self, vlm: VLM, critic: Critic, options: Mapping[str, Any]) -> None:
        self.vlm = vlm
        self.critic = critic
        self.options = options

    def replies(
        self,
        batch: TokenBatch,
        hidden: Tensor,
        states: Tensor,
        allowed: Tensor,
        *,
        seen: Tensor | None = None,
        alternatives: int = 0,
    ) -> Reading:
        """At a batch's reply tokens.

        Args:
            batch: The batch.
            hidden: Hidden states that the language head reads ``[B, T, D]``.
            states: Those that the critic reads ``[B, T, D]``.
            allowed: True at tokens that generation may sample ``[V]``.
            seen: True at tokens that the data hold ``[V]``: asks for statistics.
            alternatives: Number of other tokens to name.
        """

        def of_chunk(hidden: Tensor, states: Tensor, ids: Tensor, read: Tensor) -> Reading:
            logits = self.vlm.logits(hidden)
            found = Reading(token_log_probs(logits, ids))
            if self.options["actor"] == "max_q":
                with torch.no_grad():
                    q = self.critic.q(states)
                found = found._replace(expected_q=policy_value(logits, q, read))
            logits = logits.detach()
            if self.options["td_weight"] > 0:
                support = support_of(logits, allowed, self.options)
                found = found._replace(appraisal=self._appraised(states, support, ids))
                if alternatives:
                    others, log_pi = likeliest_others(logits, ids, self.vlm.forbidden_ids, alternatives)
                    share = torch.stack([action_probability(support, each) for each in others.unbind(-1)], dim=-1)
                    found = found._replace(others=Others(others, log_pi, share))
                if seen is not None:
                    entropy, unseen = _statistics(logits, seen)
                    found = found._replace(entropy=entropy, unseen=unseen)
            return found

        read = counted(batch.mask, batch.weight * batch.imitate * batch.td)  # by an actor that maximises Q
        rows = hidden, states.detach(), batch.reply_ids, read
        return at_replies(of_chunk, batch.mask, *rows, vlm=self.vlm)

    @torch.no_grad()
    def first_states(self, hidden: Tensor, states: Tensor, allowed: Tensor) -> tuple[Tensor, Support | None]:
        """Expectations of the target critic under pi ``[B']`` in states that it reads, and their supports if replayed.

        Args:
            hidden: Hidden states that the language head reads ``[B', D]``.
            states: Those that the critic reads ``[B', D]``.
            allowed: True at tokens that generation may sample ``[V]``.
        """

        def of_chunk(hidden: Tensor, states: Tensor) -> tuple[Tensor, Support | None]:
            support = support_of(self.vlm.logits(hidden), allowed, self.options)
            return expectation(_values(self.critic.q_target, states, support), support), self._kept(support)

        return in_chunks(of_chunk, hidden, states, width=self.vlm.vocab_size)

    @torch.no_grad()
    def _appraised(self, states: Tensor, support: Support, ids: Tensor) -> Appraisal:
        critic, a = self.critic, ids.unsqueeze(-1)
        q_a = critic.q(states, a).squeeze(-1)
        return Appraisal(
            q_a=q_a,
            adv=advantage(q_a, _values(critic.q, states, support), support, ids),
            pi_a=action_probability(support, ids),
            target_q_a=critic.q_target(states, a).squeeze(-1),
            target_v=expectation(_values(critic.q_target, states, support), support),
            support=self._kept(support),
        )

    def _kept(self, support: Support) -> Support | None:
        return support if self.options["critic_replay"] else None


def at_replies(function: Callable[..., T], mask: Tensor, *tensors: Tensor, vlm: VLM) -> T:
    """A function of rows that asks the language head, at the reply's tokens alone and in chunks.

    Args:
        function: As :func:`~lightning_vlmq.chunks.in_chunks` takes it.
        mask: True at tokens of the reply ``[B, T]``.
        tensors: ``[B, T, ...]``, whose rows it takes.
        vlm: Whose head it asks.

    Returns:
        What it makes, ``[B, T, ...]``, 0 where the mask is false.
    """
    places = mask.nonzero(as_tuple=True)
    rows = [tensor[places] for tensor in tensors]
    found = in_chunks(function, *rows, width=vlm.vocab_size, layers=lambda: [vlm.hf.get_output_embeddings()])

    def placed(rows: Tensor) -> Tensor:
        return rows.new_zeros(*mask.shape, *rows.shape[1:]).index_put(places, rows)

    return cast(T, apply_to_collection(found, Tensor, placed))


def support_of(logits: Tensor, allowed: Tensor, options: Mapping[str, Any]) -> Support:
    """What expectations under pi run over.

    Args:
        logits: Of the language head ``[..., V]``.
        allowed: True at tokens that generation may sample ``[V]``.
        options: Of :class:`~lightning_vlmq.modules.vlmq.VLMQ`: ``policy_temperature``, ``top_k``, ``top_p`` and
            ``min_probability``.
    """
    top_k, top_p = options["top_k"], options["top_p"]
    return policy_support(
        logits,
        temperature=options["policy_temperature"],
        top_k=top_k,
        top_p=top_p,
        min_p=0.0 if top_k is None and top_p is None else options["min_probability"],
        allowed=allowed,
    )


def _values(q: Callable[[Tensor, Tensor | None], Tensor], states: Tensor, support: Support) -> Tensor:
    """Values of a support's tokens ``[n, K]``."""
    ids = support.ids
    if ids is None or ids.shape[-1] < _MANY:
        return q(states, ids)
    return q(states, None).gather(-1, ids)  # the critic would take its weights for each of them, token by token


@torch.no_grad()
def likeliest_others(logits: Tensor, ids: Tensor, forbidden_ids: Sequence[int], number: int) -> tuple[Tensor, Tensor]:
    """The likeliest tokens beside those said, and their log-probabilities, both ``[..., K]``.

    Args:
        logits: Of the language head ``[..., V]``.
        ids: The tokens said ``[...]``.
        forbidden_ids: Tokens that generation never samples.
        number: K.
    """
    others = logits.float().scatter(-1, ids.unsqueeze(-1), -torch.inf)
    others[..., list(forbidden_ids)] = -torch.inf
    found = others.topk(number, dim=-1).indices
    return found, torch.stack([token_log_probs(logits, each) for each in found.unbind(-1)], dim=-1)


@torch.no_grad()
def _statistics(logits: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of the language head and its probability of tokens that the data do not hold, both ``[...]``."""
    probabilities = logits.float().softmax(-1)
    entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1)
    return entropy, probabilities.masked_fill(seen, 0.0).sum(-1)
