from typing import Any

import pytest
import torch
from torch.nn import functional as F

from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.modules.reading import support_of


@pytest.fixture
def batch(encoder: TurnEncoder, pairs: list) -> TokenBatch:
    return encoder.batch(*zip(*pairs[:8], strict=True))


def test_sft_is_recovered_exactly(vlm: VLM, encoder: TurnEncoder, batch: TokenBatch) -> None:
    module = VLMQ(vlm, td_weight=0.0, threshold=0.0)  # the one switch; a schedule may set what it likes
    loss, _ = module.losses(batch)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in vlm.named_parameters() if p.grad is not None}
    vlm.zero_grad()
    # plain fine-tuning: cross-entropy over the reply, a mean over each turn's tokens, then over turns
    logits = vlm.logits(vlm.hidden(batch.inputs))
    total = torch.zeros(())
    for row in range(8):
        count = int(batch.mask[row].sum())
        at = logits[row, batch.positions[row, :count]]
        total = total + F.cross_entropy(at, batch.reply_ids[row, :count])
    total = total / 8
    total.backward()
    torch.testing.assert_close(loss, total)
    for name, parameter in vlm.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4)
    assert not any(p.requires_grad for p in module.critic.parameters())


def test_without_threshold_the_actor_is_sft_while_the_critic_learns(vlm: VLM, batch: TokenBatch) -> None:
    sft, _ = VLMQ(vlm, td_weight=0.0).losses(batch)
    _, logs = VLMQ(vlm, td_weight=1.0).losses(batch)
    torch.testing.assert_close(logs["loss/actor"], sft.detach())
    assert logs["filter/pass_rate_all"] == 1


def test_both_losses_train_the_vlm_and_nothing_trains_targets(vlm: VLM, batch: TokenBatch) -> None:
    module = VLMQ(vlm, threshold=0.0)
    torch.nn.init.normal_(list(module.critic.online.parameters())[-2], std=0.1)
    loss, logs = module.losses(batch)
    joint = _gradients(module, loss)
    actor_only, _ = VLMQ(vlm, td_weight=0.0, threshold=None).losses(batch)
    assert set(_gradients(module, actor_only)) == {f"vlm.{n}" for n in vlm.trainable_names()}
    assert {name.split(".")[0] for name in joint} == {"vlm", "critic"}
    assert not any("target" in name for name in joint)
    assert all("lora_" in name for name in joint if name.startswith("vlm."))
    assert logs["loss/critic"] > 0


@pytest.mark.parametrize(
    ("states", "shaped", "moves"), [("adapted", True, True), ("detached", False, True), ("base", False, False)]
)
def test_whose_states_the_critic_reads(vlm: VLM, batch: TokenBatch, states: Any, shaped: bool, moves: bool) -> None:
    module = VLMQ(vlm, threshold=0.0, critic_states=states)
    for critic in (module.critic.online, module.critic.target):
        torch.manual_seed(1)
        torch.nn.init.normal_(list(critic.parameters())[-2], std=0.1)
    # no turn is imitated: what is left is the critic's loss
    loss, _ = module.losses(batch._replace(imitate=torch.zeros(8, dtype=torch.bool)))
    assert any(name.startswith("vlm") for name in _gradients(module, loss)) is shaped
    assert any(name.startswith("vlm") for name in _gradients(module, module.losses(batch)[0]))
    q = module(batch).prediction.detach()
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert (not torch.allclose(module(batch).prediction, q)) is moves
    assert all(p.requires_grad for n, p in vlm.named_parameters() if "lora_" in n)


def test_max_q_gives_the_critic_no_gradient_through_the_actor(vlm: VLM, batch: TokenBatch) -> None:
    torch.manual_seed(0)
    module = VLMQ(vlm, actor="max_q", threshold=0.0, td_weight=1e-12)
    loss, _ = module.losses(batch)
    gradients = _gradients(module, loss)
    assert max(float(g.abs().max()) for n, g in gradients.items() if n.startswith("critic")) < 1e-9


