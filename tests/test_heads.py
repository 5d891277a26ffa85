import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_vlmq.heads import Critic, EmbeddingCritic, MLPCritic, PopArt, TokenCritic

NAN = float("nan")
D, V = 12, 20
ONE = torch.ones(1, 1, dtype=torch.bool)


def mlp() -> MLPCritic:
    torch.manual_seed(0)
    return MLPCritic(D, V, width=16)


def over_embeddings() -> EmbeddingCritic:
    torch.manual_seed(0)
    return EmbeddingCritic(D, torch.randn(V, 8), width=16)


HEADS = [mlp, over_embeddings]
heads = pytest.mark.parametrize("make", HEADS)


def trained(make: Callable[[], TokenCritic], **popart: float) -> Critic:
    """A critic whose values are not near zero, whose target lags behind, and whose statistics have moved."""
    critic = Critic(make(), PopArt(**popart))
    with torch.no_grad():
        for parameter in critic.online.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    critic.ema_update(0.5)
    critic.popart.observe(torch.tensor([[3.0, -40.0]]), torch.ones(1, 2, dtype=torch.bool))
    critic.popart.commit()
    return critic


def hidden(*shape: int) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1))


# -- PopArt -------------------------------------------------------------------------------------------------


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
        critic = Critic(mlp(), PopArt(init=init))
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


# -- heads --------------------------------------------------------------------------------------------------


@heads
def test_values_of_chosen_tokens_are_those_of_the_vocabulary(make: Callable[[], TokenCritic]) -> None:
    critic = trained(make)
    h, ids = hidden(3, 5), torch.randint(V, (3, 5, 7), generator=torch.Generator().manual_seed(0))
    for q in (critic.q, critic.q_normalised, critic.q_target):
        whole = q(h)
        assert whole.shape == (3, 5, V)
        assert torch.allclose(q(h, ids), whole.gather(-1, ids), rtol=1e-5, atol=1e-5)
    assert critic.q(h).std() > 0.1


def test_mlp_critic_by_hand() -> None:
    head = MLPCritic(1, 2, width=1)
    with torch.no_grad():
        head.body[0].weight.fill_(2.0)
        head.body[0].bias.fill_(-1.0)
        head.out.weight.copy_(torch.tensor([[3.0], [-1.0]]))
        head.out.bias.copy_(torch.tensor([0.5, 0.0]))
    # z = silu(2 - 1) = 1 / (1 + e^-1) = .7310586
    assert head(torch.tensor([1.0])).tolist() == pytest.approx([2.6931758, -0.7310586])


def frozen(head: nn.Module) -> Tensor:
    """The one buffer of an EmbeddingCritic: its token embeddings."""
    (embeddings,) = head.buffers()
    return embeddings


def test_embedding_critic_by_hand() -> None:
    # minus the mean (3, 4): (-3, -4), (3, 4); of length one: -(.6, .8), (.6, .8)
    head = EmbeddingCritic(1, torch.tensor([[0.0, 0.0], [6.0, 8.0]]), width=1)
    assert torch.allclose(frozen(head), torch.tensor([[-0.6, -0.8], [0.6, 0.8]]))
    with torch.no_grad():
        head.body[0].weight.fill_(2.0)
        head.body[0].bias.fill_(-1.0)
        head.value.weight.fill_(2.0)
        head.value.bias.fill_(1.0)
        head.direction.weight.copy_(torch.tensor([[1.0], [0.0]]))
        head.direction.bias.copy_(torch.tensor([0.0, 2.0]))
    # u = 1 + 2 x .7310586 = 2.4621172; m = (.7310586, 2); m . E = +-(.4386352 + 1.6)
    assert head(torch.tensor([1.0])).tolist() == pytest.approx([0.4234820, 4.5007524])


@heads
def test_untrained_values_sit_near_the_mean(make: Callable[[], TokenCritic]) -> None:
    critic = Critic(make(), PopArt())
    assert critic.q_normalised(hidden(100)).abs().max() < 0.2
    torch.manual_seed(0)
    assert MLPCritic(64, 1000)(torch.randn(50, 64)).abs().max() < 0.1


