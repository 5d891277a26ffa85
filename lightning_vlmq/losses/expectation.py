"""Expectations under the policy, over the vocabulary or over the policy's nucleus (method: V = E_pi Q)."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Support", "action_probability", "advantage", "expectation", "policy_support"]


class Support(NamedTuple):
    """Tokens that an expectation runs over, and their probabilities.

    Attributes:
        ids: Token ids ``[..., K]``; ``None`` stands for the whole vocabulary (K = V).
        probs: Probabilities ``[..., K]`` that sum to 1; 0 for tokens that were left out.
    """

    ids: Tensor | None
    probs: Tensor


@torch.no_grad()
def policy_support(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float = 0.0,
    allowed: Tensor | None = None,
) -> Support:
    """The policy, or its nucleus renormalised; no gradient.

    Unseen tokens have values that nothing ever trained; a little probability on each of them moves E_pi Q by more
    than true advantages differ, which is why the nucleus exists.

    Args:
        logits: Of the language head ``[..., V]``.
        temperature: Of the policy.
        top_k: Keeps the likeliest ``top_k`` tokens; ``None`` keeps all.
        top_p: Keeps the fewest tokens whose probabilities reach ``top_p``.
        min_p: Leaves out tokens below this probability. The likeliest token always stays.
        allowed: True at tokens that generation may sample ``[V]``; all others have probability 0.

    Raises:
        ValueError: ``temperature``, ``top_k`` or ``top_p`` is not positive.
    """
    if temperature <= 0 or (top_k is not None and top_k < 1) or (top_p is not None and top_p <= 0):
        raise ValueError(f"temperature {temperature}, top_k {top_k}, top_p {top_p}: each must be positive")
    logits = logits.float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    probs = (logits / temperature).softmax(-1)
    if top_k is None and top_p is None and min_p <= 0:
        return Support(None, probs)
    kept = min(top_k or probs.shape[-1], probs.shape[-1])
    if min_p > 0:  # the k-th likeliest token has at most 1 / k
        kept = min(kept, int(1 / min_p) + 1)
    probs, ids = probs.topk(kept, dim=-1)
    keep = probs >= min_p
    if top_p is not None:
        # a token stays while those before it have not reached top_p
        keep = keep & (probs.cumsum(-1) - probs < top_p)
    keep[..., 0] = True
    probs = torch.where(keep, probs, torch.zeros_like(probs))
    return Support(ids, probs / probs.sum(-1, keepdim=True))


def expectation(q_support: Tensor, support: Support) -> Tensor:
    """E_{v ~ pi} Q(v) ``[...]`` from the values of the support's tokens ``[..., K]``."""
    return _weighted(q_support, support.probs)


def action_probability(support: Support, a: Tensor) -> Tensor:
    """Probability of token ``a`` ``[...]`` under the support; 0 for a token outside of it."""
    if support.ids is None:
        return support.probs.gather(-1, a.unsqueeze(-1)).squeeze(-1)
    return torch.where(support.ids == a.unsqueeze(-1), support.probs, 0.0).sum(-1)


def advantage(q_a: Tensor, q_support: Tensor, support: Support, a: Tensor | None = None) -> Tensor:
    """A(a) = sum_v pi(v) (Q(a) - Q(v)) ``[...]``, the left side of eq. 5.

    Summed as differences in float32: where the policy is certain of ``a`` the advantage is exactly 0.

    Args:
        q_a: Values of the tokens of the reply ``[...]``.
        q_support: Values of the support's tokens ``[..., K]``.
        support: Tokens and probabilities ``[..., K]``.
        a: The tokens of the reply ``[...]``. Give them where ``q_a`` and ``q_support`` come from two products: these
            differ in their last digits, also for the same token, and half of all ties would fall below 0.
    """
    difference = q_a.float().unsqueeze(-1) - q_support.float()
    if a is not None:
        ids = torch.arange(q_support.shape[-1], device=a.device) if support.ids is None else support.ids
        difference = torch.where(ids == a.unsqueeze(-1), 0.0, difference)
    return _weighted(difference, support.probs)


def _weighted(values: Tensor, probs: Tensor) -> Tensor:
    # a token without probability may have any value, also none: NaN x 0 is NaN; a probability of NaN must show
    return torch.where(probs != 0, values.float() * probs, 0.0).sum(-1)
