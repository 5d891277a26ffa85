"""The losses themselves: literals, denominators, gradients, and values that must never be read."""

from collections.abc import Callable
from math import log

import pytest
import torch
from torch import Tensor

from lightning_vlmq.losses import (
    advantage_filter,
    afsft_loss,
    counted,
    max_q_loss,
    policy_support,
    policy_value,
    td_loss,
    token_log_probs,
    turn_mean,
)

INF, NAN = float("inf"), float("nan")
# two turns, of three tokens and of one
MASK = torch.tensor([[True, True, True], [True, False, False]])
X = torch.tensor([[1.0, 2.0, 6.0], [5.0, 100.0, 100.0]])


def test_turn_mean_is_over_tokens_then_turns() -> None:
    # (9 / 3 + 5 / 1) / 2, not 14 / 4
    assert turn_mean(X, MASK).item() == 4.0


def test_weights_multiply_and_do_not_change_the_denominator() -> None:
    # (2 x 3 + 0 x 5) / 2
    assert turn_mean(X, MASK, torch.tensor([2.0, 0.0])).item() == 3.0
    assert turn_mean(X, MASK, torch.tensor([0.0, 0.0])).item() == 0.0


def test_a_turn_without_tokens_counts_as_zero() -> None:
    assert turn_mean(X, MASK & torch.tensor([[True], [False]])).item() == 1.5


def test_the_mean_of_micro_batches_is_the_mean_of_the_batch() -> None:
    halves = [turn_mean(X[i : i + 1], MASK[i : i + 1]).item() for i in range(2)]
    assert sum(halves) / 2 == turn_mean(X, MASK).item()


def test_turn_mean_adds_in_float32() -> None:
    ones = torch.ones(1, 1000, dtype=torch.bfloat16)  # bfloat16 cannot count to 1000
    mean = turn_mean(ones, ones.bool())
    assert mean.dtype == torch.float32
    assert mean.item() == 1.0


def test_token_log_probs() -> None:
    logits = torch.tensor([[[1.0, 3.0], [6.0, 2.0]]]).log()
    ids = torch.tensor([[1, 1]])
    assert token_log_probs(logits, ids)[0].tolist() == pytest.approx([log(3 / 4), log(1 / 4)])
    assert token_log_probs(logits.bfloat16(), ids).dtype == torch.float32


LOG_PI = torch.tensor([[-1.0, -2.0, -3.0], [-8.0, 0.0, 0.0]])


def test_sft_is_a_filter_of_ones() -> None:
    # (6 / 3 + 8) / 2
    assert afsft_loss(LOG_PI, torch.ones(2, 3), MASK).item() == 5.0


def test_afsft_keeps_filtered_tokens_in_the_denominator() -> None:
    # ((1 + 3) / 3 + 0) / 2
    accepted = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    assert afsft_loss(LOG_PI, accepted, MASK).item() == pytest.approx(2 / 3)


def test_afsft_weighs_tokens_and_turns() -> None:
    # (3 (0.5 x 1 + 2 x 3) / 3 + 0.5 x 8) / 2
    accepted = torch.tensor([[0.5, 0.0, 2.0], [1.0, 1.0, 1.0]])
    assert afsft_loss(LOG_PI, accepted, MASK, torch.tensor([3.0, 0.5])).item() == pytest.approx(5.25)


def test_td_loss() -> None:
    # ((1 + 4 + 16) / 3 + 9) / 2; weighted (2 x 7 + 0) / 2
    prediction = torch.tensor([[1.0, 0.0, 4.0], [-1.0, 0.0, 0.0]])
    target = torch.tensor([[0.0, 2.0, 0.0], [2.0, 7.0, 7.0]])
    assert td_loss(prediction, target, MASK).item() == 8.0
    assert td_loss(prediction, target, MASK, torch.tensor([2.0, 0.0])).item() == 7.0


def test_td_loss_beyond_huber_grows_evenly() -> None:
    # errors 1, -3, 0.5 and 2: squared up to 1, then 2 |e| - 1
    prediction = torch.tensor([[1.0, -3.0], [0.5, 2.0]], requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool)
    loss = td_loss(prediction, torch.zeros(2, 2), mask, huber=1.0)
    assert loss.item() == pytest.approx(((1 + 5) / 2 + (0.25 + 3) / 2) / 2)
    loss.backward()
    assert prediction.grad is not None
    assert prediction.grad.tolist() == [[0.5, -0.5], [0.25, 0.5]]  # 2 e, at most 2, over four


def test_td_loss_gradient() -> None:
    # 2 (prediction - target) / tokens / turns, into the prediction only
    prediction = torch.tensor([[1.0, 0.0, 4.0], [-1.0, 0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.0, 3.0, 1.0], [2.0, 7.0, 7.0]], requires_grad=True)
    td_loss(prediction, target, MASK).backward()
    assert prediction.grad is not None
    assert torch.allclose(prediction.grad, torch.tensor([[1 / 3, -1.0, 1.0], [-3.0, 0.0, 0.0]]))
    assert target.grad is None


def test_max_q_loss() -> None:
    logits = torch.tensor([[[1.0, 3.0], [1.0, 1.0], [1.0, 1.0]], [[3.0, 1.0]] * 3]).log()
    q = torch.tensor([[[4.0, 8.0], [2.0, 4.0], [-1.0, 0.0]], [[8.0, 0.0], [9.0, 9.0], [9.0, 9.0]]])
    # tokens 1/4 x 4 + 3/4 x 8 = 7, 3, -0.5; 6
    assert max_q_loss(policy_value(logits, q), MASK).item() == pytest.approx(-(9.5 / 3 + 6) / 2)


