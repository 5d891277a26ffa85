"""Losses of the language head (eq. 3, 4), and the baseline that maximises Q (fig. 5)."""

import torch
from torch import Tensor

from lightning_vlmq.losses.expectation import Support
from lightning_vlmq.losses.reductions import counted, turn_mean

__all__ = ["afsft_loss", "max_q_loss", "policy_value", "token_log_probs"]


def token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """log pi(a^i | h^i) ``[B, T]`` of tokens ``[B, T]`` under logits ``[B, T, V]``, in float32."""
    logits = logits.float()
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def afsft_loss(log_pi_a: Tensor, accepted: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Advantage-filtered SFT: - f(h^i, a^i) log pi(a^i | h^i), a mean over tokens, then turns (eq. 4).

    With a filter of ones this is SFT (eq. 3). Filtered tokens stay in the denominator.

    Args:
        log_pi_a: ``[B, T]``.
        accepted: Filter f ``[B, T]``; carries no gradient.
        mask: True at tokens of the reply ``[B, T]``.
        weight: Of the turns ``[B]``.
    """
    accepted = accepted.detach()
    # a token that the filter drops may have probability 0: -inf x 0 is NaN
    read = counted(mask, weight) & (accepted != 0)
    return turn_mean(torch.where(read, -log_pi_a, 0.0) * torch.where(read, accepted, 0.0), mask, weight)


def policy_value(logits: Tensor, q: Tensor, read: Tensor | None = None, support: Support | None = None) -> Tensor:
    """E_{v ~ pi} Q(v) ``[...]``, of which a gradient flows through pi alone.

    Args:
        logits: Of the language head ``[..., V]``.
        q: Values ``[..., V]``, or ``[..., K]`` of the support's tokens; no gradient reaches the critic.
        read: True where the loss reads the result ``[...]``; elsewhere logits and values may be anything.
        support: Tokens that pi is renormalised over; ``None`` is the whole vocabulary, as in the paper.
    """
    if support is not None:
        logits = logits if support.ids is None else logits.gather(-1, support.ids)
        logits = logits.float().masked_fill(support.probs == 0, -torch.inf)
    logits, q = logits.float(), q.detach().float()
    if read is not None:
        logits, q = (torch.where(read.unsqueeze(-1), each, 0.0) for each in (logits, q))
    probs = logits.softmax(-1)
    return (probs * torch.where(probs > 0, q, 0.0)).sum(-1)


def max_q_loss(value: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """- E_{v ~ pi} Q(v), a mean over tokens, then turns: the actor that fails in fig. 5.

    Args:
        value: Of :func:`policy_value` ``[B, T]``.
        mask: True at tokens of the reply ``[B, T]``.
        weight: Of the turns ``[B]``.
    """
    return turn_mean(-value, mask, weight)
