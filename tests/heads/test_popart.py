"""PopArt: statistics, and values that stay while they move."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from small_critics import fresh, heads, hidden, mlp, trained
from torch import Tensor

from lightning_vlmq.heads import TokenCritic
from lightning_vlmq.normalisation import PopArt

NAN = float("nan")


def observe(popart: PopArt, *targets: float) -> None:
    popart.observe(torch.tensor([targets]), torch.ones(1, len(targets), dtype=torch.bool))
    popart.commit()


def test_first_step_counts_from_two() -> None:
    # step .1: .1 / (1 - .9^2) = .1 / .19; a first count of 1 would give a step of 1 and erase the 100
    popart = PopArt(step=0.1, init=100.0)
    observe(popart, 1.0, 5.0)
    step = 0.1 / 0.19
    assert popart.mu.item() == pytest.approx(step * 3)
    assert popart.nu.item() == pytest.approx((1 - step) * 100 + step * 13)
    observe(popart, 3.0)  # .1 / (1 - .9^3)
    third = 0.1 / 0.271
    assert popart.mu.item() == pytest.approx((1 - third) * step * 3 + third * 3)


def test_the_papers_numbers() -> None:
    # 5e-4 / (1 - .9995^2) = 1 / 1.9995 = .500125
    popart = PopArt()
    observe(popart, 2.0)
    assert popart.mu.item() == pytest.approx(1.00025, rel=1e-5)
    assert popart.nu.item() == pytest.approx(100 - 96 * 0.500125, rel=1e-5)
    # nu - mu^2 = 51.988 - 1.0005
    assert popart.sigma.item() == pytest.approx(math.sqrt(50.9875), rel=1e-5)


def test_before_any_target_the_scale_is_the_root_of_init() -> None:
    popart = PopArt(init=100.0)
    assert popart.sigma.item() == 10.0
    assert popart.normalise(torch.tensor([5.0, -20.0])).tolist() == [0.5, -2.0]
    assert popart.denormalise(torch.tensor([0.5, -2.0])).tolist() == [5.0, -20.0]


def test_the_scale_is_clipped() -> None:
    popart = PopArt(init=0.0)
    assert popart.sigma.item() == pytest.approx(1e-2)
    popart.nu.fill_(1e30)
    assert popart.sigma.item() == 1e4


@heads
@pytest.mark.parametrize("step", [5e-4, 0.05])
def test_values_stay_the_same_when_statistics_move(make: Callable[[], TokenCritic], step: float) -> None:
    critic = trained(make, step=step)
    h, rng = hidden(3, 4), torch.Generator().manual_seed(2)
    q, q_target = critic.q(h), critic.q_target(h)
    start = critic.popart.mu.clone(), critic.popart.sigma.clone()
    for _ in range(300):
        critic.popart.observe(50 * torch.randn(4, 6, generator=rng) - 30, torch.ones(4, 6, dtype=torch.bool))
        critic.popart.commit()
    assert abs(critic.popart.mu - start[0]) > 0.1  # they did move
    assert abs(critic.popart.sigma - start[1]) > 0.1
    size = q.abs().mean()
    assert (critic.q(h) - q).abs().max() < 1e-4 * size
    assert (critic.q_target(h) - q_target).abs().max() < 1e-4 * size
    assert torch.allclose(critic.q_normalised(h), critic.popart.normalise(q), rtol=1e-4, atol=1e-4)


def test_statistics_stand_still_within_an_accumulation() -> None:
    popart, whole = PopArt(step=0.1), PopArt(step=0.1)
    batch = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)) * 20
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 5, 4, 1, 2]).unsqueeze(-1)
    before = {name: value.clone() for name, value in popart.state_dict().items() if name != "pending"}
    for i in range(8):
        popart.observe(batch[i : i + 1], mask[i : i + 1])
        after = popart.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
    popart.commit()
    whole.observe(batch, mask)
    whole.commit()
    for name, value in whole.state_dict().items():
        assert torch.allclose(popart.state_dict()[name].double(), value.double()), name
    assert popart.mu != 0
    assert popart.count == 2  # one step, not eight


def test_commit_without_targets_changes_nothing() -> None:
    popart = PopArt(step=0.1)
    observe(popart, 1.0, 2.0)
    before = copy.deepcopy(popart.state_dict())
    popart.commit()
    popart.observe(torch.full((2, 3), NAN), torch.zeros(2, 3, dtype=torch.bool))
    popart.commit()
    assert all(torch.equal(popart.state_dict()[name], value) for name, value in before.items())


def test_each_turn_counts_once() -> None:
    once, twice = PopArt(step=0.1), PopArt(step=0.1)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    doubled = torch.tensor([[True, True, True, True], [True, False, False, False]])
    once.observe(torch.tensor([[1.0, 3.0, 9.0, 9.0], [10.0, 9.0, 9.0, 9.0]]), mask)
    twice.observe(torch.tensor([[1.0, 3.0, 1.0, 3.0], [10.0, 9.0, 9.0, 9.0]]), doubled)
    once.commit()
    twice.commit()
    # turns of mean 2 and 10, mean square 5 and 100
    assert once.mu.item() == pytest.approx(6 * 0.1 / 0.19)
    assert once.nu.item() == pytest.approx(100 + (52.5 - 100) * 0.1 / 0.19)
    assert all(torch.equal(value, once.state_dict()[name]) for name, value in twice.state_dict().items())


def test_turns_count_by_their_weight() -> None:
    popart = PopArt(step=0.1)
    popart.observe(torch.tensor([[4.0], [8.0]]), torch.ones(2, 1, dtype=torch.bool), torch.tensor([3.0, 1.0]))
    popart.commit()
    assert popart.mu.item() == pytest.approx(5 * 0.1 / 0.19)


@pytest.mark.parametrize("poison", [NAN, math.inf, -math.inf])
def test_masked_targets_and_turns_of_weight_zero_are_not_observed(poison: float) -> None:
    popart = PopArt(step=0.1)
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    targets = torch.tensor([[4.0, poison], [poison, poison], [poison, poison]])
    popart.observe(targets, mask, torch.tensor([1.0, 0.0, 1.0]))
    popart.commit()
    assert popart.mu.item() == pytest.approx(4 * 0.1 / 0.19)


def test_a_first_batch_of_zeros_is_finite() -> None:
    for init in (100.0, 0.0):
        critic = fresh(mlp(), init=init)
        h = hidden(5)
        before = critic.q(h)
        for _ in range(100):
            observe(critic.popart, 0.0, 0.0, 0.0)
        assert critic.popart.sigma >= 1e-2
        assert torch.allclose(critic.q(h), before, rtol=1e-4, atol=1e-6)
        assert critic.popart.normalise(torch.tensor(-200.0)).isfinite()


def test_disabled_is_the_identity() -> None:
    popart = PopArt(enabled=False)
    x = torch.tensor([-200.0, 0.5, 1e6])
    for _ in range(2):
        assert torch.equal(popart.scale(x), x)
        assert torch.equal(popart.normalise(x), x)
        assert torch.equal(popart.denormalise(x), x)
        observe(popart, -200.0, 3.0)
    assert popart.pending.tolist() == [0.0, 0.0, 0.0]


def test_no_optimiser_sees_popart_and_checkpoints_hold_it() -> None:
    assert list(PopArt().parameters()) == []
    assert {"mu", "nu", "count", "pending"} <= set(PopArt().state_dict())


def test_statistics_are_those_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """This rank saw one turn of 2, another one three turns of 6; a rank that saw none takes part, too."""

    def all_reduce(pending: Tensor) -> None:
        pending += torch.tensor([3.0, 18.0, 108.0])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    popart, idle = PopArt(step=0.1), PopArt(step=0.1)
    observe(popart, 2.0)
    idle.commit()
    # (2 + 18) / 4 = 5, (4 + 108) / 4 = 28
    assert popart.mu.item() == pytest.approx(5 * 0.1 / 0.19)
    assert popart.nu.item() == pytest.approx(100 - 72 * 0.1 / 0.19)
    assert idle.mu.item() == pytest.approx(6 * 0.1 / 0.19)
    assert popart.pending.tolist() == [0.0, 0.0, 0.0]
