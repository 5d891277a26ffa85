"""Earlier batches count in the critic's loss as if they were in the batch."""

import pytest
import torch

from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.modules.replay import CriticReplay


@pytest.fixture
def halves(encoder: TurnEncoder, pairs: list) -> list[TokenBatch]:
    """Turns 0 to 3 and 4 to 7, with replies of different lengths."""
    made = [encoder.batch(*zip(*part, strict=True)) for part in (pairs[:4], pairs[4:8])]
    cut = made[0].mask.shape[1] - 1  # narrower than the other half
    return [
        made[0]._replace(**{n: getattr(made[0], n)[:, :cut] for n in ("mask", "reply_ids", "positions")}),
        made[1],
    ]


def agent(vlm: VLM, **options: int) -> VLMQ:
    torch.manual_seed(0)
    module = VLMQ(vlm, critic_states="base", **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for part in (module.critic.online, module.critic.target):
            for parameter in part.parameters():
                parameter.normal_(std=0.1)
    return module.train()


def gradients(module: VLMQ, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(module.critic.online.parameters())))


@pytest.mark.parametrize("number", [1, 3])
def test_replayed_turns_count_as_those_of_the_batch(vlm: VLM, halves: list[TokenBatch], number: int) -> None:
    alone = agent(vlm)
    first, second = (gradients(alone, alone.losses(half)[0]) for half in halves)
    module = agent(vlm, critic_replay=number, critic_memory=1)
    same = gradients(module, module.losses(halves[0])[0])  # there is nothing to replay yet
    loss, _ = module.losses(halves[1])
    both = gradients(module, loss)
    for a, b, found, at_first in zip(first, second, both, same, strict=True):
        torch.testing.assert_close(at_first, a)
        torch.testing.assert_close(found, (number * a + b) / (number + 1), atol=1e-6, rtol=1e-4)
    assert len(module.td.replay) == 1


def test_batches_of_any_width_are_joined(vlm: VLM, halves: list[TokenBatch]) -> None:
    module = agent(vlm, critic_replay=3, critic_memory=2)
    for half in halves:
        module.losses(half)
    drawn = module.td.replay.draw(20, torch.device("cpu"))
    assert {tuple(row) for row in drawn.mask.sum(1).reshape(20, 4).tolist()} == {
        tuple(half.mask.sum(1).tolist()) for half in halves
    }
    # targets are what they are in a batch of their own
    targets, *apart = [module.td.targets(of, module.td.backed(of)) for of in (drawn, *module.td.replay._batches)]
    for row in range(0, 80, 4):
        found = targets[row : row + 4]
        width = next(t.shape[1] for t in apart if torch.allclose(t, found[:, : t.shape[1]], atol=1e-4))
        assert not found[:, width:].any()


def test_the_memory_is_bounded_and_holds_no_graph(vlm: VLM, halves: list[TokenBatch]) -> None:
    module = agent(vlm, critic_replay=1, critic_memory=3)
    for _ in range(5):
        module.losses(halves[0])[0].backward()
    assert len(module.td.replay) == 3
    memory = CriticReplay(2)
    drawn = module.td.replay.draw(1, torch.device("cpu"))
    memory.add(drawn._replace(states=drawn.states.requires_grad_()))
    assert not memory.draw(1, torch.device("cpu")).states.requires_grad


def test_in_validation_nothing_is_kept_and_nothing_replayed(vlm: VLM, halves: list[TokenBatch]) -> None:
    module, alone = agent(vlm, critic_replay=1, critic_memory=9), agent(vlm)
    module.losses(halves[0])
    _, found = module.eval().losses(halves[1])
    _, wanted = alone.eval().losses(halves[1])
    torch.testing.assert_close(found["loss/critic"], wanted["loss/critic"])
    assert len(module.td.replay) == 1


def test_states_that_the_adapter_changes_are_not_replayed(vlm: VLM) -> None:
    with pytest.raises(ValueError, match="critic_replay needs critic_states: base"):
        VLMQ(vlm, critic_states="adapted", critic_replay=1)
    with pytest.raises(ValueError, match="critic_memory 0: give a number of batches, at least 1"):
        VLMQ(vlm, critic_memory=0)
    with pytest.raises(ValueError, match="critic_replay needs top_k, or top_p with min_probability above 0"):
        VLMQ(vlm, critic_replay=1, top_k=None)
    with pytest.raises(ValueError, match="critic_replay needs top_k, or top_p with min_probability above 0"):
        VLMQ(vlm, critic_replay=1, top_k=None, top_p=0.9, min_probability=0.0)
