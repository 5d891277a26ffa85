"""The base's states beside the adapted ones, with the layers below the adapter run once, in every family."""

from pathlib import Path

import pytest
import torch
from family_turns import adapted, pairs
from tiny_families import FAMILIES, LAYERS, build
from torch import nn

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.frozen_layers import layers_below_adapter, noted, repeated
from lightning_vlmq.vlm import EMBEDDED, VLM


@pytest.mark.parametrize("family", FAMILIES)
def test_both_are_those_of_two_whole_passes(family: str, tmp_path: Path) -> None:
    if FAMILIES[family].torchvision:
        pytest.importorskip("torchvision", reason="this family's processor needs it")
    vlm = adapted(build(FAMILIES[family], tmp_path), lora_layers=1)
    inputs = TurnEncoder(vlm).batch(*pairs()).inputs
    with torch.no_grad(), vlm.base():
        base = vlm.hidden(inputs)
    expected = vlm.hidden(inputs)
    assert not torch.allclose(expected, base, atol=1e-3)
    below = layers_below_adapter(vlm.hf.get_decoder())
    assert len(below) == LAYERS - 1
    ran: list[int] = []
    norms = [next(part for name, part in layer.named_modules() if "norm" in name) for layer in below]
    hooks = [norm.register_forward_hook(lambda *_: ran.append(1)) for norm in norms]
    hidden, states = vlm.hidden_and_base(inputs)
    for hook in hooks:
        hook.remove()
    assert len(ran) == len(below)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=0)
    torch.testing.assert_close(states, base, rtol=0, atol=0)
    assert hidden.requires_grad
    assert not states.requires_grad
    torch.testing.assert_close(vlm.hidden(inputs), expected, rtol=0, atol=0)  # nothing is left behind


def test_of_several_layers_below_the_adapter_only_the_last_one_counts() -> None:
    vlm = adapted(EMBEDDED, lora_layers=1)
    inputs = TurnEncoder(vlm).batch(*pairs()).inputs
    with torch.no_grad(), vlm.base():
        base = vlm.hidden(inputs)
    expected = vlm.hidden(inputs)
    assert len(layers_below_adapter(vlm.hf.get_decoder())) == 3
    hidden, states = vlm.hidden_and_base(inputs)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=0)
    torch.testing.assert_close(states, base, rtol=0, atol=0)


def test_only_what_nothing_trained_precedes_is_shared() -> None:
    count = len(VLM(lora_rank=0).hf.get_decoder().layers)
    for options, shared in (({"lora_rank": 0}, count), ({}, 0), ({"lora_layers": 1, "train_head": True}, count - 1)):
        vlm = VLM(**options)  # type: ignore[arg-type]
        assert len(layers_below_adapter(vlm.hf.get_decoder())) == shared


def test_layers_below_run_without_dropout_and_train_on_behind_it() -> None:
    layer = nn.Sequential(nn.Dropout(0.5)).train()
    with noted([layer]) as outputs:
        assert layer(torch.ones(100)).eq(1).all()
    assert layer.training
    assert layer[0].training
    assert outputs[0].eq(1).all()
    with repeated([layer], outputs):
        assert layer(torch.zeros(1)).eq(1).all()
    assert layer(torch.zeros(1)).eq(0).all()


def test_what_is_noted_stays_though_the_layer_above_writes_into_it() -> None:
    layer = nn.Linear(2, 2).requires_grad_(False)
    with noted([layer]) as outputs:
        seen = layer(torch.ones(2))
        before = seen.clone()
        seen += 1
    assert outputs[0].equal(before)
