"""What the critic says of a reply's tokens, and what the filter makes of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.heads import Critic
from lightning_vlmq.losses import (
    Support,
    advantage,
    advantage_filter,
    exponential_filter,
    guarded_threshold,
    policy_support,
)

__all__ = ["Verdict", "judged", "support_of"]


class Verdict(NamedTuple):
    """What a critic says of a batch's reply tokens, for the losses and for who looks at them; no gradient.

    Attributes:
        support: Tokens that ``V`` runs over, and their probabilities ``[B, T, S]``.
        q_a: Values of the reply's tokens ``[B, T]``.
        adv: Their advantages ``[B, T]``.
        accepted: Their weights in the language loss ``[B, T]``, the turns' own masks left out.
        guarded: True if the guard set the threshold, a scalar.
    """

    support: Support
    q_a: Tensor
    adv: Tensor
    accepted: Tensor
    guarded: Tensor


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


@torch.no_grad()
def judged(
    batch: TokenBatch,
    critic: Critic,
    states: Tensor,
    support: Support,
    threshold: float | None,
    temperature: float,
    options: Mapping[str, Any],
) -> Verdict:
    """Values, advantages and the filter's weights of the reply's tokens.

    Args:
        batch: The turns.
        critic: The critic.
        states: What it reads ``[B, T, D]``.
        support: What expectations under pi run over at each of them ``[B, T, S]``.
        threshold: Of the filter; ``None`` filters nothing.
        temperature: Of the exponential filter.
        options: Of :class:`~lightning_vlmq.modules.vlmq.VLMQ`: ``filter``, ``filter_clip`` and ``min_pass_rate``.
    """
    q_a = critic.q(states, batch.reply_ids.unsqueeze(-1)).squeeze(-1)
    adv = advantage(q_a, critic.q(states, support.ids), support, batch.reply_ids)
    # the critic has no say on turns that it may not learn from: these are imitated as in SFT
    told = batch.mask & batch.td.unsqueeze(-1)
    guarded = torch.zeros((), dtype=torch.bool, device=adv.device)
    if threshold is None:
        accepted = advantage_filter(adv, None)
    elif options["filter"] == "exponential":
        accepted = exponential_filter(adv, temperature, options["filter_clip"])
    else:
        lowest, guarded = guarded_threshold(adv, told, threshold, options["min_pass_rate"])
        accepted = advantage_filter(adv, lowest)
    return Verdict(support, q_a, adv, torch.where(told, accepted, 1.0), guarded)
