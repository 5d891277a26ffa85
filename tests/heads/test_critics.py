"""Heads, target, precision of the critics."""

import copy
from collections.abc import Callable

import pytest
import torch
from small_critics import ONE, D, V, fresh, heads, hidden, over_embeddings, trained
from torch import Tensor, nn

from lightning_vlmq.heads import EmbeddingCritic, MLPCritic, TokenCritic

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
    critic = fresh(make())
    assert critic.q_normalised(hidden(100)).abs().max() < 0.2
    torch.manual_seed(0)
    assert MLPCritic(64, 1000)(torch.randn(50, 64)).abs().max() < 0.1


def test_embeddings_are_frozen_and_stay_out_of_checkpoints() -> None:
    critic = fresh(over_embeddings())
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


def test_shared_embeddings_give_the_values_of_a_copy() -> None:
    table = nn.Parameter(torch.randn(V, 8) + 3)
    copied = trained(lambda: EmbeddingCritic(D, table.detach(), width=16))
    shared = fresh(EmbeddingCritic(D, lambda: table, width=16))
    assert {tuple(buffer.shape) for buffer in shared.online.buffers()} == {(8,), (V,)}  # nothing of V x 8 is its own
    assert shared.online.tokens is shared.target.tokens
    assert shared.state_dict().keys() == copied.state_dict().keys()
    shared.load_state_dict(copied.state_dict())
    ids = torch.randint(V, (3, 5, 7), generator=torch.Generator().manual_seed(0))
    for h, of in ((hidden(3, 5), None), (hidden(3, 5), ids)):
        torch.testing.assert_close(shared.q(h, of), copied.q(h, of), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(shared.q_target(h, of), copied.q_target(h, of), atol=1e-5, rtol=1e-5)
    shared.q(hidden(3, 5), ids).sum().backward()
    assert table.grad is None
    # of weights in half precision both make the same float32 rows
    half = table.detach().bfloat16()
    torch.testing.assert_close(
        EmbeddingCritic(D, lambda: half).tokens.of(ids), EmbeddingCritic(D, half).tokens.of(ids), atol=1e-5, rtol=1e-5
    )


# -- critic and target --------------------------------------------------------------------------------------


@heads
def test_online_and_target_share_no_parameter(make: Callable[[], TokenCritic]) -> None:
    critic = fresh(make())
    online = {parameter.data_ptr() for parameter in critic.online.parameters()}
    target = {parameter.data_ptr() for parameter in critic.target.parameters()}
    assert len(online) == len(target) == len(list(critic.online.parameters()))
    assert not online & target
    assert torch.equal(critic.q_target(hidden(4)), critic.q(hidden(4)))


@heads
def test_ema_is_its_closed_form_over_1000_steps(make: Callable[[], TokenCritic]) -> None:
    critic = fresh(make())
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
    critic = fresh(make()).to(torch.bfloat16)
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
    critic.observe(hidden(1, 1), torch.tensor([[5.0]]), ONE, torch.ones(1))  # in the middle of an accumulation
    other = fresh(make())
    assert not torch.allclose(other.q(hidden(4)), critic.q(hidden(4)))
    other.load_state_dict(copy.deepcopy(critic.state_dict()))
    for each in (critic, other):
        each.commit()
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
    critic = fresh(make()).to("meta", torch.bfloat16)
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
        critic = fresh(make())
        critic.observe(hidden(1, 1).bfloat16(), torch.ones(1, 1), ONE, torch.ones(1))
        critic.commit()
        assert critic.q(hidden(2).bfloat16()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in [*critic.named_parameters(), *critic.named_buffers()]:
        assert value.dtype == (torch.long if name.endswith("count") else torch.float32), name


def test_embeddings_stay_one_copy_on_another_device_and_in_deep_copies() -> None:
    critic = fresh(over_embeddings())
    moved = copy.deepcopy(critic).to("meta")
    for each in (critic, moved):
        assert isinstance(each.online, EmbeddingCritic)
        assert isinstance(each.target, EmbeddingCritic)
        assert each.online.tokens.rows is each.target.tokens.rows
    assert isinstance(moved.online, EmbeddingCritic)
    assert isinstance(critic.online, EmbeddingCritic)
    assert (moved.online.tokens.rows.device.type, critic.online.tokens.rows.device.type) == ("meta", "cpu")


def test_hidden_layers_can_be_stacked() -> None:
    shapes = [tuple(p.shape) for p in MLPCritic(D, V, width=16, layers=2).body.parameters()]
    assert shapes == [(16, D), (16,), (16, 16), (16,)]
    with pytest.raises(ValueError, match="layers 0"):
        MLPCritic(D, V, layers=0)