def test_accumulation_equals_one_batch(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    module = VLMQ(vlm, threshold=0.0)
    torch.nn.init.normal_(list(module.critic.online.parameters())[-2], std=0.1)
    turns, successors = zip(*pairs[:8], strict=True)
    whole = _gradients(module, module.losses(encoder.batch(turns, successors))[0])
    module.zero_grad()
    for row in range(8):
        loss, _ = module.losses(encoder.batch(turns[row : row + 1], successors[row : row + 1]))
        (loss / 8).backward()
    for name, gradient in whole.items():
        parts = dict(module.named_parameters())[name].grad
        torch.testing.assert_close(parts, gradient, atol=1e-5, rtol=1e-3)


def test_placeholders_weigh_nothing_in_expectations(vlm: VLM, batch: TokenBatch) -> None:
    module = VLMQ(vlm, top_k=None)
    support = support_of(torch.zeros(2, 3, vlm.vocab_size), module.allowed_tokens, module.hparams)
    assert support.ids is None
    assert (support.probs[..., list(vlm.forbidden_ids)] == 0).all()
    assert float(support.probs[0, 0, vlm.stop_ids[0]]) == pytest.approx(1 / (vlm.vocab_size - len(vlm.forbidden_ids)))


def test_masks_leave_turns_out(vlm: VLM, encoder: TurnEncoder, batch: TokenBatch) -> None:
    module = VLMQ(vlm, threshold=None)
    none = torch.zeros(8, dtype=torch.bool)
    _, logs = module.losses(batch._replace(imitate=none))
    assert logs["loss/actor"] == 0
    assert logs["loss/critic"] > 0
    _, logs = module.losses(batch._replace(td=none))
    assert logs["loss/actor"] > 0
    assert logs["loss/critic"] == 0
    # a reward that is not to be learnt from may be anything
    poisoned = batch._replace(td=none, reward=torch.full((8,), float("nan")))
    assert torch.isfinite(module.losses(poisoned)[0])


def test_turns_that_the_critic_may_not_learn_from_are_imitated_as_in_sft(vlm: VLM, batch: TokenBatch) -> None:
    sft = VLMQ(vlm, td_weight=0.0).losses(batch)[0].detach()
    module = VLMQ(vlm, threshold=0.0)
    torch.nn.init.normal_(list(module.critic.online.parameters())[-2], std=0.1)
    filtered = module.losses(batch)[1]
    assert 0 < filtered["filter/pass_rate_all"] < 1
    all_masked = module.losses(batch._replace(td=torch.zeros(8, dtype=torch.bool)))[1]
    torch.testing.assert_close(all_masked["loss/actor"], sft)
    # half and half: each turn's share of the loss is that of its own kind
    half = torch.arange(8) < 4
    mixed = module.losses(batch._replace(td=half))[1]["loss/actor"]
    parts = [module.losses(batch._replace(imitate=half))[1], module.losses(batch._replace(td=half, imitate=~half))[1]]
    torch.testing.assert_close(mixed, sum(part["loss/actor"] for part in parts))


@pytest.mark.parametrize(
    "option",
    [
        {"critic": "embeddings"},
        {"critic_inputs": "raw"},
        {"filter": "exponential"},
        {"actor": "max_q"},
        {"trace": 0.0},
        {"in_turn_discount": 1.0},
        {"policy_temperature": 0.2},
        {"top_k": None},
        {"top_k": None, "top_p": 0.5, "min_probability": 0.0},
        {"popart_init": None},
        {"min_pass_rate": 0.99},
    ],
    ids=str,
)
def test_every_option_changes_a_loss_that_trains(vlm: VLM, batch: TokenBatch, option: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"threshold": 0.0, "min_probability": 0.0, "top_k": 8, "gamma": 0.9}
    losses = []
    for changed in ({}, option):
        torch.manual_seed(0)
        module = VLMQ(vlm, **(settings | changed))
        for critic in (module.critic.online, module.critic.target):
            torch.manual_seed(1)
            torch.nn.init.normal_(list(critic.parameters())[-2], std=0.1)
        loss, logs = module.losses(batch)
        losses.append((loss.item(), logs["loss/actor"].item()))
        gradients = _gradients(module, loss)
        assert any(name.startswith("vlm") for name in gradients)
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"critic": "mpl"}, "critic must be mlp or embeddings, not 'mpl'"),
        ({"actor": "max-q"}, "actor must be afsft or max_q, not 'max-q'"),
        ({"critic_inputs": "std"}, "critic_inputs must be standardised or raw"),
        ({"critic_states": "frozen"}, "critic_states must be adapted or detached or base, not 'frozen'"),
        ({"filter": "exp"}, "filter must be advantage or exponential"),
        ({"td_weight": -1.0}, "td_weight must not be negative"),
        ({"decay_steps": -1}, "decay_steps must not be negative"),
        ({"popart_init": 0.0}, "popart_init must be above 0"),
        ({"popart_step": 0.0}, "popart_step must be above 0"),
        ({"td_huber": 0.0}, "td_huber must be above 0"),
        ({"top_k": 0}, "top_k must be above 0"),
        ({"lr": float("nan")}, "lr must be a finite number, not nan"),
        ({"threshold": float("-inf")}, "threshold must be a finite number, not -inf; null means none"),
        ({"critic_lr": -1.0}, "critic_lr must not be negative"),
        ({"critic_width": 0}, "critic_width must be above 0"),
        ({"trace": 1.5}, r"trace must be in \[0, 1\], not 1.5"),
        ({"actor": "max_q", "td_weight": 0.0}, "max_q follows the critic; give td_weight above 0"),
    ],
)
def test_options_that_would_train_something_else_are_refused(vlm: VLM, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VLMQ(vlm, **option)


def test_terminated_turns_do_not_read_a_successor(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    ends = [pair for pair in pairs if pair[0].terminated]
    batch = encoder.batch(*zip(*ends, strict=True))
    assert batch.next_inputs["input_ids"].shape[0] == 0
    loss, _ = VLMQ(vlm).losses(batch)
    assert torch.isfinite(loss)


def _gradients(module: VLMQ, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    module.zero_grad()
    return found
