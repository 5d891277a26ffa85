"""Which tokens the language loss imitates (eq. 5)."""

import math

import torch
from torch import Tensor

__all__ = ["advantage_filter", "exponential_filter", "guarded_threshold"]


def advantage_filter(adv: Tensor, beta: float | Tensor | None) -> Tensor:
    """1 where the advantage is at least beta, else 0 (eq. 5).

    Args:
        adv: Advantages in units of reward ``[B, T]``.
        beta: Threshold; ``None`` filters nothing (minus infinity: SFT).
    """
    if beta is None:
        return torch.ones_like(adv)
    return (adv >= beta).to(adv.dtype)


def exponential_filter(adv: Tensor, temperature: float, clip: float) -> Tensor:
    """exp(advantage / temperature), at most ``clip`` (the soft filter of advantage-weighted regression).

    Raises:
        ValueError: ``temperature`` or ``clip`` is not positive.
    """
    if temperature <= 0 or clip <= 0:
        raise ValueError(f"filter_temperature {temperature}, filter_clip {clip}: each must be positive")
    return (adv / temperature).exp().clamp(max=clip)


def guarded_threshold(adv: Tensor, mask: Tensor, beta: float, min_pass_rate: float) -> tuple[Tensor, Tensor]:
    """The threshold, lowered to the batch's own quantile where too few tokens would pass.

    A closed filter forgets the syntax: nothing is imitated while the critic goes on changing the VLM (ours).

    Args:
        adv: Advantages ``[B, T]``.
        mask: True at tokens of the reply ``[B, T]``.
        beta: Threshold wanted.
        min_pass_rate: Share of tokens that must pass, in [0, 1]; 0 switches the guard off.

    Returns:
        The threshold and whether the guard set it, both scalars.
    """
    threshold = adv.new_tensor(beta)
    values = adv[mask].float()
    if min_pass_rate <= 0 or not len(values):
        return threshold, torch.zeros((), dtype=torch.bool, device=adv.device)
    engaged = (values >= threshold).float().mean() < min_pass_rate
    wanted = max(1, math.ceil(min_pass_rate * len(values) - 1e-6))
    own = values.topk(wanted).values[-1].to(threshold.dtype)
    return torch.where(engaged, torch.minimum(own, threshold), threshold), engaged
