"""What the filter makes of what the critic says of a reply's tokens."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.losses import advantage_filter, exponential_filter, guarded_threshold

__all__ = ["Verdict", "filtered"]


class Verdict(NamedTuple):
    """The filter's weights; no gradient.

    Attributes:
        accepted: Weights of the reply's tokens in the language loss ``[B, T]``, the turns' own masks left out.
        guarded: True if the guard set the threshold, a scalar.
    """

    accepted: Tensor
    guarded: Tensor


@torch.no_grad()
def filtered(
    batch: TokenBatch, adv: Tensor, threshold: float | None, temperature: float, options: Mapping[str, Any]
) -> Verdict:
    """The filter's weights of the reply's tokens.

    Args:
        batch: The turns.
        adv: Advantages of their replies' tokens ``[B, T]``.
        threshold: Of the filter; ``None`` filters nothing.
        temperature: Of the exponential filter.
        options: Of :class:`~lightning_vlmq.modules.vlmq.VLMQ`: ``filter``, ``filter_clip`` and ``min_pass_rate``.
    """
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
    return Verdict(torch.where(told, accepted, 1.0), guarded)
