"""What TensorBoard shows of a step beside the losses."""

import torch
from torch import Tensor

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.losses import last_token

__all__ = ["diagnostics"]


@torch.no_grad()
def diagnostics(
    batch: TokenBatch,
    logits: Tensor,
    log_pi: Tensor,
    q_a: Tensor,
    adv: Tensor,
    accepted: Tensor,
    targets: Tensor,
    seen_tokens: Tensor,
) -> dict[str, Tensor]:
    """Means over a batch's reply tokens, by name, NaN where there are none; values are in units of reward.

    Args:
        batch: The batch.
        logits: Of the language head ``[B, T, V]``.
        log_pi: Of the reply's tokens ``[B, T]``.
        q_a: Values of the reply's tokens ``[B, T]``.
        adv: Their advantages ``[B, T]``.
        accepted: Their filter weights ``[B, T]``.
        targets: Their TD targets ``[B, T]``.
        seen_tokens: True for tokens that occurred in the data, of which the first rank's batches tell ``[V]``.
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
    probabilities = logits.float().softmax(-1)
    entropy = -(probabilities * probabilities.clamp(min=1e-12).log()).sum(-1)
    unseen = probabilities[..., ~seen_tokens].sum(-1)
    passed = (accepted > 0).float()
    error = (q_a - targets).abs()
    logs = {f"filter/pass_rate_{kind}": passed[where].mean() for kind, where in kinds.items()}
    logs |= {f"critic/advantage_{kind}": adv[where].float().mean() for kind, where in kinds.items()}
    return logs | {
        "policy/log_prob": log_pi[mask].mean(),
        "policy/entropy": entropy[mask].mean(),
        "policy/mass_on_unseen_tokens": unseen[mask].mean(),
        "critic/q": q_a[mask].mean(),
        "critic/v": (q_a - adv)[mask].mean(),
        "critic/advantage_std": adv[mask].float().std(unbiased=False),
        "critic/target": targets[mask].mean(),
        "critic/error_first_token": error[first].mean(),
        "critic/error_last_token": error[last].mean(),
    }
