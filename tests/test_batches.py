import dataclasses
from pathlib import Path

import pytest
import torch

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.features import FeatureCache
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.turns import Observation, Turn
from lightning_vlmq.vlm import VLM

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{% for c in m['content'] %}"
    "{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}Picture: <image>\n{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\nReply:\n{% endif %}"
)
"""Another order of pictures, turns and line ends, and words before the reply."""


@pytest.mark.parametrize("template", [None, CHATML], ids=["own", "another"])
def test_turns_to_tokens_to_text(vlm: VLM, pairs: list, template: str | None) -> None:
    vlm.processor.chat_template = template or vlm.processor.chat_template
    encoder = TurnEncoder(vlm, PromptMethod(image_first=template is None))
    turns, successors = zip(*pairs[:8], strict=True)
    batch = encoder.batch(turns, successors)
    decode = encoder.vlm.tokenizer.decode
    for row, turn in enumerate(turns):
        count = int(batch.mask[row].sum())
        ids = batch.reply_ids[row, :count].tolist()
        # the reply reads back, and it ends with the stop token unless it was cut
        stopped = ids[-1] in encoder.vlm.stop_ids
        assert decode(ids[:-1] if stopped else ids) == turn.reply
        assert stopped != turn.cut
        # position i predicts token i: the token behind it in the input is the one before it in the reply
        inputs = batch.inputs["input_ids"][row]
        assert [int(inputs[p]) for p in batch.positions[row, 1:count]] == ids[:-1]
        prompt = decode(inputs[: int(batch.positions[row, 0]) + 1])
        assert prompt.endswith(decode(encoder.prompt_ids(turn.observation)[0])[-8:])
        assert template is None or prompt.endswith("<end_of_utterance>\n<|assistant|>\nReply:\n")
        assert "Make Current equal to Target." in prompt
        assert f"Step {turn.observation.step} of 10. Invalid {turn.observation.invalid_streak} of 3." in prompt


def test_only_turns_that_go_on_have_a_next_prompt(encoder: TurnEncoder, pairs: list) -> None:
    ending = [pair for pair in pairs if pair[0].terminated][:2]
    going = [pair for pair in pairs if not pair[0].terminated][:3]
    batch = encoder.batch(*zip(*[going[0], ending[0], going[1], ending[1], going[2]], strict=True))
    assert batch.has_next.tolist() == [True, False, True, False, True]
    assert batch.next_inputs["input_ids"].shape[0] == 3
    for row, (_, after) in enumerate(going):
        ids, _ = encoder.prompt_ids(after.observation)
        assert batch.next_inputs["input_ids"][row, : len(ids)].tolist() == ids
        assert int(batch.next_positions[row]) == len(ids) - 1


def test_a_truncated_turn_keeps_its_successor(encoder: TurnEncoder, pairs: list) -> None:
    turn, after = next(pair for pair in pairs if pair[0].terminated)
    cut = dataclasses.replace(turn, terminated=False, truncated=True)
    assert encoder.batch([cut], [after]).has_next.tolist() == [True]


def test_sampled_ids_of_our_tokenizer_are_kept_and_others_encoded_anew(encoder: TurnEncoder) -> None:
    stop = encoder.vlm.stop_ids[0]
    split = [*encoder.encode_text("[act"), *encoder.encode_text("ion] +"), stop]
    whole = [*encoder.encode_text("[action] +"), stop]
    assert split != whole, "choose another split"
    turn = Turn("env", "e", 0, Observation(), reply="[action] +", reply_ids=tuple(split))
    ours = dataclasses.replace(turn, tokenizer=encoder.tokenizer_fingerprint)
    assert encoder.reply_ids(ours) == split
    assert encoder.reply_ids(dataclasses.replace(turn, tokenizer="another")) == whole


def test_a_cut_reply_gets_no_stop_token(encoder: TurnEncoder) -> None:
    turn = Turn("env", "e", 0, Observation(), reply="[action] the", cut=True)
    assert encoder.reply_ids(turn) == encoder.encode_text("[action] the")


