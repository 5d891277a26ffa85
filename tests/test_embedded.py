"""The embedded model: loads like any other, is small, round-trips text, reads pictures and never saw the agents' tag."""

from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from scripts.embedded_vlm.conversations import FORBIDDEN, corpus, make_turn, random_string
from scripts.embedded_vlm.evaluate import ROWS, answer
from scripts.embedded_vlm.pictures import SHARES, make_scene

FOLDER = Path(__file__).parents[1] / "lightning_vlmq" / "embedded"


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 12 * 2**20


def test_parameter_count(model):
    # 1,272,480 language layers + 245,760 tied embeddings + 1,400,640 vision + 102,400 connector
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_020_800


def test_special_tokens(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.eos_token == "<end_of_utterance>"
    assert tokenizer.padding_side == "left"
    assert processor.image_seq_len == 64


def test_chat_template_takes_strings_lists_and_system(processor):
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "And now?"},
    ]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<|system|>Be short.<end_of_utterance><|user|><image>What?<end_of_utterance><|assistant|>5<end_of_utterance>"
        "<|user|>And now?<end_of_utterance><|assistant|>"
    )


def test_digits_and_signs_are_single_tokens(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize("[12] (+ -") == ["[", "1", "2", "]", "Ġ(", "+", "Ġ-"]


def test_tokenizer_round_trip(processor):
    tokenizer, rng = processor.tokenizer, Random(5)
    texts = [random_string(rng) for _ in range(2000)]
    texts += ["".join(chr(rng.choice([rng.randint(32, 126), rng.randint(160, 0x2FF)])) for _ in range(12)) for _ in range(500)]
    texts += ["  two  spaces ", "line\nline\n\n", " [x] (1 + 2)", "日本 ✓", ""]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_text_never_holds_the_tag():
    rng = Random(11)
    scenes = [make_scene(rng) for _ in range(40)] + [make_scene(rng, kind) for kind in SHARES]
    texts = corpus(rng, 2000)
    for _ in range(100):
        for scene in scenes:
            question, reply, _ = make_turn(rng, (scene.kind, scene.facts), 0.35, 0.4)
            texts += [question, reply]
    assert len(texts) > 10_000
    assert not [text for text in texts if FORBIDDEN in text.lower()]


def test_pictures_are_reproducible():
    first, second = (make_scene(Random(3), "labels") for _ in range(2))
    assert (first.image == second.image).all()
    assert first.facts == second.facts


def test_reads_labelled_numbers(model, processor):
    rng = Random(2_000_003)
    cases = [ROWS["labelled number, 0-9"](rng) for _ in range(40)]
    assert sum(r == c[2] for r, c in zip(answer(model, processor, cases), cases, strict=True)) >= 34


def test_blank_picture_is_no_number(model, processor):
    board = ROWS["Target/Current board: number"](Random(1))
    blank = (Image.new("RGB", (300, 300), "white"), board[1], "")
    seen, unseen = answer(model, processor, [board, blank])
    assert seen == board[2]
    assert isinstance(unseen, str)
