"""One path serves every family: each check runs on a tiny random model of each."""

import dataclasses
import io
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from family_turns import (
    CLOSE,
    HIGH,
    OBSERVATIONS,
    SHOWN,
    SMALL,
    SQUARE,
    WIDE,
    adapted,
    fit,
    hidden,
    live,
    pairs,
    played_and_trained,
)
from PIL import Image
from tiny_families import FAMILIES, build
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_vlmq import VLMQ
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.features import FeatureCache
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.vlm import VLM


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    if FAMILIES[request.param].torchvision:
        pytest.importorskip("torchvision", reason="this family's processor needs it")
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(FAMILIES[name], tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VLM:
    return adapted(folder)


@pytest.fixture(scope="module")
def encoder(vlm: VLM) -> TurnEncoder:
    return TurnEncoder(vlm)


@pytest.fixture(scope="module")
def batch(encoder: TurnEncoder) -> TokenBatch:
    return encoder.batch(*pairs())


def with_reply(inputs: dict[str, Tensor], ids: list[int], reply_type: int) -> dict[str, Tensor]:
    values = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in inputs:
            values[key] = torch.full((1, len(ids)), reply_type)
    return inputs | {key: torch.cat([inputs[key], value], dim=1) for key, value in values.items()}


def test_prompts_and_replies_are_read_as_the_model_itself_does(
    name: str, encoder: TurnEncoder, batch: TokenBatch
) -> None:
    vlm = encoder.vlm
    logits = vlm.logits(batch.predicting(hidden(vlm, batch.inputs)))
    states = hidden(vlm, batch.inputs)
    for row, observation in enumerate(OBSERVATIONS):
        if not observation.images and not FAMILIES[name].shows_none:
            continue
        ids, _ = encoder.prompt_ids(observation)
        own = live(encoder, observation)
        assert own["input_ids"].tolist() == [ids], list(SHOWN)[row]
        reply = batch.reply_ids[row, batch.mask[row]].tolist()
        whole = with_reply(own, reply[:-1], reply_type=1 if "paligemma" in name else 0)
        with torch.no_grad():
            wanted = vlm.hf.model(**whole).last_hidden_state[0]
            wanted_logits = vlm.hf(**whole).logits[0, len(ids) - 1 :]
        torch.testing.assert_close(states[row, : len(wanted)], wanted, **CLOSE)
        torch.testing.assert_close(logits[row, : len(reply)], wanted_logits.detach(), **CLOSE)


def test_cached_features_are_those_of_a_picture_alone(vlm: VLM, tmp_path: Path) -> None:
    images = [SQUARE, WIDE, SMALL, HIGH]
    FeatureCache(vlm, tmp_path / "f.sqlite")(images)  # all sizes at once
    cached = FeatureCache(vlm, tmp_path / "f.sqlite")
    for image, entry in zip(images, cached(images), strict=True):
        (alone,) = vlm.image_features([Image.open(io.BytesIO(image)).convert("RGB")])
        assert entry.ids == alone.ids
        assert entry.ids.count(vlm.image_token_id) == len(entry.features)
        torch.testing.assert_close(entry.features, alone.features, atol=1e-5, rtol=1e-5)
        assert entry.beside.keys() == alone.beside.keys()
        assert all(torch.equal(entry.beside[key], value) for key, value in alone.beside.items())
    assert cached.computed == 0


def test_rows_do_not_depend_on_padding_or_neighbours(encoder: TurnEncoder, batch: TokenBatch) -> None:
    together = batch.predicting(hidden(encoder.vlm, batch.inputs))
    following = hidden(encoder.vlm, batch.next_inputs)
    turns, successors = pairs()
    for row in range(len(turns)):
        alone = encoder.batch(turns[row : row + 1], successors[row : row + 1])
        count = int(alone.mask.sum())
        own = alone.predicting(hidden(encoder.vlm, alone.inputs))[0]
        torch.testing.assert_close(together[row, :count], own, **CLOSE)
        end = int(alone.next_positions)
        own = hidden(encoder.vlm, alone.next_inputs)[0, end]
        torch.testing.assert_close(following[row, end], own, **CLOSE)


def test_batched_generation_equals_one_by_one(encoder: TurnEncoder) -> None:
    vlm = encoder.vlm
    assert len({len(encoder.prompt_ids(o)[0]) for o in OBSERVATIONS}) > 1, "prompts of one length need no padding"
    together = vlm.generate(encoder.prompts(OBSERVATIONS), max_new_tokens=6)
    # the one without a picture last: nothing of the others may be left
    alone = [vlm.generate(encoder.prompts([o]), max_new_tokens=6)[0] for o in OBSERVATIONS]
    assert [each.ids for each in together] == [each.ids for each in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


@pytest.mark.parametrize("action_prompt", ["agent", "minimum"])
def test_log_probs_in_training_are_those_of_the_rollout(
    encoder: TurnEncoder, action_prompt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = encoder.vlm
    monkeypatch.setitem(vlm.__dict__, "stop_ids", (*vlm.stop_ids, *range(100, 160)))  # random weights seldom stop
    said, differences = played_and_trained(encoder, temperature=2.0, action_prompt=action_prompt)
    assert len({len(reply.ids) for reply in said}) > 1  # some ended before others
    assert not {token for reply in said for token in reply.ids} & set(vlm.forbidden_ids)
    unknown = range(len(vlm.tokenizer), vlm.vocab_size)
    assert {vlm.image_token_id, vlm.tokenizer.pad_token_id, *unknown} <= set(vlm.forbidden_ids)
    assert len(differences) >= len(OBSERVATIONS)
    assert differences.max() <= 1e-4


def test_log_probs_agree_in_bfloat16(folder: Path) -> None:
    _, differences = played_and_trained(TurnEncoder(adapted(folder, dtype="bfloat16")), temperature=1.0)
    assert differences.mean() <= 2e-2


def test_long_prompts_are_cut_in_their_text_alone(name: str, encoder: TurnEncoder) -> None:
    vlm = encoder.vlm
    page = "\n".join(f"[{line}] button 'Go to page {line}', visible" for line in range(60))
    long = [dataclasses.replace(each, text=each.text + page, step_limit=10) for each in OBSERVATIONS]
    limit = max(len(encoder.prompt_ids(each)[0]) for each in OBSERVATIONS) + 40
    cutting = TurnEncoder(vlm, PromptMethod(max_tokens=limit), features=encoder.features)

    for key, values in encoder.prompts(OBSERVATIONS).items():
        assert torch.equal(cutting.prompts(OBSERVATIONS)[key], values), "short prompts stay as they are"
    with pytest.warns(UserWarning, match=rf"prompt.max_tokens: {limit} cuts what the environment says in some prompts"):
        batch = cutting.batch(*pairs(long))
    assert batch.prompt_cut.all()
    assert not cutting.batch(*pairs()).prompt_cut.any()

    special = {*vlm.forbidden_ids, *vlm.stop_ids}
    for observation in long:
        whole, pictures = encoder.prompt_ids(observation)
        ids, _ = cutting.prompt_ids(observation)
        assert 0.9 * limit < len(ids) <= limit < len(whole)
        assert ids.count(vlm.image_token_id) == whole.count(vlm.image_token_id)
        assert [token for token in ids if token in special] == [token for token in whole if token in special]
        text = vlm.tokenizer.decode(ids)
        assert "Make Current equal to Target." in text
        assert " ...\nStep 0 of 10." in text
        read = cutting.prompt.fitted(observation, partial(cutting._length, pictures))
        if observation.images or FAMILIES[name].shows_none:
            assert live(encoder, read)["input_ids"].tolist() == [ids], "as if the environment had said no more"

    assert hidden(vlm, batch.inputs).isfinite().all()
    together = vlm.generate(cutting.prompts(long), max_new_tokens=4)
    alone = [vlm.generate(cutting.prompts([each]), max_new_tokens=4)[0] for each in long]
    assert [each.ids for each in together] == [each.ids for each in alone]
    _, differences = played_and_trained(cutting, long, temperature=1.0)
    assert differences.max() <= 1e-4


def test_a_reply_token_does_not_change_what_stands_before_it(vlm: VLM, batch: TokenBatch) -> None:
    before = hidden(vlm, batch.inputs)
    for token in range(int(batch.mask.sum(1).max()) - 1):
        changed = {key: value.clone() for key, value in batch.inputs.items()}
        rows = [row for row in range(len(batch.mask)) if token < batch.mask[row].sum() - 1]
        for row in rows:
            place = int(batch.positions[row, token]) + 1
            changed["input_ids"][row, place] = 40 + (int(changed["input_ids"][row, place]) + 7) % 200
        after = hidden(vlm, changed)
        for row in rows:
            place = int(batch.positions[row, token]) + 1
            torch.testing.assert_close(before[row, :place], after[row, :place], atol=1e-6, rtol=1e-6)
            assert not torch.allclose(before[row, place], after[row, place], atol=1e-3)


def test_the_adapter_is_on_every_linear_layer_of_the_language_model(name: str, vlm: VLM) -> None:
    names = vlm.trainable_names()
    assert len(names) == 2 * FAMILIES[name].targets
    outside = ("vision", "visual", "projector", "connector", "merger", ".eye.")
    assert not [n for n in names if any(part in n for part in outside)]
    assert sum(p.numel() for p in vlm.parameters() if p.requires_grad) == 2 * FAMILIES[name].weights


def test_checkpointed_gradients_are_the_same(folder: Path, vlm: VLM, batch: TokenBatch) -> None:
    gradients = []
    for model in (adapted(folder), adapted(folder, gradient_checkpointing=True)):
        model.train()
        logits = model.logits(batch.predicting(model.hidden(batch.inputs)))
        logits.log_softmax(-1)[batch.mask].square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in plain.values())
    torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_save_resume_export_reload(folder: Path, encoder: TurnEncoder, batch: TokenBatch, tmp_path: Path) -> None:
    options: dict[str, Any] = {"threshold": 0.0, "lr": 1e-2, "critic_width": 16, "warmup_steps": 1}
    uninterrupted = VLMQ(adapted(folder), **options)
    fit(uninterrupted, batch, 3)
    fit(VLMQ(adapted(folder), **options), batch, 2).save_checkpoint(tmp_path / "2.ckpt")
    resumed = VLMQ(VLM(str(folder), lora_rank=2, lora_alpha=4), **options)
    fit(resumed, batch, 3, tmp_path / "2.ckpt")
    wanted = uninterrupted.state_dict()
    trained = [key for key in wanted if "lora_" in key or key.startswith("critic")]
    assert trained
    for key in trained:
        assert torch.equal(resumed.state_dict()[key], wanted[key]), key

    vlm = resumed.vlm.eval()
    own = live(encoder, OBSERVATIONS[0])
    with torch.no_grad():
        wanted_logits = vlm.hf(**own).logits
    vlm.export(tmp_path / "merged", merged=True)
    vlm.export(tmp_path / "adapter", merged=False)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    base = AutoModelForImageTextToText.from_pretrained(folder)
    with torch.no_grad():
        untrained = base(**own).logits
        adapter = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
        assert not torch.allclose(untrained, wanted_logits, atol=1e-3)
        torch.testing.assert_close(merged(**own).logits, wanted_logits, **CLOSE)
        torch.testing.assert_close(adapter(**own).logits, wanted_logits, **CLOSE)
    again = TurnEncoder(VLM(str(tmp_path / "merged"), lora_rank=0))
    AutoProcessor.from_pretrained(tmp_path / "merged")
    inputs = again.prompts(OBSERVATIONS[:1])
    torch.testing.assert_close(again.vlm.logits(hidden(again.vlm, inputs)), wanted_logits, **CLOSE)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="makes the processors that need it")
    names = [name for name, family in FAMILIES.items() if family.torchvision]
    for name in names:
        build(FAMILIES[name], tmp_path / name)
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from lightning_vlmq.vlm import VLM\n"
        "for name in sys.argv[1:]:\n"
        "    try: VLM(name)\n"
        "    except ValueError as error: print(error)"
    )
    command = [sys.executable, "-c", code, *(str(tmp_path / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines() == [
        f"vlm.name: the processor of {str(tmp_path / name)!r} needs torchvision; pip install torchvision"
        for name in names
    ]
