"""QLoRA: the language model in 4 bits, everything else as it was."""

from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from steps import actor_losses
from torch import nn
from transformers import AutoModelForImageTextToText

from lightning_vlmq import VLM, VLMQ, TurnEncoder
from lightning_vlmq.batches import TokenBatch


@pytest.fixture
def batch(encoder: TurnEncoder, pairs: list) -> TokenBatch:
    return encoder.batch(*zip(*pairs[:6], strict=True))


def logits(vlm: VLM, batch: TokenBatch) -> torch.Tensor:
    with torch.no_grad():
        return vlm.logits(vlm.hidden(batch.inputs))


def test_the_language_models_layers_alone_are_rounded(vlm: VLM, tiny_folder: Path, batch: TokenBatch) -> None:
    small = VLM(str(tiny_folder), lora_rank=0, load_in_4bit=True)
    linear = {name: module for name, module in small.hf.named_modules() if isinstance(module, nn.Linear)}
    rounded = {name for name, module in linear.items() if isinstance(module, bnb.nn.Linear4bit)}
    assert rounded == {name for name in linear if "text_model" in name}
    assert len(rounded) == 14
    assert small.vision_fingerprint == vlm.vision_fingerprint
    with vlm.base():
        whole = logits(vlm, batch)
    found = logits(small, batch)
    error = (found - whole).norm() / whole.norm()
    assert 0.001 < error < 0.6  # rounded, and still the same model


def test_the_adapter_and_the_critic_learn_on_it(tiny_folder: Path, batch: TokenBatch) -> None:
    torch.manual_seed(0)
    vlm = VLM(str(tiny_folder), lora_rank=4, load_in_4bit=True)
    module = VLMQ(vlm, critic_width=16)
    frozen = {n: p.detach().clone() for n, p in vlm.named_parameters() if not p.requires_grad}
    losses = actor_losses(module, batch, 12)
    assert losses[-1] < losses[0] - 0.2
    assert all(torch.equal(p, frozen[n]) for n, p in vlm.named_parameters() if not p.requires_grad)
    assert all("lora_" in name for name in vlm.trainable_names())


def test_a_merged_export_is_the_whole_model_with_the_adapter(
    tiny_folder: Path, tmp_path: Path, batch: TokenBatch
) -> None:
    torch.manual_seed(0)
    small, whole = (VLM(str(tiny_folder), lora_rank=4, load_in_4bit=four) for four in (True, False))
    names = set(small.trainable_names())
    with torch.no_grad():
        for name in names:
            small.get_parameter(name).normal_(std=0.05)
            whole.get_parameter(name).copy_(small.get_parameter(name))
    before = logits(small, batch)
    small.export(tmp_path, merged=True)
    assert torch.equal(logits(small, batch), before)
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).dtype == torch.float32
    again = VLM(str(tmp_path), lora_rank=0)
    torch.testing.assert_close(logits(again, batch), logits(whole, batch), atol=1e-4, rtol=1e-4)
