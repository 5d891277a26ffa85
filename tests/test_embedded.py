"""The embedded model: loads like any other, is small, round-trips text and never saw the agents' tag."""

import itertools
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import AutoModelForImageTextToText, AutoProcessor

from scripts.embedded_vlm.alignment import number_question, short_question, suits_alignment, tile_tokens
from scripts.embedded_vlm.canvas import Canvas, load_font
from scripts.embedded_vlm.conversations import FORBIDDEN, corpus, make_turn, random_string
from scripts.embedded_vlm.evaluate import ROWS, answer
from scripts.embedded_vlm.knowledge import KNOWN, NAMED, Knowledge, known, name_thing
from scripts.embedded_vlm.language import tile_loss
from scripts.embedded_vlm.pictures import SHARES, make_scene
from scripts.embedded_vlm.sequences import LESSONS, STATE, Sequences, turn_tokens
from scripts.embedded_vlm.vision import Classifier
from scripts.embedded_vlm.words import WORDS
from scripts.embedded_vlm.world_questions import way
from scripts.embedded_vlm.worlds import _seen

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
    # 1,401,440 tower + 102,400 connector + 1,271,040 language layers + 160 last norm + 491,520 tied embeddings
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_266_560


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


def test_words_of_pictures_are_single_tokens(processor):
    # A question and the tile that it asks for share a token, wherever the word stands in a sentence.
    tokenizer = processor.tokenizer
    spelt = [space + form for word in WORDS for form in (word, word.capitalize()) for space in ("", " ")]
    assert [text for text in spelt if len(tokenizer.encode(text)) != 1] == []


def test_tokenizer_round_trip(processor):
    tokenizer, rng = processor.tokenizer, Random(5)
    texts = [random_string(rng) for _ in range(2000)]
    texts += [
        "".join(chr(rng.choice([rng.randint(32, 126), rng.randint(160, 0x2FF)])) for _ in range(12)) for _ in range(500)
    ]
    texts += ["  two  spaces ", "line\nline\n\n", " [x] (1 + 2)", "日本 ✓", ""]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_strings_hold_no_special_token(processor):
    # "<image>" in a string to be copied would ask for a picture that is not there.
    rng = Random(8)
    assert all(min(processor.tokenizer.encode(random_string(rng))) >= 8 for _ in range(5000))


def test_raw_copies_hold_no_special_token(processor):
    rng, lesson = Random(9), LESSONS[-1]._replace(copying=1.0, wordy=0.5)
    for _ in range(2000):
        message, reply, _ = turn_tokens(rng, processor.tokenizer, None, lesson)
        assert min(message) >= 8
        assert min(reply[:-1]) >= 8
        assert reply[-1] == processor.tokenizer.eos_token_id


def test_training_text_never_holds_the_tag():
    rng = Random(11)
    scenes = [make_scene(rng) for _ in range(40)] + [make_scene(rng, kind) for kind in SHARES]
    texts = corpus(rng, 2000) + [text for _ in range(1000) for text in number_question(rng)[:2]]
    for _ in range(100):
        for scene in scenes:
            question, reply, _ = make_turn(rng, (scene.kind, scene.facts), 0.35, 0.4)
            texts += [question, reply]
            if suits_alignment((scene.kind, scene.facts)):
                texts += short_question(rng, (scene.kind, scene.facts))
    assert len(texts) > 10_000
    assert not [text for text in texts if FORBIDDEN in text.lower()]


def test_tables_of_the_second_pool_are_drawn_where_a_lesson_asks_for_cards(processor):
    rng = Random(12)
    kinds = ["labels"] * 3 + ["hands"] * 3 + ["view", "grid"]
    scenes = [make_scene(rng, kind) for kind in kinds]
    facts = [(scene.kind, scene.facts) for scene in scenes]
    lesson = LESSONS[-1]._replace(end=10, pictured=1.0, copying=0.0, worlds=0.0)

    def shown(**changes: float) -> set[int]:
        stream = iter(Sequences(processor.tokenizer, facts, 1, (lesson._replace(**changes),), general=3))
        return {int(picture) for _ in range(6) for picture in next(stream).pictures}

    assert shown(cards=0.0) == {0, 1, 2}
    assert shown(cards=0.0, short=0.5) == {0, 1, 2}
    assert shown(cards=1.0) == {3, 4, 5}
    assert shown(cards=0.0, labels=0.0, worlds=1.0) == {6, 7}
    assert shown(cards=0.0, labels=1.0) == {0, 1, 2}


def test_a_lesson_decides_how_many_questions_ask_for_the_number_behind_a_label():
    scene = next(s for s in (make_scene(Random(seed), "labels") for seed in range(99)) if len(s.facts["labels"]) == 2)

    def asked(found: float) -> set[str]:
        rng = Random(3)
        facts = (scene.kind, scene.facts)
        return {short_question(rng, facts, simple=1.0, found=found)[0].lower() for _ in range(200)}

    looked_up = {form.format(name) for name, _ in scene.facts["labels"] for form in ("{}?", "read {}:")}
    assert asked(1.0) == looked_up
    assert "upper?" in asked(0.0)


