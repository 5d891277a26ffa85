"""The critic's fixed point on a small exact token MDP, written with a data policy that is not pi.

Three prompts; replies of one to three tokens over four tokens, of which the last one stops. Every reply has its own
reward, next prompt and end. States are prompts with a prefix of the reply: 3 x (1 + 3 + 9), each with a row of logits
of pi and of the data policy. One update replaces Q(s)[a] by the mean target over all replies through (s, a), weighted
by the data policy; Q of pi comes from a linear solve that shares no code with the package.
"""

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_vlmq.losses import (
    Support,
    action_probability,
    expectation,
    policy_support,
    token_rewards_and_discounts,
    tree_backup,
)

PROMPTS, VOCAB, LENGTH, STOP = 3, 4, 3, 3
GAMMA, INSIDE = 0.8, 0.95
PREFIXES = [p for length in range(LENGTH) for p in product(range(STOP), repeat=length)]
STATES = {state: i for i, state in enumerate(product(range(PROMPTS), PREFIXES))}
REPLIES = [(*p, STOP) for p in PREFIXES] + list(product(range(STOP), repeat=LENGTH))


class Data(NamedTuple):
    """Every reply to every prompt: a batch of 120 turns."""

    state: Tensor  # of each token [B, T]
    ids: Tensor  # [B, T]
    mask: Tensor  # [B, T]
    reward: Tensor  # [B]
    terminated: Tensor  # [B]
    following: Tensor  # the next prompt's state [B]
    pi_logits: Tensor  # [S, V]
    data_logits: Tensor  # [S, V]


@cache
def data() -> Data:
    rng = torch.Generator().manual_seed(0)
    turns = list(product(range(PROMPTS), REPLIES))
    state = torch.zeros(len(turns), LENGTH, dtype=torch.long)
    ids, mask = torch.zeros_like(state), torch.zeros_like(state, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(turns):
        for i, token in enumerate(reply):
            state[row, i], ids[row, i], mask[row, i] = STATES[prompt, reply[:i]], token, True
    return Data(
        state,
        ids,
        mask,
        reward=3 * torch.randn(len(turns), generator=rng),
        terminated=torch.rand(len(turns), generator=rng) < 0.2,
        following=torch.randint(PROMPTS, (len(turns),), generator=rng) * len(PREFIXES),
        pi_logits=1.5 * torch.randn(len(STATES), VOCAB, generator=rng),
        data_logits=torch.randn(len(STATES), VOCAB, generator=rng),
    )


def solve(policy: np.ndarray) -> np.ndarray:
    """Q ``[S, V]`` of a policy ``[S, V]`` by one linear solve."""
    size = len(STATES) * VOCAB
    matrix, constant = np.eye(size), np.zeros(size)
    for row, (prompt, reply) in enumerate(product(range(PROMPTS), REPLIES)):
        for i, token in enumerate(reply):
            here = STATES[prompt, reply[:i]] * VOCAB + token
            if i + 1 < len(reply):
                discount, after = INSIDE, STATES[prompt, reply[: i + 1]]
            else:
                discount, after = GAMMA * (1 - float(data().terminated[row])), int(data().following[row])
                constant[here] = float(data().reward[row])
            matrix[here] = 0.0
            matrix[here, after * VOCAB : (after + 1) * VOCAB] = -discount * policy[after]
            matrix[here, here] += 1.0
    return np.linalg.solve(matrix, constant).reshape(len(STATES), VOCAB)


def dense(support: Support) -> np.ndarray:
    if support.ids is None:
        return support.probs.double().numpy()
    return torch.zeros(len(STATES), VOCAB).scatter(1, support.ids, support.probs).double().numpy()


def iterate(lambda_: float, support: Support, *, plain: bool = False, updates: int = 150) -> np.ndarray:
    """Q ``[S, V]`` after exact updates; ``plain`` follows the data's tokens as a lambda-return does."""
    d = data()
    behaviour = torch.where(d.mask, d.data_logits.softmax(-1)[d.state, d.ids], 1.0).prod(-1, keepdim=True)
    place, share = (d.state * VOCAB + d.ids)[d.mask], behaviour.expand_as(d.ids)[d.mask]
    total = torch.zeros(len(STATES) * VOCAB).index_add(0, place, share)
    assert (total > 0).all()
    probability = action_probability(Support(*(x if x is None else x[d.state] for x in support)), d.ids)
    r_t, discount_t = token_rewards_and_discounts(d.reward, d.terminated, d.mask, GAMMA, INSIDE)
    last = d.mask.sum(-1, keepdim=True) - 1

    def shifted(x: Tensor) -> Tensor:
        return torch.cat([x[:, 1:], torch.full_like(x[:, :1], float("nan"))], dim=1)

    pi_a_t = shifted(torch.ones_like(probability) if plain else probability)
    q = torch.zeros(len(STATES), VOCAB)
    for _ in range(updates):
        v = expectation(q if support.ids is None else q.gather(1, support.ids), support)
        v_t = shifted(v[d.state]).scatter(1, last, v[d.following].unsqueeze(-1))
        # with V in the place of Q(a): gamma (V + lambda (G - V)), the lambda-return
        q_a_t = v_t if plain else shifted(q[d.state, d.ids])
        y = tree_backup(r_t, discount_t, v_t, q_a_t, pi_a_t, d.mask, lambda_)
        q = (torch.zeros_like(total).index_add(0, place, share * y[d.mask]) / total).view(len(STATES), VOCAB)
    return q.double().numpy()


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_the_fixed_point_is_q_of_pi(lambda_: float, top_k: int | None) -> None:
    support = policy_support(data().pi_logits, top_k=top_k)
    found, exact = iterate(lambda_, support), solve(dense(support))
    assert np.abs(found - exact).max() < 1e-4


def test_the_test_can_fail() -> None:
    """The data policy's values lie elsewhere, and a plain lambda-return leads away from those of pi."""
    support = policy_support(data().pi_logits)
    exact = solve(dense(support))
    assert np.abs(exact - solve(data().data_logits.softmax(-1).double().numpy())).max() > 1
    assert np.abs(exact - iterate(1.0, support, plain=True)).max() > 1


def test_the_trace_carries_news_to_the_first_token_at_once() -> None:
    """One update from zero: with lambda 0 only last tokens know of rewards, with lambda 1 first tokens do, too."""
    support = policy_support(data().pi_logits)
    roots = [STATES[prompt, ()] for prompt in range(PROMPTS)]
    assert np.abs(iterate(0.0, support, updates=1)[roots, :STOP]).max() == 0
    assert np.abs(iterate(1.0, support, updates=1)[roots, :STOP]).min() > 0
