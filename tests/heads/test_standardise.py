"""Running means and variances of the critic's inputs."""

import pytest
import torch
from small_critics import D, fresh, hidden, mlp

from lightning_vlmq.normalisation import Standardise

WEIGHT = torch.ones(2)
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_the_first_batch_sets_the_statistics() -> None:
    inputs, h = Standardise(3), torch.tensor([[1.0, -2.0, 7.0], [3.0, 4.0, 7.0]])
    assert torch.allclose(inputs(h), h, rtol=1e-4)  # nothing seen yet: as they are
    inputs.observe(h)
    inputs.commit()
    assert inputs.mean.tolist() == [2.0, 1.0, 7.0]
    assert inputs.variance.tolist() == [1.0, 9.0, 0.0]
    assert torch.allclose(inputs(h), torch.tensor([[-1.0, -1.0, 0.0], [1.0, 1.0, 0.0]]), atol=1e-4)


def test_large_means_cost_no_digits_and_statistics_converge() -> None:
    torch.manual_seed(0)
    scale, offset = torch.tensor([0.02, 1.0, 50.0]), torch.tensor([3.0, -1e4, 0.0])
    inputs = Standardise(3, step=0.01)
    for _ in range(600):
        inputs.observe(torch.randn(32, 3) * scale + offset)
        inputs.commit()
    out = inputs(torch.randn(10_000, 3) * scale + offset)
    assert out.mean(0).abs().max() < 0.06
    assert (out.std(0) - 1).abs().max() < 0.06


def test_an_accumulation_counts_once_and_moves_nothing_before() -> None:
    parts, whole = Standardise(D), Standardise(D)
    for start in (0, 100):
        batch = hidden(200)[start : start + 100] + start
        whole.observe(batch)
        before = parts(batch)
        for part in batch.split(25):
            parts.observe(part)
        assert torch.equal(parts(batch), before)
        for each in (parts, whole):
            each.commit()
    assert parts.count == 2
    assert torch.allclose(parts.mean, whole.mean, atol=1e-4)
    assert torch.allclose(parts.variance, whole.variance, rtol=1e-4)
    parts.commit()  # nothing was observed
    assert parts.count == 2


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_masked_states_and_turns_of_weight_zero_do_not_count(poison: float) -> None:
    critic, h = fresh(mlp()), hidden(3, 3)
    mask = torch.cat([MASK, torch.ones(1, 3, dtype=torch.bool)])
    h[~mask] = poison
    h[2] = poison
    critic.observe(h, torch.zeros(3, 3), mask, torch.tensor([1.0, 1.0, 0.0]))
    critic.commit()
    assert torch.allclose(critic.inputs.mean, h[:2][MASK].mean(0), atol=1e-6)


def test_critic_and_target_read_standardised_states() -> None:
    critic = fresh(mlp())
    h = 5 * hidden(2, 3) - 30
    critic.observe(h, torch.zeros(2, 3), MASK, WEIGHT)
    critic.commit()
    expected = (h - critic.inputs.mean) / (critic.inputs.variance + 1e-5).sqrt()
    assert torch.allclose(critic.q_normalised(h), critic.popart.scale(critic.online(expected)), atol=1e-5)
    assert torch.allclose(critic.q_target(h), critic.popart.denormalise(critic.popart.scale(critic.target(expected))))


def test_disabled_is_the_identity() -> None:
    inputs, h = Standardise(D, enabled=False), 7 * hidden(4) + 3
    inputs.observe(h)
    inputs.commit()
    assert torch.equal(inputs(h), h)
    assert inputs.count == 0
