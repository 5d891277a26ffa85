"""Steps on shapes against the same steps on numbers, and against what PyTorch's own allocator says of these."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import Precision, a_module
from torch.profiler import ProfilerActivity, profile

from lightning_vlmq import VLM, VLMQ, TurnEncoder
from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.estimate.stages import StepMemory, Training
from lightning_vlmq.shapes import shapes, without_numbers

WAYS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "as it is": ({}, {}, False),
    "bfloat16": ({"dtype": "bfloat16"}, {"top_k": None, "critic_states": "adapted"}, True),
    "checkpointed": ({"gradient_checkpointing": True}, {"min_pass_rate": 0.2, "threshold": 0.0}, True),
    "above": ({"lora_layers": 1, "train_head": True}, {"critic": "embeddings", "critic_replay": 3}, False),
    "whole": ({"train_language_model": True}, {"critic_states": "detached"}, True),
    "tower": ({"train_vision_tower": True}, {"critic_states": "adapted"}, True),
    "dropping out": ({"lora_dropout": 0.1}, {"actor": "max_q"}, True),
    "4 bits": ({"load_in_4bit": True, "dtype": "bfloat16"}, {"optimizer": "adamw8bit"}, True),
    "SFT": ({"use_dora": True}, {"td_weight": 0.0}, False),
}


def a_step(module: VLMQ, batch: TokenBatch, mixed: bool) -> StepMemory:
    return Training(module, Precision(mixed)).step(batch)


@pytest.fixture
def batch(encoder: TurnEncoder, pairs: list) -> TokenBatch:
    return encoder.batch(*zip(*pairs[:6], strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_shapes_take_what_numbers_take(way: str, tiny_folder: Path, batch: TokenBatch, pairs: list) -> None:
    of_vlm, of_module, mixed = WAYS[way]
    if of_vlm.get("load_in_4bit") or of_vlm.get("dtype"):  # features are of the tower's type
        batch.inputs["image_features"] = batch.inputs["image_features"].to(torch.bfloat16)
        batch.next_inputs["image_features"] = batch.next_inputs["image_features"].to(torch.bfloat16)
    if of_vlm.get("train_vision_tower"):  # it is given pixels
        batch = TurnEncoder(VLM(str(tiny_folder), **of_vlm)).batch(*zip(*pairs[:6], strict=True))
    real = a_step(a_module(tiny_folder, of_vlm, of_module, numbers=True), batch, mixed)
    module = a_module(tiny_folder, of_vlm, of_module, numbers=False)
    assert all(without_numbers(p) for p in module.parameters())
    found = a_step(module, batch, mixed)
    assert found.fixed == pytest.approx(real.fixed, rel=0.01)
    assert found.kept == pytest.approx(real.kept, rel=0.01)
    assert found.peak == pytest.approx(real.peak, rel=0.01)


@pytest.mark.parametrize("way", ["bfloat16", "checkpointed"])
def test_the_allocator_says_the_same(way: str, tiny_folder: Path, batch: TokenBatch) -> None:
    of_vlm, of_module, mixed = WAYS[way]
    if of_vlm.get("dtype"):
        batch.inputs["image_features"] = batch.inputs["image_features"].to(torch.bfloat16)
        batch.next_inputs["image_features"] = batch.next_inputs["image_features"].to(torch.bfloat16)
    found = a_step(a_module(tiny_folder, of_vlm, of_module, numbers=False), batch, mixed)
    module = a_module(tiny_folder, of_vlm, of_module, numbers=True)
    training = Training(module, Precision(mixed))
    training.step(batch)
    with allocated() as more:
        with Precision(mixed).forward_context():
            loss, _ = module.losses(batch)
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
    # the batch is there already
    assert found.peak - found.fixed == pytest.approx(more[0], rel=0.03)


@pytest.mark.parametrize(("as_on_a_gpu", "taken"), [(True, 1), (False, 4)])
def test_dropout_keeps_a_byte_a_number_as_on_a_gpu(as_on_a_gpu: bool, taken: int) -> None:
    kept: list[int] = []
    saved = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t)
    numbers = torch.ones(1000, requires_grad=True)
    with shapes() if as_on_a_gpu else nullcontext(), saved:
        torch.nn.functional.dropout(numbers, 0.1, training=True)
    assert kept == [1000 * taken]


@contextmanager
def allocated() -> Iterator[list[int]]:
    """Most bytes that PyTorch's allocator handed out within this context beyond those before it."""
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield found
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    found.append(peak)