def test_the_max_q_actor_gives_the_critic_no_gradient() -> None:
    logits = torch.zeros(2, 3, 2, requires_grad=True)
    q = torch.tensor([1.0, -1.0]).expand(2, 3, 2).clone().requires_grad_()
    max_q_loss(policy_value(logits, q), MASK).backward()
    assert q.grad is None
    # Q = 1, -1 and V = 0: dV / dlogit_v = p_v (Q_v - V) = 1/2, -1/2, over tokens and turns
    assert logits.grad is not None
    expected = torch.tensor([[-1 / 12] * 3, [-1 / 4, 0, 0]])
    assert torch.allclose(logits.grad[..., 0], expected)
    assert torch.allclose(logits.grad[..., 1], -expected)


def test_the_filter_gets_no_gradient() -> None:
    accepted = torch.ones(2, 3, requires_grad=True)
    log_pi = LOG_PI.clone().requires_grad_()
    afsft_loss(log_pi, accepted, MASK).backward()
    assert accepted.grad is None
    assert log_pi.grad is not None
    assert torch.allclose(log_pi.grad, torch.tensor([[-1 / 6] * 3, [-1 / 2, 0, 0]]))


LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "turn_mean": (lambda a, b, mask, weight: turn_mean(a, mask, weight), ()),
    "afsft": (lambda a, b, mask, weight: afsft_loss(a, b, mask, weight), ()),
    "td": (lambda a, b, mask, weight: td_loss(a, b, mask, weight), ()),
    "max_q": (lambda a, b, mask, weight: max_q_loss(policy_value(a, b, counted(mask, weight)), mask, weight), (4,)),
}


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("name", LOSSES)
def test_masked_tokens_and_turns_of_weight_zero_are_not_read(name: str, poison: float) -> None:
    """Neither in the loss nor in the gradient: NaN x 0 is NaN, also in a backward pass."""
    loss, tail = LOSSES[name]
    rng = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    weight = torch.tensor([1.0, 0.0, 2.0])
    read = mask & (weight > 0).unsqueeze(-1)
    clean = [torch.randn(3, 3, *tail, generator=rng) for _ in range(2)]
    results = []
    for dirty in (False, True):
        a, b = (x.clone() for x in clean)
        if dirty:
            a[~read] = b[~read] = poison
        a.requires_grad_()
        value = loss(a, b, mask, weight)
        value.backward()
        assert a.grad is not None
        results.append((value, a.grad))
    (value, grad), (poisoned_value, poisoned_grad) = results
    assert value.isfinite()
    assert torch.equal(value, poisoned_value)
    assert torch.equal(grad, poisoned_grad)
    assert (grad[~read] == 0).all()
    assert (grad[read] != 0).any()


def test_a_filtered_token_may_have_probability_zero() -> None:
    logits = torch.tensor([[[0.0, -INF], [0.0, 0.0]]], requires_grad=True)
    log_pi = token_log_probs(logits, torch.tensor([[1, 0]]))
    assert log_pi[0, 0].item() == -INF
    loss = afsft_loss(log_pi, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(log(2) / 2)
    assert logits.grad is not None
    assert logits.grad[0].tolist() == [[0.0, 0.0], [-0.25, 0.25]]


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_max_q_reads_no_value_of_a_token_without_probability(poison: float) -> None:
    logits = torch.tensor([[[0.0, 0.0, -INF]]], requires_grad=True)
    value = policy_value(logits, torch.tensor([[[3.0, 1.0, poison]]]))
    loss = max_q_loss(value, torch.ones(1, 1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == -2.0
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist() == [-0.5, 0.5, 0.0]


def test_an_error_at_a_token_that_counts_is_not_hidden() -> None:
    accepted = torch.tensor([[1.0, NAN, 1.0], [1.0, 1.0, 1.0]])
    assert afsft_loss(LOG_PI, accepted, MASK).isnan()
    assert td_loss(X, X * NAN, MASK).isnan()


def test_max_q_over_the_nucleus() -> None:
    # 1/2, 1/3, 1/6: the first two are 0.6 and 0.4 of the nucleus; 0.6 x 10 + 0.4 x 5 = 8
    logits = torch.tensor([[[3.0, 1.0, 2.0]]]).log().requires_grad_()
    support = policy_support(logits, top_k=3, min_p=0.2)
    assert support.ids is not None
    assert support.ids.tolist() == [[[0, 2, 1]]]
    value = policy_value(logits, torch.tensor([[[10.0, 5.0, NAN]]]), support=support)
    loss = max_q_loss(value, torch.ones(1, 1, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(-8.0)
    assert logits.grad is not None
    # - p (Q - V): -0.6 x 2, 0.4 x 3
    assert logits.grad[0, 0].tolist() == pytest.approx([-1.2, 0.0, 1.2])


def test_without_a_threshold_afsft_is_the_cross_entropy() -> None:
    """Loss and gradient of SFT (eq. 3), whatever the critic says."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(5, (2, 3), generator=rng)
    logits = torch.randn(2, 3, 5, generator=rng, requires_grad=True)
    adv = torch.randn(2, 3, generator=rng) - 100
    loss = afsft_loss(token_log_probs(logits, ids), advantage_filter(adv, None), torch.ones(2, 3, dtype=torch.bool))
    (grad,) = torch.autograd.grad(loss, logits)
    reference = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    (wanted,) = torch.autograd.grad(reference, logits)
    assert loss.item() == pytest.approx(reference.item())
    assert torch.allclose(grad, wanted, atol=1e-7)