@pytest.mark.parametrize("action", ["+", "-", "hit", "stand", "10", "pick up"])
def test_random_actions_encode_and_decode(encoder: TurnEncoder, action: str) -> None:
    reply = f"[action] {action}"
    ids = encoder.reply_ids(Turn("env", "e", 0, Observation(), reply=reply))
    assert encoder.vlm.tokenizer.decode(ids[:-1]) == reply
    assert encoder.encode_text(encoder.vlm.tokenizer.decode(ids[:-1])) == ids[:-1]


def test_long_and_foreign_replies_are_named(encoder: TurnEncoder) -> None:
    turn = Turn("env", "e7", 2, Observation(), reply="no " * 100, policy="base")
    with pytest.raises(ValueError, match=r"turn 2 of episode 'e7' \(base\): the reply has \d+ tokens, the limit is 24"):
        encoder.reply_ids(turn)
    special = encoder.vlm.tokenizer.eos_token
    with pytest.raises(ValueError, match=r"episode 'e7' \(base\): this VLM's tokenizer cannot represent"):
        encoder.reply_ids(dataclasses.replace(turn, reply=f"a{special}b"))
    with pytest.raises(ValueError, match="the reply has no tokens"):
        encoder.reply_ids(dataclasses.replace(turn, reply="", cut=True))


def test_a_placeholder_in_the_text_is_named(encoder: TurnEncoder, pairs: list) -> None:
    observation = dataclasses.replace(pairs[0][0].observation, text="look at <image>")
    with pytest.raises(ValueError, match="the prompt shows 2 of 1 pictures"):
        encoder.prompt_ids(observation)


def test_several_pictures_and_none(encoder: TurnEncoder, pairs: list) -> None:
    observation = pairs[0][0].observation
    two = dataclasses.replace(observation, images=(observation.images[0], pairs[-1][0].observation.images[0]))
    none = dataclasses.replace(observation, images=())
    inputs = encoder.prompts([none, two, observation])
    assert inputs["image_features"].shape[0] == 3 * 64
    counts = (inputs["input_ids"] == encoder.vlm.image_token_id).sum(1)
    assert counts.tolist() == [0, 128, 64]
    assert encoder.vlm.hidden(inputs).isfinite().all()


def test_features_are_computed_once_and_kept(vlm: VLM, pairs: list, tmp_path) -> None:
    images = [turn.observation.images[0] for turn, _ in pairs]
    distinct = len(set(images))
    cache = FeatureCache(vlm, tmp_path / "f.sqlite")
    first = cache(images)
    assert cache.computed == distinct < len(images)
    again = FeatureCache(vlm, tmp_path / "f.sqlite")
    for old, new in zip(first, again(images), strict=True):
        assert old.ids == new.ids
        assert torch.equal(old.features, new.features)
    assert again.computed == 0
    # memory is bounded: one entry of 64 x 32 floats is 8 KB, so that 0 MB hold only the last one
    small = FeatureCache(vlm, tmp_path / "f.sqlite", memory_mb=0)
    small(images)
    assert len(small._memory) == 1
    assert small.computed == 0


def test_features_of_other_weights_are_not_taken(vlm: VLM, pairs: list, tmp_path) -> None:
    image = pairs[0][0].observation.images[0]
    FeatureCache(vlm, tmp_path / "f.sqlite")([image])
    with torch.no_grad():
        vlm.hf.model.connector.modality_projection.proj.weight.add_(0.1)
    changed = FeatureCache(vlm, tmp_path / "f.sqlite")
    changed([image])
    assert changed.computed == 1


def test_a_damaged_file_of_features_is_named(vlm: VLM, tmp_path: Path) -> None:
    (tmp_path / "f.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match=r"f.sqlite is damaged .*; delete it, its features are computed anew"):
        FeatureCache(vlm, tmp_path / "f.sqlite")
