"""TD targets of token transitions (eq. 2 and the tree backup inside a turn).

A turn of K tokens is K transitions (s, a, r, s', discount): tokens but the last lead to the next token of the reply
with reward 0, the last one to the next turn's prompt with the environment's reward.
"""

import torch
from torch import Tensor

__all__ = ["last_token", "realised_returns", "token_rewards_and_discounts", "tree_backup"]


def last_token(mask: Tensor) -> Tensor:
    """True at each row's last token ``[B, T]``; rows are contiguous from 0."""
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask & ~following


def token_rewards_and_discounts(
    reward: Tensor, terminated: Tensor, mask: Tensor, gamma: float, in_turn_discount: float
) -> tuple[Tensor, Tensor]:
    """Rewards and discounts of each token transition.

    Args:
        reward: Of the turn ``[B]``.
        terminated: True where the episode ended for good ``[B]``.
        mask: True at tokens of the reply ``[B, T]``.
        gamma: Discount at the end of a turn.
        in_turn_discount: Discount from one token of a reply to the next.

    Returns:
        ``r_t`` and ``discount_t`` ``[B, T]``, 0 where masked.
    """
    last = last_token(mask)
    r_t = torch.where(last, reward.float().unsqueeze(-1), 0.0)
    ending = gamma * (~terminated).float().unsqueeze(-1)
    # not where(mask, in_turn_discount, 0): two plain numbers take the default type, and .995 is .9961 in bfloat16
    discount_t = torch.where(last, ending, in_turn_discount * mask.float())
    return r_t, discount_t


def realised_returns(r_t: Tensor, discount_t: Tensor) -> Tensor:
    """What really came, discounted ``[N]``: G^i = r^i + discount^i G^{i+1}, without any value.

    Args:
        r_t: Rewards of an episode's tokens in order, over all of its turns ``[N]``.
        discount_t: Their discounts ``[N]``; 0 at the last token of an episode that ended for good.
    """
    returns = torch.zeros_like(r_t)
    following = r_t.new_zeros(())
    for i in range(len(r_t) - 1, -1, -1):
        following = r_t[i] + discount_t[i] * following
        returns[i] = following
    return returns


@torch.no_grad()
def tree_backup(
    r_t: Tensor,
    discount_t: Tensor,
    v_t: Tensor,
    q_a_t: Tensor,
    pi_a_t: Tensor,
    mask: Tensor,
    lambda_: float,
) -> Tensor:
    """Targets y ``[B, T]`` by tree backup within each turn, without gradient::

        G^{K-1} = r + gamma (1 - d) V(h'^0)
        G^i     = gamma ( V(h^{i+1}) + lambda pi(a^{i+1}) ( G^{i+1} - Q(h^{i+1})[a^{i+1}] ) )

    Its fixed point is Q of pi for every lambda, whatever policy wrote the replies; lambda 0 is the paper's one-step
    target. Precup et al. 2000.

    Args:
        r_t: Rewards; 0 but at the last token ``[B, T]``.
        discount_t: In-turn discount inside, gamma (1 - terminated) at the last token ``[B, T]``.
        v_t: E_pi of the target critic in the next state ``[B, T]``.
        q_a_t: Target critic's value of the next token of the reply ``[B, T]``; not read at the last token.
        pi_a_t: Probability of the next token of the reply under pi ``[B, T]``; not read at the last token.
        mask: True at tokens of the reply ``[B, T]``.
        lambda_: How far to look; in [0, 1].
    """
    last = last_token(mask)
    # behind a discount of zero nothing is read, whatever stands there
    bootstrap = torch.where((discount_t > 0) & mask, v_t.float(), 0.0)
    weight = torch.where((discount_t > 0) & mask & ~last, lambda_ * pi_a_t.float(), 0.0)
    next_q = torch.where(mask & ~last, q_a_t.float(), 0.0)
    reward = torch.where(mask, r_t.float(), 0.0)
    discount = torch.where(mask, discount_t.float(), 0.0)
    target = torch.zeros_like(bootstrap)
    following = torch.zeros_like(bootstrap[:, 0])
    for i in range(mask.shape[1] - 1, -1, -1):
        correction = torch.where(weight[:, i] > 0, weight[:, i] * (following - next_q[:, i]), 0.0)
        following = reward[:, i] + discount[:, i] * (bootstrap[:, i] + correction)
        target[:, i] = following
    return torch.where(mask, target, 0.0)
