import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.modules.judgement import language_judgement

A, B, C, D = 40, 41, 42, 43
PI = {A: 0.6, B: 0.3, C: 0.1}
Q = {A: 1.0, B: -1.0, C: 5.0}


@pytest.fixture
def batch(encoder: TurnEncoder, pairs: list) -> TokenBatch:
    """One turn whose first three tokens are A, B, C."""
    valid = next(pair for pair in pairs if pair[0].valid)
    batch = encoder.batch([valid[0]], [valid[1]])
    assert batch.mask[0, :3].all()
    batch.reply_ids[0, :3] = torch.tensor([A, B, C])
    return batch


def _module(vlm: VLM, monkeypatch: pytest.MonkeyPatch, **options: Any) -> VLMQ:
    """Says A, B, C with the probabilities above in every state; the critic knows the values above."""
    module = VLMQ(vlm, min_probability=0.2, **options)
    logits, values = torch.full((vlm.vocab_size,), -40.0), torch.zeros(vlm.vocab_size)
    for token, pi in PI.items():
        logits[token], values[token] = math.log(pi), Q[token]
    monkeypatch.setattr(vlm, "logits", lambda hidden: logits.expand(*hidden.shape[:-1], -1))

    def q(hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        return values.expand(*hidden.shape[:-1], -1) if ids is None else values[ids]

    monkeypatch.setattr(module.critic, "q", q)
    return module


def test_a_judgement_by_hand(vlm: VLM, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = _module(vlm, monkeypatch, threshold=0.0).judge(batch, alternatives=2)
    torch.testing.assert_close(judged.log_pi[0, :3].exp(), torch.tensor([0.6, 0.3, 0.1]))
    assert judged.alternatives[0, :3].tolist() == [[B, C], [A, C], [A, B]]
    torch.testing.assert_close(judged.log_pi_alternatives[0, 0].exp(), torch.tensor([0.3, 0.1]))
    critic = judged.critic
    assert critic is not None
    # C is below .2 and left out: V = 2/3 (1) + 1/3 (-1) = 1/3
    torch.testing.assert_close(critic.v[0, :3], torch.full((3,), 1 / 3))
    torch.testing.assert_close(critic.q[0, :3], torch.tensor([1.0, -1.0, 5.0]))
    torch.testing.assert_close(critic.advantage[0, :3], torch.tensor([2 / 3, -4 / 3, 14 / 3]))
    assert critic.weight is not None
    assert critic.weight[0, :3].tolist() == [1, 0, 1]
    assert critic.q_alternatives[0, 0].tolist() == [-1, 5]
    torch.testing.assert_close(critic.share_alternatives[0, 0], torch.tensor([1 / 3, 0.0]))
    assert critic.threshold == 0
    assert not critic.guarded


def test_weights_follow_threshold_guard_and_masks(vlm: VLM, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(vlm, monkeypatch, threshold=3.0)

    def weights(of: TokenBatch) -> list[float]:
        critic = module.judge(of).critic
        assert critic is not None
        assert critic.weight is not None
        return critic.weight[0, :3].tolist()

    assert weights(batch) == [0, 0, 1]
    no = torch.zeros(1, dtype=torch.bool)
    assert weights(batch._replace(td=no)) == [1, 1, 1]  # the critic has no say
    assert weights(batch._replace(imitate=no)) == [0, 0, 0]
    module.threshold = None
    assert weights(batch) == [1, 1, 1]
    module.threshold, module.hparams["min_pass_rate"] = 9.0, 0.01
    assert weights(batch) == [0, 0, 1]  # one token must pass: the best
    assert bool(module.judge(batch).critic.guarded)  # type: ignore[union-attr]


def test_max_q_imitates_nothing_and_sft_has_no_critic(
    vlm: VLM, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = _module(vlm, monkeypatch, actor="max_q").judge(batch).critic
    assert critic is not None
    assert critic.weight is None
    judged = _module(vlm, monkeypatch, td_weight=0.0).judge(batch)
    assert judged.critic is None
    torch.testing.assert_close(judged.log_pi[0, :3].exp(), torch.tensor([0.6, 0.3, 0.1]))


def test_a_judgement_is_what_training_logs(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    batch = encoder.batch(*zip(*pairs[:8], strict=True))
    module = VLMQ(vlm, threshold=0.0, min_pass_rate=0.2, gamma=0.9)
    torch.nn.init.normal_(list(module.critic.online.parameters())[-2], std=0.1)
    module.eval()
    logs = module.losses(batch)[1]
    judged, mask = module.judge(batch), batch.mask
    assert judged.critic is not None
    assert judged.critic.weight is not None
    assert 0 < logs["filter/pass_rate_all"] < 1
    assert torch.equal(judged.critic.weight[mask].mean(), logs["filter/pass_rate_all"])
    assert torch.equal(judged.critic.q[mask].mean(), logs["critic/q"])
    assert torch.equal(judged.critic.v[mask].mean(), logs["critic/v"])
    assert torch.equal(judged.critic.advantage[mask].mean(), logs["critic/advantage_all"])
    assert torch.equal(judged.log_pi[mask].mean(), logs["policy/log_prob"])
    assert torch.equal(judged.critic.guarded.float(), logs["filter/guard_engaged"])


def test_what_generation_never_says_is_no_alternative() -> None:
    logits = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 1.0]]])
    judged = language_judgement(logits, torch.tensor([[1]]), (0,), alternatives=2)
    assert judged.alternatives.tolist() == [[[2, 3]]]  # 0 is forbidden, 1 was said
    assert logits.tolist() == [[[5.0, 4.0, 3.0, 2.0, 1.0]]]
    total = sum(math.exp(x) for x in (5, 4, 3, 2, 1))  # but the language head does give them probability
    assert judged.log_pi_alternatives[0, 0].exp().tolist() == pytest.approx([math.exp(3) / total, math.exp(2) / total])
