"""What is read off the vocabulary in chunks against the plain computation, which holds all logits at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import Precision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_vlmq import VLM, VLMQ, chunks
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.language_head import HeadOutput
from lightning_vlmq.losses import (
    action_probability,
    advantage,
    afsft_loss,
    expectation,
    last_token,
    td_loss,
    token_log_probs,
    tree_backup,
    turn_mean,
)
from lightning_vlmq.modules.filtering import filtered
from lightning_vlmq.modules.reading import support_of

WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "vocabulary": ({}, {"top_k": None}),
    "top_p": ({}, {"top_k": None, "top_p": 0.7, "min_probability": 0.0}),
    "top_p, bounded": ({}, {"top_k": None, "top_p": 0.9, "min_probability": 0.002}),
    "embeddings": ({}, {"critic": "embeddings", "top_k": None, "critic_states": "adapted"}),
    "max_q": ({}, {"actor": "max_q"}),
    "exponential": ({}, {"filter": "exponential", "filter_temperature": 0.5}),
    "guarded": ({}, {"min_pass_rate": 0.9, "policy_temperature": 0.4}),
    "raw, one step": ({}, {"critic_inputs": "raw", "trace": 0.0, "critic_states": "detached"}),
    "capped": ({"cap": True}, {}),
    "capped, max_q": ({"cap": True}, {"actor": "max_q"}),
    "head": ({"train_head": True}, {}),
    "head, max_q, capped": ({"train_head": True, "cap": True}, {"actor": "max_q"}),
    "whole": ({"train_language_model": True}, {"critic_states": "adapted"}),
    "SFT": ({"cap": True}, {"td_weight": 0.0}),
}


def a_module(folder: Path, way: str) -> VLMQ:
    torch.manual_seed(1)
    of_vlm, options = WAYS[way]
    vlm = VLM(str(folder), lora_rank=4, lora_alpha=8, **{k: v for k, v in of_vlm.items() if k != "cap"})
    if "cap" in of_vlm:
        vlm.head_output = HeadOutput(0.7, 3.0)
    for name, parameter in vlm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    module = VLMQ(vlm, **{"threshold": 0.0, "gamma": 0.9, "min_probability": 0.0, "critic_width": 16, **options})
    for part in (module.critic.online, module.critic.target):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return module.train()


@pytest.fixture
def batch(encoder: TurnEncoder, pairs: list) -> TokenBatch:
    """Eight turns, some of which the actor or the critic leaves out."""
    whole = encoder.batch(*zip(*pairs[:8], strict=True))
    assert not whole.mask.all()
    return whole._replace(weight=torch.tensor([1.0, 2, 1, 0, 1, 1, 0.5, 1]), td=torch.arange(8) != 2)


def plain_loss(module: VLMQ, batch: TokenBatch) -> Tensor:
    """Eq. 7 with all logits at once."""
    hp, critic, vlm, ids, mask = module.hparams, module.critic, module.vlm, batch.reply_ids, batch.mask
    hidden, states = (batch.predicting(each) for each in module._hidden(batch.inputs))
    logits = vlm.logits(hidden)
    log_pi, imitate = token_log_probs(logits, ids), batch.weight * batch.imitate
    if hp["td_weight"] == 0:
        return afsft_loss(log_pi, torch.ones_like(log_pi), mask, imitate)
    with torch.no_grad():
        support = support_of(logits, module.allowed_tokens, hp)
        q_a = critic.q(states, ids.unsqueeze(-1)).squeeze(-1)
        adv = advantage(q_a, critic.q(states, support.ids), support, ids)
        value = expectation(critic.q_target(states, support.ids), support)
        with vlm.inference():
            after, read = (
                each[torch.arange(len(each)), batch.next_positions] for each in module._hidden(batch.next_inputs)
            )
        of_next = support_of(vlm.logits(after), module.allowed_tokens, hp)
        following = torch.zeros(len(ids))
        following[batch.has_next] = expectation(critic.q_target(read, of_next.ids), of_next)

        def shifted(x: Tensor) -> Tensor:
            return torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1)

        targets = tree_backup(
            *module.td.rewards_and_discounts(batch),
            torch.where(last_token(mask), following.unsqueeze(-1), shifted(value)),
            shifted(critic.q_target(states, ids.unsqueeze(-1)).squeeze(-1)),
            shifted(action_probability(support, ids)),
            mask,
            hp["trace"],
        )
    if hp["actor"] == "max_q":
        actor = turn_mean(-(logits.softmax(-1) * critic.q(states).detach()).sum(-1), mask, imitate * batch.td)
    else:
        accepted, _ = filtered(batch, adv, module.threshold, module.filter_temperature, hp)
        actor = afsft_loss(log_pi, accepted, mask, imitate)
    prediction = critic.q_normalised(states, ids.unsqueeze(-1)).squeeze(-1)
    return actor + hp["td_weight"] * td_loss(
        prediction, critic.popart.normalise(targets), mask, batch.weight * batch.td
    )


def gradients(module: VLMQ, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", WAYS)
def test_chunks_have_the_losses_and_gradients_of_all_logits_at_once(
    way: str, tiny_folder: Path, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = a_module(tiny_folder, way)
    wanted = plain_loss(module, batch)
    wanted_gradients = gradients(module, wanted)
    for rows in (5, 10**6):
        monkeypatch.setattr(chunks, "CHUNK", rows * module.vlm.vocab_size)
        loss, _ = module.losses(batch)
        found = gradients(module, loss)
        torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-5)
        assert found.keys() == wanted_gradients.keys()
        for name, gradient in wanted_gradients.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("way", ["defaults", "vocabulary", "SFT"])
def test_logs_and_judgements_do_not_depend_on_chunks(
    way: str, tiny_folder: Path, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = a_module(tiny_folder, way).eval()
    module.seen_tokens[:30] = True
    whole, judged = module.losses(batch)[1], module.judge(batch)
    monkeypatch.setattr(chunks, "CHUNK", 5 * module.vlm.vocab_size)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(module.losses(batch)[1], whole, equal_nan=True, **close)
    torch.testing.assert_close(module.judge(batch), judged, **close)


@pytest.mark.parametrize("way", ["vocabulary", "max_q", "head"])
def test_chunks_in_bfloat16(way: str, tiny_folder: Path, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    module = a_module(tiny_folder, way)
    module.threshold = None  # rounding must not decide what is imitated
    found = []
    for rows in (10**6, 5):
        monkeypatch.setattr(chunks, "CHUNK", rows * module.vlm.vocab_size)
        with Precision(mixed=True).forward_context():
            loss, _ = module.losses(batch)
        found.append(gradients(module, loss) | {"loss": loss.detach()})
    for name, gradient in found[0].items():
        atol = 0.02 * float(gradient.abs().max())
        torch.testing.assert_close(found[1][name], gradient, atol=atol, rtol=0.02, msg=lambda m, n=name: f"{n}: {m}")


class _OfVocabulary(TorchDispatchMode):
    """Most rows of tensors with a dimension as large as the vocabulary, weights and their gradients left out."""

    def __init__(self, module: VLMQ) -> None:
        super().__init__()
        self.size, self.rows = module.vlm.vocab_size, 0
        self.weights = {tuple(sorted(p.shape)) for p in module.parameters()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and self.size in each.shape and tuple(sorted(each.shape)) not in self.weights:
                self.rows = max(self.rows, each.numel() // self.size)
        return result


@pytest.mark.parametrize("way", WAYS)
def test_no_tensor_is_of_tokens_times_vocabulary(
    way: str, tiny_folder: Path, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = a_module(tiny_folder, way)
    monkeypatch.setattr(chunks, "CHUNK", 8 * module.vlm.vocab_size)
    with _OfVocabulary(module) as made:
        module.losses(batch)[0].backward()
    assert made.rows == 8
    with _OfVocabulary(module) as made:
        plain_loss(module, batch)
    assert made.rows >= batch.mask.numel() > 32  # it would have been seen
