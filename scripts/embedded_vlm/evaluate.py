"""Held-out accuracy of the embedded model through its processor and ``generate``, printed as a table.

Seeds of these pictures and questions are not used in training; an answer counts when it is equal to the last character.
"""

import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightning_vlmq.envs.cards import RANKS, SUITS, draw_back, draw_card
from scripts.embedded_vlm.canvas import random_font
from scripts.embedded_vlm.choices import by_order, choice
from scripts.embedded_vlm.conversations import make_turn, random_string
from scripts.embedded_vlm.pictures import make_scene
from scripts.embedded_vlm.tables import card_value

__all__ = ["ROWS", "answer", "evaluate", "number_board"]

Case = tuple[Image.Image | None, str, str]
"""Picture, question and right answer."""


def _labels(rng: Random, largest: int, count: int = 1) -> tuple[Image.Image, list[tuple[str, int]]]:
    while True:
        scene = make_scene(rng, "labels")
        labels = scene.facts["labels"]
        if len(labels) >= count and max(number for _, number in labels) <= largest:
            return Image.fromarray(scene.image), labels


def number_board(rng: Random, low: int = 0, high: int = 9) -> tuple[Image.Image, int, int]:
    """White 300 x 300 picture with two bold black lines "Target: a" and "Current: b" of a random size and place."""
    from PIL import ImageDraw

    a, b = rng.randint(low, high), rng.randint(low, high)
    image = Image.new("RGB", (300, 300), "white")
    size = rng.randint(20, 54)
    font, _ = random_font(rng, size, own=1.0)
    x, y = rng.uniform(2, 292 - font.getlength("Current: 10")), rng.uniform(2, 290 - 2.6 * size)
    draw = ImageDraw.Draw(image)
    for row, text in enumerate((f"Target: {a}", f"Current: {b}")):
        draw.text((x, y + row * 1.3 * size), text, font=font, fill="black", stroke_width=1, stroke_fill="black")
    return image, a, b


