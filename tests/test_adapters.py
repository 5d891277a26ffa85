"""What is trained of a VLM: adapters, the head, or the whole language model; and what is exported of it."""

import io
import json
import math
from pathlib import Path

import peft
import pytest
import torch
from PIL import Image
from steps import actor_losses
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_vlmq import VLM, VLMQ, TurnEncoder
from lightning_vlmq.batches import TokenBatch


@pytest.fixture
def batch(encoder: TurnEncoder, pairs: list) -> TokenBatch:
    return encoder.batch(*zip(*pairs[:6], strict=True))


def test_only_the_language_model_gets_an_adapter(tiny_folder: Path) -> None:
    vlm = VLM(str(tiny_folder), lora_rank=2, lora_targets=["q_proj", "v_proj"])
    names = vlm.trainable_names()
    # 2 layers x 2 targets x (A, B); the vision tower has q_proj and v_proj, too
    assert len(names) == 8
    assert all("text_model" in name and "lora_" in name for name in names)
    # rank 2, width 32: 2 x 32 for A and for B
    assert sum(p.numel() for p in vlm.parameters() if p.requires_grad) == 8 * 2 * 32


def test_only_the_last_layers_get_an_adapter(tiny_folder: Path) -> None:
    names = VLM(str(tiny_folder), lora_rank=2, lora_targets=["q_proj"], lora_layers=1).trainable_names()
    assert len(names) == 2
    assert all(".layers.1.self_attn.q_proj." in name for name in names)
    every = VLM(str(tiny_folder), lora_rank=2).trainable_names()
    assert VLM(str(tiny_folder), lora_rank=2, lora_layers=2).trainable_names() == every
    with pytest.raises(ValueError, match=r"vlm.lora_layers: 0 leaves no layer"):
        VLM(str(tiny_folder), lora_layers=0)


def test_targets_that_match_nothing_are_named(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"lora_targets: \['Wqkv'\] match no linear layer.*it has .*q_proj"):
        VLM(str(tiny_folder), lora_targets=["Wqkv"])
    with pytest.raises(ValueError, match=r"lora_targets: \['o_prj'\] match no linear layer"):  # each one must
        VLM(str(tiny_folder), lora_targets=["q_proj", "o_prj"])


def test_exports_load_without_us(
    vlm: VLM, encoder: TurnEncoder, pairs: list, tiny_folder: Path, tmp_path: Path
) -> None:
    inputs = encoder.prompts([pairs[0][0].observation])
    wanted = vlm.logits(_hidden(vlm, inputs))
    picture = Image.open(io.BytesIO(pairs[0][0].observation.images[0])).convert("RGB")
    pixels = vlm.processor(text=["<image>"], images=[[picture]], return_tensors="pt")
    live = {k: v for k, v in inputs.items() if k != "image_features"}
    live |= {k: v for k, v in pixels.items() if k.startswith("pixel")}
    vlm.export(tmp_path / "merged", merged=True)
    vlm.export(tmp_path / "adapter", merged=False)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    base = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    for model in (merged, adapted):
        with torch.no_grad():
            torch.testing.assert_close(model(**live).logits, wanted, atol=1e-4, rtol=1e-4)
    assert AutoProcessor.from_pretrained(tmp_path / "merged").tokenizer.eos_token_id == vlm.stop_ids[0]
    # the model in training is left as it was
    torch.testing.assert_close(vlm.logits(_hidden(vlm, inputs)), wanted)
    assert "lora" in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"].lower()


def test_a_trained_head_is_a_head_of_its_own(
    encoder: TurnEncoder, pairs: list, tiny_folder: Path, tmp_path: Path
) -> None:
    vlm = VLM(str(tiny_folder), lora_rank=2, train_head=True)
    heads = [name for name in vlm.trainable_names() if "lora_" not in name]
    assert len(heads) == 1
    assert vlm.get_parameter(heads[0]).shape == vlm.token_embeddings().shape
    inputs = encoder.prompts([pairs[0][0].observation])
    before = vlm.logits(_hidden(vlm, inputs)).detach()
    with torch.no_grad():
        vlm.get_parameter(heads[0])[7] += 1.0
    hidden = _hidden(vlm, inputs)  # the tied embeddings have not moved
    after = vlm.logits(hidden).detach()
    torch.testing.assert_close(after[..., 7] - before[..., 7], hidden.sum(-1), atol=1e-4, rtol=1e-4)
    assert torch.equal(after[..., :7], before[..., :7])
    with vlm.base():
        torch.testing.assert_close(vlm.logits(_hidden(vlm, inputs)), before)  # the adapter is still zero
    vlm.export(tmp_path / "merged", merged=True)
    vlm.export(tmp_path / "adapter", merged=False)
    again = VLM(str(tmp_path / "merged"), lora_rank=0)
    torch.testing.assert_close(again.logits(_hidden(again, inputs)), after, atol=1e-4, rtol=1e-4)
    base = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(adapted.get_output_embeddings().weight[7], vlm.get_parameter(heads[0])[7])


