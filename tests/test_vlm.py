import dataclasses
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BertConfig

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.policy import VLMPolicy
from lightning_vlmq.turns import Turn
from lightning_vlmq.vlm import VLM


def test_a_base_is_the_same_in_every_precision_and_with_any_adapter(tiny_folder: Path) -> None:
    vlm = VLM(str(tiny_folder))
    assert VLM(str(tiny_folder), dtype="bfloat16", lora_rank=2).base_fingerprint == vlm.base_fingerprint
    other = VLM(str(tiny_folder))
    with torch.no_grad():
        other.hf.get_decoder().layers[0].self_attn.o_proj.base_layer.weight[0, 0] += 1.0
    assert other.base_fingerprint != vlm.base_fingerprint


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ValueError, match=r"vlm.name: './nowhere' is no folder"):
        VLM("./nowhere")


def test_a_model_without_image_input_is_refused(tmp_path: Path) -> None:
    BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(bert\) has no image input"):
        VLM(str(tmp_path))


def test_hidden_states_and_logits_are_the_models_own(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    observation = pairs[0][0].observation
    inputs = encoder.prompts([observation])
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": _picture(observation.images[0])},
                {"type": "text", "text": encoder.prompt.text(observation)},
            ],
        }
    ]
    live = vlm.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert live["input_ids"].tolist() == inputs["input_ids"].tolist()
    with torch.no_grad():
        own = vlm.hf(**live).logits
        ours = vlm.logits(vlm.hidden(inputs))
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=1e-5)