def test_embeddings_are_frozen_and_stay_out_of_checkpoints() -> None:
    critic = Critic(over_embeddings(), PopArt())
    assert frozen(critic.online).shape == (V, 8)
    # neither a matrix nor a vector of size V is trained or saved
    assert not [name for name, value in critic.named_parameters() if V in value.shape]
    assert not [name for name, value in critic.state_dict().items() if V in value.shape]
    assert frozen(critic.online).data_ptr() == frozen(critic.target).data_ptr()


def test_the_embedding_critic_keeps_a_copy() -> None:
    table = nn.Parameter(torch.randn(V, 8))
    head = EmbeddingCritic(D, table, width=16)
    kept = frozen(head).clone()
    assert not kept.requires_grad
    table.data.zero_()
    assert torch.equal(frozen(head), kept)


# -- critic and target --------------------------------------------------------------------------------------


@heads
def test_online_and_target_share_no_parameter(make: Callable[[], TokenCritic]) -> None:
    critic = Critic(make(), PopArt())
    online = {parameter.data_ptr() for parameter in critic.online.parameters()}
    target = {parameter.data_ptr() for parameter in critic.target.parameters()}
    assert len(online) == len(target) == len(list(critic.online.parameters()))
    assert not online & target
    assert torch.equal(critic.q_target(hidden(4)), critic.q(hidden(4)))


@heads
def test_ema_is_its_closed_form_over_1000_steps(make: Callable[[], TokenCritic]) -> None:
    critic = Critic(make(), PopArt())
    start = [parameter.detach().clone() for parameter in critic.target.parameters()]
    with torch.no_grad():
        for parameter in critic.online.parameters():
            parameter.add_(1.0)
    for _ in range(1000):
        critic.ema_update(0.008)
    share = 1 - 0.992**1000  # .99968
    for slow, old in zip(critic.target.parameters(), start, strict=True):
        assert torch.allclose(slow, old + share, rtol=0, atol=2e-5)
    assert not torch.equal(next(critic.target.parameters()), next(critic.online.parameters()))


@heads
def test_small_ema_steps_do_not_vanish(make: Callable[[], TokenCritic]) -> None:
    critic = Critic(make(), PopArt()).to(torch.bfloat16)
    with torch.no_grad():
        for slow, fast in zip(critic.target.parameters(), critic.online.parameters(), strict=True):
            slow.fill_(1.0)
            fast.fill_(1.125)
    critic.ema_update(0.008)  # 1.001: bfloat16 knows 1 and 1.0078
    assert next(critic.target.parameters()).flatten()[0].item() == pytest.approx(1.001, abs=1e-6)


@heads
def test_the_target_gets_no_gradient(make: Callable[[], TokenCritic]) -> None:
    critic = trained(make)
    h = hidden(4).requires_grad_()
    assert not critic.q_target(h).requires_grad
    critic.q(h).sum().backward()
    assert h.grad is not None
    assert h.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in critic.online.parameters())
    assert all(parameter.grad is None for parameter in critic.target.parameters())


@heads
def test_the_target_stays_out_of_optimisers(make: Callable[[], TokenCritic]) -> None:
    critic = trained(make)
    wanted = {name for name, parameter in critic.named_parameters() if parameter.requires_grad}
    assert wanted == {f"online.{name}" for name, _ in critic.online.named_parameters()}
    before = critic.q_target(hidden(4))
    optimiser = torch.optim.AdamW(critic.parameters(), lr=0.1)  # decay moves what has a gradient only
    critic.q(hidden(4)).sum().backward()
    old = critic.q(hidden(4)).detach()
    optimiser.step()
    assert torch.equal(critic.q_target(hidden(4)), before)
    assert not torch.allclose(critic.q(hidden(4)), old)