def test_turns_that_ask_nothing_describe_the_picture_or_want_states(processor):
    scene = next(s for s in (make_scene(Random(seed), "labels") for seed in range(99)) if len(s.facts["labels"]) == 2)
    lesson = LESSONS[-1]._replace(end=10, pictured=1.0, cards=0.0, labels=1.0, batch=8, unasked=1.0)
    stream = Sequences(processor.tokenizer, [(scene.kind, scene.facts)], 1, (lesson,))
    description = ", ".join(f"{word} {number}" for word, number in scene.facts["labels"])
    texts, spoken = [], []
    for batch in itertools.islice(stream, 20):
        for row in range(8):
            for turn in range(1, 9):
                ids, labels = (part[row][batch.segments[row] == turn] for part in (batch.ids, batch.labels))
                if len(ids) and "<|assistant|>" in (words := processor.tokenizer.convert_ids_to_tokens(ids)):
                    reply = words.index("<|assistant|>")
                    assert (labels[:reply] == -100).all()
                    spoken.append(bool((labels >= 0).any()))
                    if spoken[-1]:
                        assert processor.tokenizer.decode(labels[reply:-2]) == description
                    else:
                        assert (labels[reply:] == STATE).all()
                    texts.append(processor.tokenizer.decode(ids))
    assert len(texts) > 500
    assert 0.4 < sum(spoken) / len(spoken) < 0.6
    assert not [text for text in texts if FORBIDDEN in text.lower().replace(" ", "")]


def test_facts_that_states_have_to_know():
    cards = [[("K", "spades"), None], [("A", "hearts"), ("7", "clubs"), ("J", "clubs")]]
    expected = {"upper total": 10, "lower total": 18, "lower ace": 1, "lower points": 18}
    assert dict(zip(KNOWN, known(("cards", {"rows": cards})), strict=True)) == dict.fromkeys(KNOWN, -1) | expected
    soft = [[("K", "spades"), None], [("A", "hearts"), ("7", "clubs"), ("A", "clubs")]]
    assert known(("cards", {"rows": soft}))[list(KNOWN).index("lower points")] == 19
    for pair, order in (((3, 8), 0), ((9, 8), 1), ((8, 8), 2)):
        found = known(("labels", {"labels": [("a", pair[0]), ("b", 50), ("c", pair[1])]}))
        assert found[:3] == [pair[0], pair[1], order]
    beside = [None, ("grey", "wall"), ("red", "door_open")]
    grid = known(("grid", {"cells": {}, "agent": (1, 6), "facing": "up", "beside": beside}))
    assert grid[-7:] == [1, 6, 3, -1, 0, 1, 6]
    assert known(("words", {"words": ["a"]})) == [-1] * len(KNOWN)


def test_heads_count_only_facts_that_a_picture_has():
    heads = Knowledge(4)
    wanted = torch.full((3, len(KNOWN) + len(NAMED)), -1)
    wanted[0, 2], wanted[1, 2] = 1, 2  # "order" of two pictures; of the third nothing is known
    hidden = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    loss, counts = heads(hidden, wanted)
    scores = heads.heads[2](hidden[:2]).log_softmax(-1)
    assert loss.item() == pytest.approx(-(scores[0, 1] + scores[1, 2]).item() / 2, rel=1e-5)
    assert counts[:, 1].tolist() == [0, 0, 2, *[0] * 12]
    assert heads(hidden, torch.full((3, len(KNOWN) + len(NAMED)), -1))[0].item() == 0


def test_a_named_thing_is_placed_as_seen_from_the_agent() -> None:
    # the agent looks down: ahead is a higher row, its right a lower column
    facts = ("grid", {"cells": {(2, 6): ("red", "ball")}, "agent": (3, 4), "facing": "down"})
    found = dict(each for number in range(200) if (each := name_thing(Random(number), facts)))
    there = {sentence: classes for sentence, classes in found.items() if "red ball" in sentence}
    assert set(there.values()) == {(2 + 7, 1 + 7)}
    assert {classes for sentence, classes in found.items() if "red ball" not in sentence} == {(15, 15)}
    assert name_thing(Random(0), ("words", {"words": ["a"]})) is None
    twice = {(1, 1): ("red", "ball"), (2, 2): ("red", "ball")}
    for number in range(50):
        found_twice = name_thing(Random(number), ("grid", {"cells": twice, "agent": (3, 3), "facing": "up"}))
        assert found_twice
        assert "red ball" not in found_twice[0]


