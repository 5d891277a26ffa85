from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_vlmq import VLM, VLMQ, AgentEnv
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.envs import NumberLine
from lightning_vlmq.policy import RandomPolicy
from lightning_vlmq.rollout import play
from lightning_vlmq.shapes import shapes

# what Dynamo traces, and autograd through it; Inductor's kernels would need a C++ compiler and a minute
BACKEND = "aot_eager"


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _module(**options: Any) -> VLMQ:
    torch.manual_seed(0)
    vlm = VLM(lora_rank=4, lora_layers=2, **options)
    for name, parameter in vlm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return VLMQ(vlm, threshold=0.0, critic_width=40).train()


def _batches(vlm: VLM) -> list[TokenBatch]:
    encoder = TurnEncoder(vlm)
    episodes = play(AgentEnv(NumberLine()), [RandomPolicy()], range(3))
    pairs = [(e.turns[i], e.turns[i + 1]) for e in episodes for i in range(len(e))]
    return [encoder.batch(*zip(*some, strict=True)) for some in (pairs[:2], pairs[2:5])]


def _steps(module: VLMQ, batches: list[TokenBatch]) -> list[Tensor]:
    """Losses, and the sum of their gradients."""
    losses = [module.losses(batch)[0] for batch in batches]
    sum(losses, torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return [*(loss.detach() for loss in losses), *gradients]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_give_the_losses_and_gradients_of_others(checkpointing: bool) -> None:
    plain = _module(gradient_checkpointing=checkpointing)
    batches = _batches(plain.vlm)
    expected = _steps(plain, batches)
    compiled = _module(gradient_checkpointing=checkpointing, compile=BACKEND)
    before = torch._dynamo.utils.counters["frames"]["ok"]
    found = _steps(compiled, batches)
    assert torch._dynamo.utils.counters["frames"]["ok"] > before
    assert len(found) == len(expected) == 2 + 2 * 2 * 7 + 4  # losses, adapters of seven layers each, the critic
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert set(compiled.state_dict()) == set(plain.state_dict())


def test_only_adapted_layers_are_compiled_and_play_is_not() -> None:
    module = _module(compile=BACKEND)
    layers = module.vlm.hf.get_decoder().layers
    assert [layer._compiled_call_impl is not None for layer in layers] == [False, False, True, True]
    encoder = TurnEncoder(module.vlm)
    before = torch._dynamo.utils.counters["frames"]["ok"]
    observation = next(iter(play(AgentEnv(NumberLine()), [RandomPolicy()], range(1)))).turns[0].observation
    module.vlm.generate(encoder.prompts([observation]), max_new_tokens=3)
    assert torch._dynamo.utils.counters["frames"]["ok"] == before


def test_shapes_without_numbers_are_not_compiled(tiny_folder: Path) -> None:
    with shapes():
        vlm = VLM(str(tiny_folder), lora_rank=2, compile=BACKEND)
    assert not vlm.compiled
    assert all(layer._compiled_call_impl is None for layer in vlm.hf.get_decoder().layers)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vlm.compile must be null or one of .*inductor.*, not 'fast'"):
        VLM(compile="fast")
