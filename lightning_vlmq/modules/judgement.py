"""What a module makes of replies it is shown, token by token: to look at, not to learn from."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.losses import token_log_probs
from lightning_vlmq.modules.filtering import Verdict
from lightning_vlmq.modules.reading import Appraisal, Others, likeliest_others

__all__ = ["CriticJudgement", "Judgement", "critic_judgement", "language_judgement"]


class CriticJudgement(NamedTuple):
    """The critic's part, in units of reward; no gradient.

    Attributes:
        q: Of the reply's tokens ``[B, T]``.
        v: Of the states in which they were said ``[B, T]``.
        share: Probabilities of the reply's tokens in the expectation that ``v`` is ``[B, T]``.
        advantage: Of the reply's tokens ``[B, T]``; the filter compares it with the threshold.
        weight: In the language loss ``[B, T]``, 0 where the filter or the turn's ``imitate`` says no; ``None`` where
            the actor imitates nothing.
        threshold: The filter's; ``None`` filters nothing.
        guarded: True if the guard lowered it for this batch, a scalar.
        q_alternatives: Of the alternatives ``[B, T, K]``.
        share_alternatives: Their probabilities in the expectation that ``v`` is ``[B, T, K]``; 0 for those left out.
        r_t: Rewards of the token transitions ``[B, T]``.
        discount_t: Their discounts ``[B, T]``.
    """

    q: Tensor
    v: Tensor
    share: Tensor
    advantage: Tensor
    weight: Tensor | None
    threshold: float | None
    guarded: Tensor
    q_alternatives: Tensor
    share_alternatives: Tensor
    r_t: Tensor
    discount_t: Tensor


class Judgement(NamedTuple):
    """What a module makes of a batch's reply tokens; no gradient.

    Attributes:
        log_pi: Of the reply's tokens under the language head ``[B, T]``.
        alternatives: The likeliest other tokens that generation may sample, ids ``[B, T, K]``.
        log_pi_alternatives: Of these ``[B, T, K]``.
        critic: The critic's part; ``None`` where nothing trains a critic.
    """

    log_pi: Tensor
    alternatives: Tensor
    log_pi_alternatives: Tensor
    critic: CriticJudgement | None = None


@torch.no_grad()
def language_judgement(logits: Tensor, reply_ids: Tensor, forbidden_ids: Sequence[int], alternatives: int) -> Judgement:
    """The language head's part.

    Args:
        logits: At the reply's tokens ``[..., V]``.
        reply_ids: The tokens ``[...]``.
        forbidden_ids: Tokens that generation never samples.
        alternatives: K.
    """
    found = likeliest_others(logits, reply_ids, forbidden_ids, alternatives)
    return Judgement(token_log_probs(logits, reply_ids), *found)


@torch.no_grad()
def critic_judgement(
    batch: TokenBatch,
    appraisal: Appraisal,
    verdict: Verdict,
    others: Others,
    q_others: Tensor,
    *,
    imitates: bool,
    threshold: float | None,
    r_t: Tensor,
    discount_t: Tensor,
) -> CriticJudgement:
    """The critic's part.

    Args:
        batch: The turns.
        appraisal: What critic and policy make of their replies.
        verdict: What the filter makes of that.
        others: The alternatives.
        q_others: Their values ``[B, T, K]``.
        imitates: Whether the actor imitates.
        threshold: Of the filter.
        r_t: Rewards of the token transitions ``[B, T]``.
        discount_t: Their discounts ``[B, T]``.
    """
    return CriticJudgement(
        q=appraisal.q_a,
        v=appraisal.q_a - appraisal.adv,
        share=appraisal.pi_a,
        advantage=appraisal.adv,
        weight=verdict.accepted * batch.imitate.unsqueeze(-1) if imitates else None,
        guarded=verdict.guarded,
        q_alternatives=q_others,
        share_alternatives=others.share,
        threshold=threshold,
        r_t=r_t,
        discount_t=discount_t,
    )
