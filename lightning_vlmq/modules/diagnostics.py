"""What TensorBoard shows of a step beside the losses."""

import torch
from torch import Tensor

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.losses import last_token
from lightning_vlmq.modules.reading import Reading

__all__ = ["diagnostics"]


@torch.no_grad()
def diagnostics(
    batch: TokenBatch,
    reading: Reading,
    accepted: Tensor,
    targets: Tensor,
) -> dict[str, Tensor]:
    """Means over a batch's reply tokens, by name, NaN where there are none; values are in units of reward.

    Args:
        batch: The batch.
        reading: What was read off the vocabulary, statistics and the critic's part included.
        accepted: Filter weights of the reply's tokens ``[B, T]``.
        targets: Their TD targets ``[B, T]``.
    """
    mask = batch.mask
    valid = mask & batch.valid.unsqueeze(-1)
    last = last_token(mask)
    first = torch.zeros_like(mask)
    first[:, 0] = mask[:, 0]
    kinds = {
        "all": mask,
        "valid_replies": valid,
        "invalid_replies": mask & ~valid,
        "first_token": first,
        "last_token": last & valid,
        "inner_tokens": valid & ~first & ~last,
    }
    assert reading.appraisal is not None
    assert reading.entropy is not None
    assert reading.unseen is not None
    q_a, adv = reading.appraisal.q_a, reading.appraisal.adv
    passed = (accepted > 0).float()
    error = (q_a - targets).abs()
    logs = {f"filter/pass_rate_{kind}": passed[where].mean() for kind, where in kinds.items()}
    logs |= {f"critic/advantage_{kind}": adv[where].float().mean() for kind, where in kinds.items()}
    return logs | {
        "policy/log_prob": reading.log_pi[mask].mean(),
        "policy/entropy": reading.entropy[mask].mean(),
        "policy/mass_on_unseen_tokens": reading.unseen[mask].mean(),
        "critic/q": q_a[mask].mean(),
        "critic/v": (q_a - adv)[mask].mean(),
        "critic/advantage_std": adv[mask].float().std(unbiased=False),
        "critic/target": targets[mask].mean(),
        "critic/error_first_token": error[first].mean(),
        "critic/error_last_token": error[last].mean(),
    }
