import pytest
import torch

from lightning_vlmq.heads import Critic, MLPCritic
from lightning_vlmq.losses import Support, action_probability, advantage, expectation, policy_support
from lightning_vlmq.normalisation import PopArt, Standardise

# probabilities 0.5, 0.3, 0.15, 0.05, in another order than that of the ids
LOGITS = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
INF, NAN = float("inf"), float("nan")


def as_dict(support: Support) -> dict[int, float]:
    assert support.ids is not None
    pairs = zip(support.ids.tolist(), support.probs.tolist(), strict=True)
    return {i: round(p, 6) for i, p in pairs if p > 0}


def test_the_whole_vocabulary_is_the_softmax() -> None:
    support = policy_support(LOGITS)
    assert support.ids is None
    assert support.probs.tolist() == pytest.approx([0.15, 0.5, 0.05, 0.3])


def test_temperature_divides_the_logits() -> None:
    # odds 1 : 2 become 1 : 4 at temperature 1/2
    assert policy_support(torch.tensor([1.0, 2.0]).log(), temperature=0.5).probs.tolist() == pytest.approx([0.2, 0.8])


def test_top_k_keeps_the_likeliest_and_renormalises() -> None:
    assert as_dict(policy_support(LOGITS, top_k=2)) == {1: 0.625, 3: 0.375}
    assert as_dict(policy_support(LOGITS, top_k=1)) == {1: 1.0}
    assert as_dict(policy_support(LOGITS, top_k=9)) == {1: 0.5, 3: 0.3, 0: 0.15, 2: 0.05}


def test_min_p_leaves_out_unlikely_tokens_and_renormalises() -> None:
    # 0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95
    assert as_dict(policy_support(LOGITS, min_p=0.1)) == {1: 0.526316, 3: 0.315789, 0: 0.157895}
    assert as_dict(policy_support(LOGITS, top_k=3, min_p=0.2)) == {1: 0.625, 3: 0.375}


def test_min_p_compares_before_renormalising() -> None:
    # 0.3 / 0.8 would pass 0.35
    assert as_dict(policy_support(LOGITS, top_k=2, min_p=0.35)) == {1: 1.0}


def test_the_likeliest_token_always_stays() -> None:
    assert as_dict(policy_support(LOGITS, min_p=0.9)) == {1: 1.0}
    assert as_dict(policy_support(LOGITS, top_p=1e-6)) == {1: 1.0}


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    assert as_dict(policy_support(LOGITS, top_p=0.45)) == {1: 1.0}
    assert as_dict(policy_support(LOGITS, top_p=0.6)) == {1: 0.625, 3: 0.375}
    assert as_dict(policy_support(LOGITS, top_p=0.9)) == {1: 0.526316, 3: 0.315789, 0: 0.157895}


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}])
def test_settings_must_be_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} 0"):
        policy_support(LOGITS, **wrong)  # type: ignore[arg-type]


def test_support_has_no_gradient_and_is_float32() -> None:
    logits = LOGITS.to(torch.bfloat16).requires_grad_()
    for support in (policy_support(logits), policy_support(logits, top_k=2)):
        assert not support.probs.requires_grad
        assert support.probs.dtype == torch.float32


def test_expectation() -> None:
    support = policy_support(LOGITS)
    # 0.15 x 2 + 0.5 x 4 - 0.05 x 6 + 0.3 x 10
    assert expectation(torch.tensor([2.0, 4.0, -6.0, 10.0]), support).item() == pytest.approx(5.0)


def test_expectation_over_the_nucleus() -> None:
    support = policy_support(LOGITS.expand(2, 3, 4), top_k=2)
    assert support.ids is not None
    assert support.ids.shape == support.probs.shape == (2, 3, 2)
    # 0.625 x 8 + 0.375 x 16
    result = expectation(torch.tensor([8.0, 16.0]).expand(2, 3, 2), support)
    assert torch.allclose(result, torch.full((2, 3), 11.0))


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_values_of_tokens_without_probability_are_not_read(poison: float) -> None:
    masked = policy_support(torch.tensor([0.0, -INF, 0.0]))  # as generation masks tokens
    q = torch.tensor([1.0, poison, 5.0], requires_grad=True)
    value = expectation(q, masked)
    assert value.item() == 3.0
    value.backward()
    assert q.grad is not None
    assert q.grad.tolist() == [0.5, 0.0, 0.5]
    assert advantage(torch.tensor(4.0), q.detach(), masked).item() == 1.0
    dropped = policy_support(LOGITS, top_k=3, min_p=0.2)
    assert expectation(torch.tensor([8.0, 16.0, poison]), dropped).item() == pytest.approx(11.0)


