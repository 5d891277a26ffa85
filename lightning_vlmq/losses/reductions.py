"""One reduction for every loss."""

import torch
from torch import Tensor

__all__ = ["counted", "turn_mean"]


def counted(mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """True at tokens ``[B, T]`` that a loss reads: of the reply, in a turn whose weight ``[B]`` is not 0.

    Losses replace all other values *before* they compute: the gradient of a product with NaN is NaN, also where the
    product itself is dropped afterwards.
    """
    return mask if weight is None else mask & (weight != 0).unsqueeze(-1)


def turn_mean(x: Tensor, mask: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over each turn's reply tokens, then over turns.

    The denominators are the number of tokens of a reply and the number of turns B of the batch, whatever is filtered
    or weighted: otherwise lambda of eq. 7 had no meaning, and accumulation changed the gradient. Weights multiply,
    they are not normalised.

    Args:
        x: ``[B, T]``; masked entries may hold anything.
        mask: True at tokens that count ``[B, T]``.
        weight: Of the turns ``[B]``; turns of weight 0 may hold anything, too.

    Returns:
        A scalar in float32.
    """
    tokens = torch.where(counted(mask, weight), x.float(), 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
    if weight is not None:
        tokens = tokens * weight
    return tokens.mean()
