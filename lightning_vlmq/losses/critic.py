"""Loss of the token critic (eq. 6)."""

from torch import Tensor

from lightning_vlmq.losses.reductions import turn_mean

__all__ = ["td_loss"]


def td_loss(prediction: Tensor, target: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """(Q(h^i)[a^i] - y^i)^2, a mean over tokens, then turns (eq. 6).

    Args:
        prediction: Normalised Q of the reply's tokens ``[B, T]``.
        target: Normalised targets ``[B, T]``; carry no gradient.
        mask: True at tokens of the reply ``[B, T]``.
        weight: Of the turns ``[B]``.
    """
    return turn_mean((prediction.float() - target.detach().float()).square(), mask, weight)