def _table(rng: Random) -> tuple[Image.Image, str, list[str]]:
    """Green 300 x 300 table: an open and a hidden card above, two to five cards below."""
    image = Image.new("RGB", (300, 300), "#35654d")
    upper, lower = rng.choice(RANKS), [rng.choice(RANKS) for _ in range(rng.randint(2, 5))]
    width = 54 if len(lower) > 4 else 60
    left = rng.randint(4, 60)
    for column, picture in enumerate((draw_card(upper, rng.choice(SUITS)), draw_back())):
        image.paste(picture, (left + column * 68, 40), picture)
    for column, rank in enumerate(lower):
        picture = draw_card(rank, rng.choice(SUITS), width, 84)
        image.paste(picture, (2 + column * (width + 4 if len(lower) > 4 else 68) // 1, 170), picture)
    return image, upper, lower


def _number(rng: Random, largest: int) -> Case:
    image, labels = _labels(rng, largest)
    word, number = rng.choice(labels)
    return image, rng.choice(["What number stands after {}?", "What is the number after {}?"]).format(word), str(number)


def _compare(rng: Random, largest: int, signs: bool) -> Case:
    image, labels = _labels(rng, largest, 2)
    (a, x), (b, y) = rng.sample(labels, 2)
    if signs:
        return image, *choice(rng, [(f"{a} is more than {b}", x > y), (f"{a} is not more than {b}", x <= y)])
    return image, f"Is {a} more than {b}?", "yes" if x > y else "no"


def _place(rng: Random, row: int) -> Case:
    image, labels = _labels(rng, 99, 2)
    return image, ("Upper?", "Lower?")[row], str(labels[-row][1])


def _seen(rng: Random, question: str, *answers: str) -> Case:
    image, labels = _labels(rng, 99, 2)
    return image, question, by_order(labels[0][1], labels[-1][1], *answers)


def _told(rng: Random) -> Case:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return None, f"Is {a} more than {b}?", "yes" if a > b else "no"


def _board(rng: Random, mode: str) -> Case:
    image, a, b = number_board(rng)
    if mode == "read":
        return image, *rng.choice(
            [("What number stands after Target?", str(a)), ("What number stands after Current?", str(b))]
        )
    if mode == "copy":
        text = random_string(rng)
        return image, f'Say "{text}", then answer: What number stands after Current?', f"{text} {b}"
    while a == b:
        image, a, b = number_board(rng)
    return image, *choice(rng, [("target is more than current", a > b), ("target is less than current", a < b)])


def _word(rng: Random) -> Case:
    while True:
        scene = make_scene(rng, "words")
        words = scene.facts["words"]
        if len(words) == 1 and words[0].isalpha() and len(words[0]) > 2:
            return Image.fromarray(scene.image), "What is written here?", words[0]


def _cards(rng: Random, mode: str) -> Case:
    while True:
        scene = make_scene(rng, "cards")
        rows = scene.facts["rows"]
        row = rows[-1]
        if len(rows) == 2 and 2 <= len(row) <= 4 and None not in row:
            break
    image = Image.fromarray(scene.image)
    if mode == "rank":
        column = rng.randrange(len(row))
        return (
            image,
            f"What is the {('first', 'second', 'third', 'fourth')[column]} card of the bottom row?",
            row[column][0],
        )
    if mode == "row":
        return image, "Which cards are in the bottom row?", " ".join(card[0] for card in row)
    sum_ = sum(card_value(card[0]) for card in row)
    if mode == "total":
        return image, "What is the total of the bottom row?", str(sum_)
    limit = sum_ + rng.choice([-3, -2, -1, 0, 1, 2])
    return image, f"Is the total of the bottom row over {limit}?", "yes" if sum_ > limit else "no"


def _blackjack(rng: Random, mode: str) -> Case:
    image, upper, lower = _table(rng)
    if mode == "upper":
        return image, "What is the first card of the top row?", upper
    return image, "What is the total of the bottom row?", str(sum(map(card_value, lower)))


def _asked(rng: Random, kind: str, starts: tuple[str, ...]) -> Case:
    from scripts.embedded_vlm.questions import ask

    while True:
        scene = make_scene(rng, kind)
        question, answer_ = ask(rng, kind, scene.facts)
        if question.startswith(starts):
            return Image.fromarray(scene.image), question, answer_


def _copy(rng: Random) -> Case:
    text = random_string(rng)
    return None, f'Say "{text}".', text


def _joined(rng: Random, wordy: float) -> Case:
    while True:
        scene = make_scene(rng, rng.choice(["labels", "cards"]))
        question, answer_, copies = make_turn(rng, (scene.kind, scene.facts), 1.0, wordy)
        if copies and copies[0] != answer_:
            return Image.fromarray(scene.image), question, answer_


ROWS: dict[str, Callable[[Random], Case]] = {
    "number by its place: upper": lambda rng: _place(rng, 0),
    "number by its place: lower": lambda rng: _place(rng, 1),
    "upper and lower number compared, three given signs": lambda rng: _seen(
        rng, "+ if upper is below lower, - if above, else =.", "+", "-"
    ),
    "two numbers in words compared, yes or no": _told,
    "labelled number, 0-9": lambda rng: _number(rng, 9),
    "labelled number, 0-99": lambda rng: _number(rng, 99),
    "two labels compared, 0-9, yes or no": lambda rng: _compare(rng, 9, False),
    "two labels compared, 0-99, yes or no": lambda rng: _compare(rng, 99, False),
    "two labels compared, 0-9, random signs": lambda rng: _compare(rng, 9, True),
    "Target/Current board: number": lambda rng: _board(rng, "read"),
    "Target/Current board: compared, random signs": lambda rng: _board(rng, "signs"),
    "Target/Current board: copy and number": lambda rng: _board(rng, "copy"),
    "one word": _word,
    "cards: rank": lambda rng: _cards(rng, "rank"),
    "cards: row of 2-4 ranks": lambda rng: _cards(rng, "row"),
    "cards: total of 2-4": lambda rng: _cards(rng, "total"),
    "cards: total over a limit near it": lambda rng: _cards(rng, "limit"),
    "dealt table: open card above": lambda rng: _blackjack(rng, "upper"),
    "dealt table: total of 2-5 below": lambda rng: _blackjack(rng, "total"),
    "shapes: colour or shape": lambda rng: _asked(rng, "shapes", ("What", "Which", "Colour")),
    "grid: where, facing, what": lambda rng: _asked(rng, "grid", ("Where", "In which", "Which way", "What is in")),
    "widgets: ticked, kind, word": lambda rng: _asked(rng, "widgets", ("Is", "What", "Which")),
    "copy": _copy,
    "copy and read": lambda rng: _joined(rng, 0.0),
    "copy and read in a long prompt": lambda rng: _joined(rng, 1.0),
    "upper and lower number compared, <, > or =": lambda rng: _seen(rng, "Sign between upper and lower?"),
}
"""Rows of the table."""


@torch.no_grad()
def answer(model: Any, processor: Any, cases: list[Case], longest: int = 24) -> list[str]:
    """Greedy replies to questions, all with or all without a picture.

    Args:
        model: The model.
        processor: Its processor.
        cases: Pictures and questions.
        longest: Most tokens of a reply.

    Returns:
        Replies as text.
    """
    parts = [[{"type": "image"}] if image else [] for image, _, _ in cases]
    messages = [
        [{"role": "user", "content": [*p, {"type": "text", "text": c[1]}]}] for p, c in zip(parts, cases, strict=True)
    ]
    texts = [processor.apply_chat_template(message, add_generation_prompt=True) for message in messages]
    images = [[case[0]] for case in cases] if cases[0][0] else None
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    return list(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def evaluate(folder: Path, count: int = 300, threads: int = 2, seed: int = 987_654) -> dict[str, float]:
    """Measure every row and print the table.

    Args:
        folder: Model folder.
        count: Pictures a row.
        threads: CPU threads.
        seed: Seed; training uses other ones.

    Returns:
        Share of exact answers by row.
    """
    torch.set_num_threads(threads)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    results: dict[str, float] = {}
    print(f"| {count} held-out pictures a row | exact |\n|---|---|")
    start = time.time()
    for index, (name, make) in enumerate(ROWS.items()):
        rng = Random(seed + index)
        right = 0
        for first in range(0, count, 50):
            cases = [make(rng) for _ in range(min(50, count - first))]
            right += sum(r == c[2] for r, c in zip(answer(model, processor, cases), cases, strict=True))
        results[name] = right / count
        print(f"| {name} | {100 * results[name]:.1f} % |", flush=True)
    print(f"{time.time() - start:.0f} s")
    return results
