import pytest
import torch

from lightning_vlmq.losses import advantage_filter, exponential_filter, guarded_threshold

INF, NAN = float("inf"), float("nan")


def test_advantage_filter_approves_ties() -> None:
    adv = torch.tensor([[-1.0, -1e-7, 0.0, 2.0]])
    assert advantage_filter(adv, 0.0).tolist() == [[0, 0, 1, 1]]
    assert advantage_filter(adv, -0.5).tolist() == [[0, 1, 1, 1]]
    assert advantage_filter(adv, torch.tensor(2.0)).tolist() == [[0, 0, 0, 1]]


def test_no_threshold_filters_nothing() -> None:
    adv = torch.tensor([[-INF, NAN, -1e30, 0.0]])
    assert advantage_filter(adv, None).tolist() == [[1, 1, 1, 1]]
    assert advantage_filter(adv, INF).tolist() == [[0, 0, 0, 0]]


def test_filters_carry_no_gradient() -> None:
    adv = torch.tensor([[1.0]], requires_grad=True)
    assert not advantage_filter(adv, 0.0).requires_grad
    assert not advantage_filter(adv, None).requires_grad


def test_exponential_filter() -> None:
    # e^(ln 2 / 0.5) = 4, clipped at 3; e^0 = 1; e^(-ln 2 / 0.5) = 1/4
    adv = torch.tensor([[2.0, 1.0, 0.5, 1000.0]]).log()
    weights = exponential_filter(adv, temperature=0.5, clip=3.0)
    assert weights[0].tolist() == pytest.approx([3.0, 1.0, 0.25, 3.0])


@pytest.mark.parametrize(("temperature", "clip"), [(0.0, 1.0), (1.0, 0.0)])
def test_exponential_filter_refuses_zero(temperature: float, clip: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        exponential_filter(torch.zeros(1, 1), temperature, clip)


ADV = torch.tensor([[-3.0, -1.0, 9.0], [-2.0, 0.5, -4.0]])
MASK = torch.tensor([[True, True, False], [True, True, True]])  # -3, -1, -2, 0.5, -4: one in five passes 0


@pytest.mark.parametrize(
    ("rate", "threshold", "engaged"),
    [
        (0.0, 0.0, False),
        (0.2, 0.0, False),  # exactly met
        (0.4, -1.0, True),  # two of five
        (0.5, -2.0, True),  # three: two were fewer than half
        (1.0, -4.0, True),
    ],
)
def test_guarded_threshold(rate: float, threshold: float, engaged: bool) -> None:
    found, by_guard = guarded_threshold(ADV, MASK, 0.0, rate)
    assert found.item() == threshold
    assert by_guard.item() is engaged
    assert found.shape == by_guard.shape == ()
    passed = advantage_filter(ADV, found)[MASK].mean().item()
    assert passed >= rate - 1e-6


def test_the_guard_never_raises_the_threshold() -> None:
    found, engaged = guarded_threshold(ADV, MASK, -10.0, 0.4)
    assert (found.item(), engaged.item()) == (-10.0, False)


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_masked_advantages_do_not_move_the_guard(poison: float) -> None:
    found, engaged = guarded_threshold(ADV.masked_fill(~MASK, poison), MASK, 0.0, 0.4)
    assert (found.item(), engaged.item()) == (-1.0, True)


def test_a_batch_without_tokens_is_left_alone() -> None:
    found, engaged = guarded_threshold(ADV, torch.zeros_like(MASK), 0.25, 0.4)
    assert (found.item(), engaged.item()) == (0.25, False)
