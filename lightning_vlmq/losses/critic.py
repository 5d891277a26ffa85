"""Loss of the token critic (eq. 6)."""

import torch
from torch import Tensor

from lightning_vlmq.losses.reductions import counted, turn_mean

__all__ = ["td_loss"]


def td_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, weight: Tensor | None = None, huber: float | None = None
) -> Tensor:
    """(Q(h^i)[a^i] - y^i)^2, a mean over tokens, then turns (eq. 6).

    With ``huber`` = d an error e beyond d counts 2 d |e| - d^2 (Huber 1964): its gradient grows no further.

    Args:
        prediction: Normalised Q of the reply's tokens ``[B, T]``.
        target: Normalised targets ``[B, T]``; carry no gradient.
        mask: True at tokens of the reply ``[B, T]``.
        weight: Of the turns ``[B]``.
        huber: Error beyond which it is no longer squared; ``None`` squares all (the paper).
    """
    error = torch.where(counted(mask, weight), prediction.float() - target.detach().float(), 0.0)
    if huber is not None:
        within = error.clamp(-huber, huber)
        return turn_mean(within * (2 * error - within), mask, weight)
    return turn_mean(error.square(), mask, weight)