def test_a_head_is_not_trained_where_it_could_not_move(tiny_folder: Path) -> None:
    for options in ({"lora_rank": 0}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match=r"vlm\.train_head needs lora_rank above 0 and dtype float32"):
            VLM(str(tiny_folder), train_head=True, **options)  # type: ignore[arg-type]


def test_rank_stabilised_adapters_are_scaled_by_the_root_of_the_rank(tiny_folder: Path) -> None:
    for options, scale in (({}, 8 / 4), ({"use_rslora": True}, 8 / math.sqrt(4))):
        vlm = VLM(str(tiny_folder), lora_rank=4, lora_alpha=8, **options)  # type: ignore[arg-type]
        assert vlm.hf.get_decoder().layers[0].self_attn.q_proj.scaling["default"] == scale


def test_lengths_and_directions_are_learned_apart(
    tiny_folder: Path, batch: TokenBatch, encoder: TurnEncoder, tmp_path: Path
) -> None:
    vlm = VLM(str(tiny_folder), lora_rank=2, lora_targets=["q_proj"], lora_layers=1, use_dora=True)
    lengths = [name for name in vlm.trainable_names() if "magnitude" in name]
    assert len(lengths) == 1
    before = _hidden(vlm, batch.inputs)
    with torch.no_grad():
        vlm.get_parameter(lengths[0]).mul_(1.5)
    changed = _hidden(vlm, batch.inputs)
    assert not torch.allclose(changed, before, atol=1e-3)
    hidden, base = vlm.hidden_and_base(batch.inputs)
    torch.testing.assert_close(hidden.detach(), changed)
    torch.testing.assert_close(base, before)
    vlm.export(tmp_path, merged=True)
    again = VLM(str(tmp_path), lora_rank=0)
    torch.testing.assert_close(_hidden(again, batch.inputs), changed, atol=1e-4, rtol=1e-4)


def test_the_whole_language_model_learns(tiny_folder: Path, batch: TokenBatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vlm = VLM(str(tiny_folder), train_language_model=True)
    base, tower = vlm.base_fingerprint, vlm.vision_fingerprint
    assert base == VLM(str(tiny_folder)).base_fingerprint
    inside = {id(p) for part in (vlm.hf.get_decoder(), vlm.hf.get_output_embeddings()) for p in part.parameters()}
    assert {id(p) for p in vlm.parameters() if p.requires_grad} == inside
    module = VLMQ(vlm, critic_width=16, critic_states="adapted")
    losses = actor_losses(module, batch, 8)
    assert losses[-1] < losses[0] - 1
    assert vlm.base_fingerprint == base  # of what was loaded: a checkpoint is for that
    assert vlm.vision_fingerprint == tower
    wanted = vlm.logits(_hidden(vlm, batch.inputs))

    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert not [key for key in checkpoint["state_dict"] if "vision" in key or "connector" in key]
    resumed = VLMQ(VLM(str(tiny_folder), train_language_model=True), critic_width=16, critic_states="adapted")
    resumed.on_load_checkpoint(checkpoint)
    resumed.load_state_dict(checkpoint["state_dict"])
    torch.testing.assert_close(resumed.vlm.logits(_hidden(resumed.vlm, batch.inputs)), wanted, rtol=0, atol=0)

    vlm.export(tmp_path, merged=True)
    again = VLM(str(tmp_path), lora_rank=0)
    torch.testing.assert_close(again.logits(_hidden(again, batch.inputs)), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"an adapter would lack what vlm\.train_language_model trains; export it"):
        vlm.export(tmp_path, merged=False)


def test_what_a_whole_language_model_cannot_do_is_said_at_once(tiny_folder: Path) -> None:
    for options in ({"dtype": "bfloat16"}, {"load_in_4bit": True}):
        with pytest.raises(ValueError, match=r"train_language_model needs dtype float32 and load_in_4bit false"):
            VLM(str(tiny_folder), train_language_model=True, **options)  # type: ignore[arg-type]
    vlm = VLM(str(tiny_folder), train_language_model=True)
    with pytest.raises(ValueError, match=r"critic_states: base: vlm\.train_language_model leaves no base"):
        VLMQ(vlm)
    VLMQ(vlm, td_weight=0)  # SFT has no critic to read them


def _hidden(vlm: VLM, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return vlm.hidden(inputs)