@heads
def test_state_dict_round_trip(make: Callable[[], TokenCritic]) -> None:
    critic = trained(make)
    critic.popart.observe(torch.tensor([[5.0]]), ONE)  # in the middle of an accumulation
    other = Critic(make(), PopArt())
    assert not torch.allclose(other.q(hidden(4)), critic.q(hidden(4)))
    other.load_state_dict(copy.deepcopy(critic.state_dict()))
    for each in (critic, other):
        each.popart.commit()
    assert torch.equal(other.q(hidden(4)), critic.q(hidden(4)))
    assert torch.equal(other.q_target(hidden(4)), critic.q_target(hidden(4)))
    assert torch.equal(other.popart.normalise(hidden(4)), critic.popart.normalise(hidden(4)))
    assert other.popart.count == 3


# -- precision ----------------------------------------------------------------------------------------------


@heads
@pytest.mark.parametrize("convert", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.bfloat16()])
def test_conversion_keeps_float32_and_every_digit(
    make: Callable[[], TokenCritic], convert: Callable[[nn.Module], nn.Module]
) -> None:
    critic = trained(make)
    q, q_target = critic.q(hidden(4)), critic.q_target(hidden(4))
    state = {name: value.clone() for name, value in critic.state_dict().items()}
    wrapped = nn.ModuleDict({"critic": critic, "vlm": nn.Linear(2, 2)})
    convert(wrapped)
    assert wrapped["vlm"].weight.dtype != torch.float32
    for name, value in critic.state_dict().items():
        assert value.dtype == state[name].dtype
        assert torch.equal(value, state[name]), name
    assert torch.equal(critic.q(hidden(4)), q)
    assert torch.equal(critic.q_target(hidden(4)), q_target)


@heads
def test_devices_still_change(make: Callable[[], TokenCritic]) -> None:
    critic = Critic(make(), PopArt()).to("meta", torch.bfloat16)
    assert {value.device.type for value in critic.state_dict().values()} == {"meta"}
    assert critic.popart.mu.dtype == torch.float32


@heads
def test_autocast_and_bfloat16_inputs_compute_in_float32(make: Callable[[], TokenCritic]) -> None:
    critic = trained(make)
    h = hidden(3, 4).bfloat16()
    ids = torch.arange(6).expand(3, 4, 6)
    plain = critic.q(h.float()), critic.q(h.float(), ids), critic.q_target(h.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = critic.q(h), critic.q(h, ids), critic.q_target(h)
    for left, right in zip(plain, mixed, strict=True):
        assert right.dtype == torch.float32
        assert torch.equal(left, right)


@heads
def test_a_bfloat16_default_makes_float32_heads(make: Callable[[], TokenCritic]) -> None:
    torch.set_default_dtype(torch.bfloat16)  # as the precision "bf16-true" does
    try:
        critic = Critic(make(), PopArt())
        critic.popart.observe(torch.ones(1, 1), ONE)
        critic.popart.commit()
        assert critic.q(hidden(2).bfloat16()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in [*critic.named_parameters(), *critic.named_buffers()]:
        assert value.dtype == (torch.long if name.endswith("count") else torch.float32), name


def test_embeddings_stay_one_copy_on_another_device_and_in_deep_copies() -> None:
    critic = Critic(over_embeddings(), PopArt())
    moved = copy.deepcopy(critic).to("meta")
    for each in (critic, moved):
        assert isinstance(each.online, EmbeddingCritic)
        assert isinstance(each.target, EmbeddingCritic)
        assert each.online.embeddings is each.target.embeddings
    assert isinstance(moved.online, EmbeddingCritic)
    assert isinstance(critic.online, EmbeddingCritic)
    assert (moved.online.embeddings.device.type, critic.online.embeddings.device.type) == ("meta", "cpu")


def test_hidden_layers_can_be_stacked() -> None:
    shapes = [tuple(p.shape) for p in MLPCritic(D, V, width=16, layers=2).body.parameters()]
    assert shapes == [(16, D), (16,), (16, 16), (16,)]
    with pytest.raises(ValueError, match="layers 0"):
        MLPCritic(D, V, layers=0)


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