def test_action_probability() -> None:
    ids = torch.tensor([[1, 0], [2, 3]])
    logits = LOGITS.expand(2, 2, 4)
    whole = action_probability(policy_support(logits), ids)
    assert torch.allclose(whole, torch.tensor([[0.5, 0.15], [0.05, 0.3]]))
    nucleus = action_probability(policy_support(logits, top_k=2), ids)
    assert torch.allclose(nucleus, torch.tensor([[0.625, 0.0], [0.0, 0.375]]))
    assert nucleus[0, 1] == nucleus[1, 0] == 0  # exactly: outside the support the trace is cut


def test_action_probability_of_a_token_that_min_p_left_out() -> None:
    support = policy_support(LOGITS, top_k=3, min_p=0.2)  # 0 is among the ids, with probability 0
    assert support.ids is not None
    assert 0 in support.ids.tolist()
    assert action_probability(support, torch.tensor(0)).item() == 0


def test_advantage() -> None:
    # 5.0 is the expectation above
    q = torch.tensor([2.0, 4.0, -6.0, 10.0])
    support = policy_support(LOGITS)
    advantages = [advantage(q[i], q, support, torch.tensor(i)).item() for i in range(4)]
    assert advantages == pytest.approx([-3.0, -1.0, -11.0, 5.0])
    # of a token outside the nucleus: 2 - 11
    nucleus = policy_support(LOGITS, top_k=2)
    outside = advantage(torch.tensor(2.0), torch.tensor([8.0, 16.0]), nucleus, torch.tensor(0))
    assert outside.item() == pytest.approx(-9.0)


def test_ties_are_exactly_zero() -> None:
    q = torch.full((1000,), 0.1) * torch.arange(1000)
    one = Support(torch.zeros(1000, 1, dtype=torch.long), torch.ones(1000, 1))
    assert (advantage(q, q.unsqueeze(-1), one) == 0).all()
    # all values alike, whatever pi: sum pi x 0
    support = policy_support(torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)))
    assert (advantage(q, q.unsqueeze(-1).expand(-1, 7), support) == 0).all()


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_a_certain_policy_ties_with_itself_through_the_critic(top_k: int | None) -> None:
    """Q(a) and Q(support) are two products, which differ by their rounding: >= 0 must approve a tie nevertheless."""
    torch.manual_seed(0)
    head = MLPCritic(64, 50, width=64)
    torch.nn.init.normal_(head.out.weight)
    critic = Critic(head, PopArt(), Standardise(64))
    h, a = torch.randn(5, 40, 64), torch.randint(50, (5, 40))
    logits = torch.full((5, 40, 50), -200.0).scatter(-1, a.unsqueeze(-1), 0.0)  # e^-200 is 0 in float32
    support = policy_support(logits, top_k=top_k)
    with torch.no_grad():
        q_a, q_support = critic.q(h, a.unsqueeze(-1)).squeeze(-1), critic.q(h, support.ids)
    assert (advantage(q_a, q_support, support, a) == 0).all()


def test_tokens_that_are_not_allowed_have_no_probability() -> None:
    allowed = torch.tensor([True, False, True, True])  # without the likeliest: 0.15, 0.05, 0.3 of 0.5
    whole = policy_support(LOGITS, allowed=allowed)
    assert whole.probs.tolist() == pytest.approx([0.3, 0.0, 0.1, 0.6])
    assert whole.probs[1] == 0
    assert expectation(torch.tensor([10.0, NAN, 10.0, 10.0]), whole).item() == pytest.approx(10.0)
    # min_p compares what is left: 0.3 and 0.6 of it stay
    assert as_dict(policy_support(LOGITS, top_k=4, min_p=0.2, allowed=allowed)) == {3: 0.666667, 0: 0.333333}
    assert as_dict(policy_support(LOGITS, top_k=1, allowed=allowed)) == {3: 1.0}


def test_a_policy_of_nan_is_not_hidden() -> None:
    support = policy_support(torch.tensor([NAN, 0.0]))
    assert expectation(torch.tensor([1.0, 2.0]), support).isnan()
    assert advantage(torch.tensor(1.0), torch.tensor([1.0, 2.0]), support).isnan()