def test_a_model_that_asks_its_tower_is_given_the_encoded_pictures(
    vlm: VLM, encoder: TurnEncoder, pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in transformers 5.17, whose models take no ``mm_encoder_outputs``."""
    observations = [turn.observation for turn, _ in pairs[:4]]
    inputs, picture = encoder.prompts(observations), _picture(observations[0].images[0])
    features = vlm.image_features([picture])[0].features
    hidden, said = _hidden(vlm, inputs), vlm.generate(inputs, max_new_tokens=4)
    pictures = vlm.pictures
    monkeypatch.setattr(pictures, "_takes_encoded", False)
    monkeypatch.setattr(vlm.hf.base_model, "get_image_features", vlm.hf.base_model.get_image_features)
    pictures._answer_with_given()
    asked: list[int] = []
    monkeypatch.setattr(pictures, "_container", lambda x, f=pictures._container: asked.append(1) or f(x))
    assert torch.equal(_hidden(vlm, inputs), hidden)
    assert [reply.ids for reply in vlm.generate(inputs, max_new_tokens=4)] == [reply.ids for reply in said]
    assert len(asked) == 2
    # what was given is forgotten behind the forward, and a live picture is encoded
    assert torch.equal(vlm.image_features([picture])[0].features, features)
    pictures.arguments({"image_features": features + 1})  # of a forward that never comes
    assert torch.equal(vlm.image_features([picture])[0].features, features)
    # a model that looks elsewhere would see the blank picture that stands in for the encoded one
    monkeypatch.setattr(vlm.hf.base_model, "get_image_features", lambda *_, **__: pictures._container(features))
    with pytest.raises(ValueError, match="takes no encoded pictures: it never asked its tower"):
        vlm.hidden(encoder.prompts(observations[:1]))


def test_a_reply_token_does_not_change_what_stands_before_it(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    batch = encoder.batch(*zip(*pairs[:4], strict=True))
    before = _hidden(vlm, batch.inputs)
    for row in range(4):
        changed = {k: v.clone() for k, v in batch.inputs.items()}
        position = int(batch.positions[row, 0]) + 1  # the first reply token
        changed["input_ids"][row, position] = (changed["input_ids"][row, position] + 7) % 300 + 10
        after = _hidden(vlm, changed)
        assert torch.equal(before[row, :position], after[row, :position])
        assert not torch.allclose(before[row, position], after[row, position])


def test_rows_do_not_depend_on_padding_or_neighbours(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    turns, successors = zip(*pairs[:6], strict=True)
    together = encoder.batch(turns, successors)
    all_hidden = _hidden(vlm, together.inputs)
    for row in range(6):
        alone = encoder.batch(turns[row : row + 1], successors[row : row + 1])
        count = int(alone.mask.sum())
        torch.testing.assert_close(
            all_hidden[row, together.positions[row, :count]],
            _hidden(vlm, alone.inputs)[0, alone.positions[0]],
            atol=1e-5,
            rtol=1e-4,
        )


def test_batched_generation_equals_one_by_one(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    observations = [turn.observation for turn, _ in pairs[:6]]
    assert len({len(encoder.prompt_ids(o)[0]) for o in observations}) > 1, "prompts of one length need no padding"
    together = vlm.generate(encoder.prompts(observations), max_new_tokens=8)
    alone = [vlm.generate(encoder.prompts([o]), max_new_tokens=8)[0] for o in observations]
    assert [each.ids for each in together] == [each.ids for each in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_log_probs_in_training_are_those_of_generation(
    vlm: VLM, encoder: TurnEncoder, pairs: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    # random weights seldom stop
    monkeypatch.setitem(vlm.__dict__, "stop_ids", (*vlm.stop_ids, *range(1000, 1400)))
    turns = [turn for turn, _ in pairs[:6]]
    # a family's own defaults have no say
    monkeypatch.setattr(vlm.hf.generation_config, "repetition_penalty", 1.5)
    # left-padded prompts, one token at a time, tempered and masked draws
    said = VLMPolicy(encoder, temperature=2.0, seed=1).reply([], [turn.observation for turn in turns])
    replied = [
        dataclasses.replace(t, reply=r.text, reply_ids=r.ids, tokenizer=r.tokenizer, cut=r.cut)
        for t, r in zip(turns, said, strict=True)
    ]
    batch = encoder.batch(replied, [after for _, after in pairs[:6]])
    index = batch.positions.unsqueeze(-1).expand(-1, -1, vlm.hidden_size)
    trained = vlm.logits(vlm.hidden(batch.inputs).gather(1, index)).log_softmax(-1)  # right-padded, all at once
    for row, reply in enumerate(said):
        tokens, steps = torch.tensor(reply.ids), torch.arange(len(reply.ids))
        expected = torch.tensor(reply.log_probs)
        torch.testing.assert_close(trained[row, steps, tokens], expected, atol=1e-4, rtol=0)
    assert len({len(reply.ids) for reply in said}) > 1  # some ended before others


def test_forced_tokens_have_no_log_probability(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    (reply,) = VLMPolicy(encoder, action_prompt="minimum").reply([], [pairs[0][0].observation])
    forced = len(encoder.encode_text("[action]"))
    assert 0 < len(reply.log_probs) == len(reply.ids) - forced


def test_generation_is_seeded_and_leaves_the_global_generator(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    inputs = encoder.prompts([pairs[0][0].observation])
    state = torch.get_rng_state()
    first, again, other = (
        vlm.generate(inputs, max_new_tokens=12, temperature=1.0, generator_seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_replies_hold_no_special_tokens_but_the_stop(vlm: VLM, encoder: TurnEncoder, pairs: list) -> None:
    """Neither placeholders of pictures nor the template's own: the random VLM would say a hundred of them."""
    inputs = encoder.prompts([turn.observation for turn, _ in pairs[:16]])
    special = {
        "<pad>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
    }
    assert set(vlm.tokenizer.convert_ids_to_tokens(vlm.forbidden_ids)) == special
    for seed in range(20):
        replies = vlm.generate(inputs, max_new_tokens=24, temperature=5.0, generator_seed=seed)
        assert not {token for reply in replies for token in reply.ids} & set(vlm.forbidden_ids)


def test_a_towers_dropout_does_not_reach_its_features(vlm: VLM, pairs: list) -> None:
    for layer in vlm.hf.model.vision_model.encoder.layers:
        layer.self_attn.dropout = 0.5
    picture = Image.open(io.BytesIO(pairs[0][0].observation.images[0])).convert("RGB")
    vlm.train()
    first, second = (vlm.image_features([picture])[0][1] for _ in range(2))
    assert torch.equal(first, second)
    assert vlm.training


def test_base_is_the_loaded_model(vlm: VLM, encoder: TurnEncoder, pairs: list, tiny_folder: Path) -> None:
    batch = encoder.batch(*zip(*pairs[:2], strict=True))
    untouched = VLM(str(tiny_folder), lora_rank=0)
    with vlm.base():
        torch.testing.assert_close(_hidden(vlm, batch.inputs), _hidden(untouched, batch.inputs))
    assert not torch.allclose(_hidden(vlm, batch.inputs), _hidden(untouched, batch.inputs))


def _hidden(vlm: VLM, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return vlm.hidden(inputs)


def _picture(png: bytes) -> object:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB")


def test_turns_are_of_both_policies(pairs: list[tuple[Turn, Turn]]) -> None:
    assert {turn.policy for turn, _ in pairs} == {"random", "agent"}