@pytest.mark.parametrize(
    ("place", "answer"), [((3, -2), "3 up, 2 left"), ((-1, 4), "1 down, 4 right"), ((0, 1), "1 right"), (None, "none")]
)
def test_the_way_to_a_thing_in_words(place: tuple[int, int] | None, answer: str) -> None:
    assert way(place) == answer


def test_an_agents_view_shows_what_lies_around_it_and_hides_what_walls_hide() -> None:
    ahead = set()
    for number in range(60):
        scene = make_scene(Random(number), "view")
        assert scene.kind == "grid"
        column, row = scene.facts["agent"]
        side = row + 1
        assert (column, scene.facts["facing"]) == (3, "up")
        assert side in (7, 8)
        for x, y in scene.facts["cells"]:
            assert 0 <= x < 7
            assert side - 7 <= y < side
        ahead |= {row - y for _, y in scene.facts["cells"]}
    assert ahead >= {0, 1, 2, 3, 4, 5}
    # a wall right across, two cells ahead: only what lies before it is seen
    walls = {(x, 4): ("grey", "wall") for x in range(7)}
    assert _seen(walls, (3, 6), 7) == {(x, y) for x in range(7) for y in (4, 5, 6)}


def test_every_worker_makes_sequences_of_its_own_and_no_step_is_missing(processor):
    scenes = [make_scene(Random(seed), "labels") for seed in range(4)]
    lessons = tuple(LESSONS[-1]._replace(end=step + 1, batch=step + 1, cards=0.0, worlds=0.0) for step in range(6))
    data = Sequences(processor.tokenizer, [(s.kind, s.facts) for s in scenes], 1, lessons)
    stream = iter(DataLoader(data, batch_size=None, num_workers=2))
    batches = [next(stream) for _ in range(6)]
    assert [len(batch.ids) for batch in batches] == [1, 2, 3, 4, 5, 6]  # the step's own lesson, in order
    assert batches[4].ids[0].tolist() != batches[5].ids[0].tolist()


def test_the_word_of_a_tile_weighs_more_than_its_characters(model):
    # One tile with the character "a" (of four patches) and the word "b": the loss falls faster with the word's score.
    tiles = torch.full((1, 64, 6), -1)
    tiles[0, 0, :5] = torch.tensor([100, 100, 100, 100, 200])
    features = torch.randn(1, 64, 640, generator=torch.Generator().manual_seed(0))
    seen = model.model.text_model.norm(model.model.connector.modality_projection(features[:, :1]))
    scores = model.lm_head(seen).log_softmax(-1)[0, 0]
    assert tile_loss(model, features, tiles).item() == pytest.approx(-(scores[100] + scores[200]).item() / 2, rel=1e-5)


def test_pictures_are_reproducible():
    first, second = (make_scene(Random(3), "labels") for _ in range(2))
    assert (first.image == second.image).all()
    assert first.facts == second.facts


def test_windows_of_the_tower_do_not_see_each_other(model):
    # a pixel in patch (row 5, column 6); windows of 4 x 4 whose corner is (2, 3) hold rows 2-5, columns 3-6
    classifier = Classifier(model.model.vision_model).eval()
    pictures = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    pictures[1] = pictures[0]
    pictures[1, :, 5 * 16 + 3, 6 * 16 + 9] += 1
    with torch.no_grad():
        first, second = classifier(pictures, 4, (2, 3))[0]
        whole = classifier(pictures)[0]
    changed = ((first - second).abs().max(-1).values > 0).view(16, 16)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[2:6, 3:7] = True
    assert torch.equal(changed, expected)
    assert ((whole[0] - whole[1]).abs().max(-1).values > 0).all()


def test_tiles_are_named_by_what_they_show(processor):
    # "7" fills the tile of rows 64-95, columns 128-159 of the picture: tile 2 * 8 + 4
    canvas = Canvas(256, 256, (255, 255, 255))
    canvas.text(135, 62, "7", load_font("", 32), "red", line=7)
    tokens = tile_tokens(canvas.finish()[1], processor.tokenizer)
    names = {processor.tokenizer.decode([int(token)]) for token in tokens[20] if token >= 0}
    assert names == {"7"}
    assert (tokens[[0, 7, 18, 22, 36, 63]] == -1).all()


def test_answers_as_text(model, processor):
    # This version mostly picks one of the two numbers (README.md of the folder): only the way is tested.
    cases = [ROWS["Target/Current board: number"](Random(seed)) for seed in range(2)]
    replies = answer(model, processor, cases, longest=4)
    assert len(replies) == 2
    assert all("<" not in reply for reply in replies)


def test_picture_changes_the_next_token(model, processor):
    image, question, _ = ROWS["dealt table: open card above"](Random(1))
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    pictures = [image, Image.new("RGB", (300, 300), "white")]
    with torch.no_grad():
        seen, blank = (
            model(**processor(text=text, images=[[picture]], return_tensors="pt")).logits[0, -1] for picture in pictures
        )
    assert not torch.allclose(seen, blank, atol=1e-3)
