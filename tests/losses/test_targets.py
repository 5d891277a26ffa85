import pytest
import torch
from torch import Tensor

from lightning_vlmq.losses import last_token, realised_returns, token_rewards_and_discounts, tree_backup

INF, NAN = float("inf"), float("nan")
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [False, False, False, False]])


def test_last_token() -> None:
    assert last_token(MASK).int().tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert last_token(torch.ones(1, 2, dtype=torch.bool)).tolist() == [[False, True]]


def test_realised_returns_begin_at_the_end() -> None:
    # 4; 2 + .5 x 4; 0 + .25 x 4: an end in between lets nothing through
    r_t, discount_t = torch.tensor([1.0, 0.0, 2.0, 4.0]), torch.tensor([0.0, 0.25, 0.5, 0.0])
    assert realised_returns(r_t, discount_t).tolist() == [1, 1, 4, 4]


def test_token_rewards_and_discounts() -> None:
    r_t, discount_t = token_rewards_and_discounts(
        torch.tensor([-2.0, 3.0, 7.0]), torch.tensor([False, True, False]), MASK, gamma=0.5, in_turn_discount=0.75
    )
    assert r_t.tolist() == [[0, 0, -2, 0], [3, 0, 0, 0], [0, 0, 0, 0]]
    assert discount_t.tolist() == [[0.75, 0.75, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_terminated_keeps_the_discounts_inside_the_reply() -> None:
    _, discount_t = token_rewards_and_discounts(
        torch.zeros(1), torch.tensor([True]), torch.ones(1, 3, dtype=torch.bool), gamma=0.5, in_turn_discount=1.0
    )
    assert discount_t.tolist() == [[1, 1, 0]]


# A reply of three tokens, reward 4, gamma 1/2 at its end and 1 inside. Values of the next states: 8, -2, and 6 behind
# the reply; the reply's second and third token: Q 10 and 3 under the target critic, probability 1/2 and 1/4 under pi.
#
#                    lambda 0      lambda 1/2                        lambda 1
# G2                 4 + 6/2 = 7   7                                 7
# G1 = -2 + ...      -2            1/2 x 1/4 x (7 - 3)     -> -1.5   1/4 x (7 - 3)     -> -1
# G0 =  8 + ...      8             1/2 x 1/2 x (-1.5 - 10) -> 5.125  1/2 x (-1 - 10)   -> 2.5
#
# Terminated, G2 = 4: G1 = -2 + .125 = -1.875, G0 = 8 + (-1.875 - 10) / 4 = 5.03125; lambda 1: -1.75, 2.125.
TARGETS = {
    (False, 0.0): [8.0, -2.0, 7.0],
    (False, 0.5): [5.125, -1.5, 7.0],
    (False, 1.0): [2.5, -1.0, 7.0],
    (True, 0.0): [8.0, -2.0, 4.0],
    (True, 0.5): [5.03125, -1.875, 4.0],
    (True, 1.0): [2.125, -1.75, 4.0],
}


def backup(terminated: bool, lambda_: float, inside: float = 1.0, padding: int = 0, poison: float = 0.0) -> Tensor:
    mask = torch.tensor([[True] * 3 + [False] * padding])
    pad = [poison] * padding
    r_t, discount_t = token_rewards_and_discounts(torch.tensor([4.0]), torch.tensor([terminated]), mask, 0.5, inside)
    behind = poison if terminated else 6.0
    v_t, q_a_t, pi_a_t = (
        torch.tensor([[*values, *pad]]) for values in ([8.0, -2.0, behind], [10, 3, poison], [0.5, 0.25, poison])
    )
    if padding:
        r_t[:, 3:] = discount_t[:, 3:] = poison
    return tree_backup(r_t, discount_t, v_t, q_a_t, pi_a_t, mask, lambda_)


@pytest.mark.parametrize(("terminated", "lambda_"), TARGETS)
def test_tree_backup_of_a_reply_of_three_tokens(terminated: bool, lambda_: float) -> None:
    assert backup(terminated, lambda_).tolist() == [TARGETS[terminated, lambda_]]


@pytest.mark.parametrize("poison", [NAN, INF, -INF, 1e9])
@pytest.mark.parametrize(("terminated", "lambda_"), TARGETS)
def test_tree_backup_reads_nothing_masked_or_behind_an_end(terminated: bool, lambda_: float, poison: float) -> None:
    assert backup(terminated, lambda_, padding=2, poison=poison).tolist() == [[*TARGETS[terminated, lambda_], 0, 0]]


def test_tree_backup_discounts_every_token() -> None:
    # G2 = 7, G1 = (-2 + 1/4 (7 - 3)) / 2 = -0.5, G0 = (8 + 1/2 (-0.5 - 10)) / 2 = 1.375
    assert backup(False, 1.0, inside=0.5).tolist() == [[1.375, -0.5, 7.0]]


def test_tree_backup_cuts_the_trace_at_a_token_without_probability() -> None:
    ones, mask = torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)
    pi = torch.tensor([[1.0, 0.0, NAN]])
    q_a = torch.tensor([[1.0, NAN, NAN]])
    r_t = torch.tensor([[0.0, 0.0, 100.0]])
    # G2 = 101, G1 = V = 1 (the third token never happens under pi), G0 = 1 + (1 - 1)
    assert tree_backup(r_t, ones, ones, q_a, pi, mask, 1.0).tolist() == [[1.0, 1.0, 101.0]]


def test_tree_backup_reads_nothing_behind_a_zero_discount_inside_the_reply() -> None:
    poison = torch.full((1, 2), NAN)
    mask = torch.ones(1, 2, dtype=torch.bool)
    pi = torch.ones(1, 2)
    targets = tree_backup(torch.tensor([[0.0, 3.0]]), torch.zeros(1, 2), poison, poison, pi, mask, 1.0)
    assert targets.tolist() == [[0.0, 3.0]]


def test_rows_are_independent_of_each_other_and_of_padding() -> None:
    one = [torch.rand(1, 3, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    mask = torch.ones(1, 3, dtype=torch.bool)
    alone = tree_backup(*one, mask, 0.7)
    wide = [torch.cat([torch.rand(1, 5), torch.cat([x, torch.full((1, 2), NAN)], 1)]) for x in one]
    both = tree_backup(*wide, torch.tensor([[True] * 5, [True] * 3 + [False] * 2]), 0.7)
    assert torch.equal(both[1, :3], alone[0])


def test_targets_carry_no_gradient_and_are_float32() -> None:
    tensors = [torch.rand(1, 3, dtype=torch.bfloat16, requires_grad=True) for _ in range(5)]
    targets = tree_backup(*tensors, torch.ones(1, 3, dtype=torch.bool), 0.5)
    assert not targets.requires_grad
    assert targets.dtype == torch.float32


def test_discounts_keep_their_digits_where_bfloat16_is_the_default() -> None:
    torch.set_default_dtype(torch.bfloat16)  # as the precision "bf16-true" does around a training step
    try:
        _, discount_t = token_rewards_and_discounts(
            torch.zeros(1), torch.tensor([False]), torch.ones(1, 2, dtype=torch.bool), 0.995, 0.995
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert discount_t.tolist() == [pytest.approx([0.995, 0.995], abs=1e-7)]
