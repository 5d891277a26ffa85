"""Losses of the language head (eq. 3, 4), and the baseline that maximises Q (fig. 5)."""

from torch import Tensor

from lightning_vlmq.losses.reductions import turn_mean

__all__ = ["afsft_loss", "max_q_loss", "token_log_probs"]


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
    return turn_mean(-log_pi_a * accepted.detach(), mask, weight)


def max_q_loss(logits: Tensor, q: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """- E_{v ~ pi} Q(v) through pi alone, over the whole vocabulary: the actor that fails in fig. 5.

    Args:
        logits: Of the language head ``[B, T, V]``.
        q: Values ``[B, T, V]``; no gradient reaches the critic.
        mask: True at tokens of the reply ``[B, T]``.
        weight: Of the turns ``[B]``.
    """
    return turn_mean(-(logits.float().softmax(-1) * q.detach()).sum(-1), mask, weight)
