"""A trained vision tower, on a tiny random model of each family: encoded anew each step, forward and backward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from family_turns import CLOSE, OBSERVATIONS, adapted, fit, hidden, live, pairs, played_and_trained
from tiny_families import FAMILIES, build
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from lightning_vlmq import VLMQ
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.features import FeatureCache
from lightning_vlmq.vision import train_vision
from lightning_vlmq.vlm import VLM

FROZEN = {"llava_onevision": 2, "aya_vision": 2, "llava": 18}
"""Weights that no picture reaches: the norm behind the layers, and the last layer of LLaVA (16 weights)."""

BEHIND_THE_REPLY = {"qwen3_vl": "deepstack_merger_list.1"}
"""What is added behind the last of only two layers changes no state that a reply is read from."""


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    if FAMILIES[request.param].torchvision:
        pytest.importorskip("torchvision", reason="this family's processor needs it")
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(FAMILIES[name], tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def batch(folder: Path) -> TokenBatch:
    return TurnEncoder(adapted(folder, train_vision_tower=True)).batch(*pairs())


def gradients(vlm: VLM, batch: TokenBatch) -> dict[str, Tensor]:
    vlm.train()
    logits = vlm.logits(batch.predicting(vlm.hidden(batch.inputs)))
    logits.log_softmax(-1)[batch.mask].square().mean().backward()
    return {name: p.grad for name, p in vlm.named_parameters() if p.requires_grad}


def test_live_states_are_those_of_cached_features_and_have_a_gradient(
    name: str, folder: Path, batch: TokenBatch
) -> None:
    cached, vlm = adapted(folder), adapted(folder, train_vision_tower=True)
    other = TurnEncoder(cached).batch(*pairs())
    assert "image_features" in other.inputs
    assert "image_features" not in batch.inputs
    for inputs, known in ((batch.inputs, other.inputs), (batch.next_inputs, other.next_inputs)):
        torch.testing.assert_close(hidden(vlm, inputs), hidden(cached, known), atol=1e-5, rtol=1e-5)
    assert vlm.base_fingerprint == cached.base_fingerprint

    tower = {name for name, _ in vlm.vision_parameters()}
    trained = {name.removeprefix("network.").removeprefix("base_model.model.") for name in vlm.trainable_names()}
    assert len(tower - trained) == FROZEN.get(name, 0)
    assert len(trained - tower) == 2 * FAMILIES[name].targets  # the adapter
    found = gradients(vlm, batch)
    still = {key for key, gradient in found.items() if not gradient.any()}
    assert all(BEHIND_THE_REPLY.get(name, "-") in key for key in still)

    checkpointed = gradients(adapted(folder, train_vision_tower=True, gradient_checkpointing=True), batch)
    torch.testing.assert_close(checkpointed, found, atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_learns_plays_resumes_and_is_exported(name: str, folder: Path, batch: TokenBatch, tmp_path: Path) -> None:
    options: dict[str, Any] = {"threshold": 0.0, "lr": 1e-2, "vision_lr": 1e-3, "critic_width": 16, "warmup_steps": 1}
    options |= {"critic_states": "adapted"}
    vlm = adapted(folder, train_vision_tower=True)
    encoder = TurnEncoder(vlm, features=FeatureCache(vlm, tmp_path / "f.sqlite"))
    encoder.prompts(OBSERVATIONS)  # what a cache could keep is from before the steps
    before = {key: p.detach().clone() for key, p in vlm.vision_parameters()}
    states = hidden(vlm, batch.inputs)
    module = VLMQ(vlm, **options)
    fit(module, batch, 1).save_checkpoint(tmp_path / "1.ckpt")
    assert not (tmp_path / "f.sqlite").exists()
    moved = {key for key, p in vlm.vision_parameters() if not torch.equal(p, before[key])}
    trained = {key for key, p in vlm.vision_parameters() if p.requires_grad}
    assert moved <= trained
    assert all(BEHIND_THE_REPLY.get(name, "-") in key for key in trained - moved)
    assert not torch.allclose(hidden(vlm, batch.inputs), states, atol=1e-3)

    _, differences = played_and_trained(encoder, temperature=1.0)
    assert len(differences) >= len(OBSERVATIONS)
    assert differences.max() <= 1e-4

    resumed = VLMQ(VLM(str(folder), lora_rank=2, lora_alpha=4, train_vision_tower=True), **options)
    fit(resumed, batch, 2, tmp_path / "1.ckpt")
    uninterrupted = VLMQ(adapted(folder, train_vision_tower=True), **options)
    fit(uninterrupted, batch, 2)
    wanted = uninterrupted.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in resumed.state_dict().items())

    vlm = resumed.vlm.eval()
    own = live(encoder, OBSERVATIONS[0])
    with torch.no_grad():
        logits = vlm.hf(**own).logits  # the family's own way, pixels in, logits out
        states = hidden(vlm, TurnEncoder(vlm).prompts(OBSERVATIONS[:1]))
        torch.testing.assert_close(vlm.logits(states), logits, **CLOSE)
        vlm.export(tmp_path / "merged", merged=True)
        merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged(**own).logits, logits, **CLOSE)
    with pytest.raises(ValueError, match=r"an adapter would lack what vlm\.train_vision_tower trains; export it"):
        vlm.export(tmp_path / "adapter", merged=False)


# -- of one family ----------------------------------------------------------------------------------------------


def test_beside_the_whole_language_model_and_alone(tiny_folder: Path) -> None:
    alone = VLM(str(tiny_folder), lora_rank=0, train_vision_tower=True)
    names = set(alone.trainable_names())
    assert names == {f"network.{key}" for key, _ in alone.vision_parameters()}
    whole = VLM(str(tiny_folder), train_language_model=True, train_vision_tower=True)
    assert all(p.requires_grad for p in whole.parameters())
    batch = TurnEncoder(alone).batch(*pairs())
    for vlm in (alone, whole):
        module = VLMQ(vlm, td_weight=0.0, lr=1e-3, vision_lr=2e-3, warmup_steps=0)
        groups = module.configure_optimizers()["optimizer"].param_groups
        rates = {group["name"]: group["lr"] for group in groups}
        assert rates == ({"vision": 2e-3} if vlm is alone else {"vlm": 1e-3, "vision": 2e-3})
        loss, _ = module.losses(batch)
        loss.backward()
        assert all(p.grad is not None for p in vlm.parameters() if p.requires_grad)


def test_a_batch_without_pictures_still_has_each_gradient(tiny_folder: Path) -> None:
    vlm = VLM(str(tiny_folder), lora_rank=0, train_vision_tower=True)
    last = pairs()[0][-1:]
    assert not last[0].observation.images
    batch = TurnEncoder(vlm).batch(last, last)
    assert batch.inputs.keys() == {"input_ids", "attention_mask"}
    found = gradients(vlm, batch)
    assert len(found) == len(list(vlm.vision_parameters()))
    assert not any(gradient.any() for gradient in found.values())


def test_a_checkpoint_with_a_tower_is_refused_where_it_is_frozen(tiny_folder: Path) -> None:
    module = VLMQ(VLM(str(tiny_folder), lora_rank=2, train_vision_tower=True), td_weight=0.0)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"has unknown .*connector.*; load it with the configuration it was made with"):
        VLMQ(VLM(str(tiny_folder), lora_rank=2), td_weight=0.0).on_load_checkpoint(checkpoint)


def test_its_dropout_counts(tiny_folder: Path) -> None:
    for trains in (True, False):
        vlm = VLM(str(tiny_folder), train_vision_tower=trains)
        vlm.hf.base_model.vision_model.encoder.layers[0].self_attn.dropout = 0.1
        assert vlm.drops_out == trains
        assert TurnEncoder(vlm).reads_next_apart == trains


def test_what_cannot_be_trained_is_said_at_once(tiny_folder: Path, vlm: VLM) -> None:
    for options in ({"dtype": "bfloat16"}, {"load_in_4bit": True}):
        with pytest.raises(ValueError, match=r"vlm\.train_vision_tower needs dtype float32 and load_in_4bit false"):
            VLM(str(tiny_folder), train_vision_tower=True, **options)  # type: ignore[arg-type]
    trained = VLM(str(tiny_folder), train_vision_tower=True)
    assert not trained.has_base
    for options in ({}, {"critic_replay": 2}):
        with pytest.raises(ValueError, match=r"critic_states: base: vlm\.train_vision_tower leaves no base; take"):
            VLMQ(trained, **options)  # type: ignore[arg-type]
    VLMQ(trained, td_weight=0)  # SFT has no critic to read them
    with pytest.raises(ValueError, match=r"vision_lr must not be negative"):
        VLMQ(trained, critic_states="detached", vision_lr=-1.0)
    with pytest.raises(ValueError, match=r"vision_lr: nothing there is trained; set vlm\.train_vision_tower: true"):
        VLMQ(vlm, vision_lr=1e-5)
    vlm.hf.norm = nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match=r"train_vision_tower: this tower normalises by running statistics .*false"):
        train_vision(vlm.hf, vlm.pictures)
