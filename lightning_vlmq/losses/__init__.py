"""The paper on a page: pure functions, tensors in, tensors out.

Axes: B turns of a batch, T reply tokens, V vocabulary, K tokens of an expectation. Masks are booleans.
"""

from lightning_vlmq.losses.actor import afsft_loss, max_q_loss, policy_value, token_log_probs
from lightning_vlmq.losses.critic import td_loss
from lightning_vlmq.losses.expectation import Support, action_probability, advantage, expectation, policy_support
from lightning_vlmq.losses.filters import advantage_filter, exponential_filter, guarded_threshold
from lightning_vlmq.losses.reductions import counted, turn_mean
from lightning_vlmq.losses.targets import last_token, realised_returns, token_rewards_and_discounts, tree_backup

__all__ = [
    "Support",
    "action_probability",
    "advantage",
    "advantage_filter",
    "afsft_loss",
    "counted",
    "expectation",
    "exponential_filter",
    "guarded_threshold",
    "last_token",
    "max_q_loss",
    "policy_support",
    "policy_value",
    "realised_returns",
    "td_loss",
    "token_log_probs",
    "token_rewards_and_discounts",
    "tree_backup",
    "turn_mean",
]
