"""Short questions about labelled numbers and cards, and what every tile of a picture shows: the start of the language
stage.

With all kinds of questions at once the language model stays at chance for its first thousand steps; with these few
it reads within some hundred. Everything else comes after.
"""

import functools
from random import Random
from typing import Any

import numpy as np

from lightning_vlmq.envs.cards import RANKS
from scripts.embedded_vlm.canvas import COLOUR_IDS, HEADS, KINDS, PATCHES
from scripts.embedded_vlm.choices import by_order, symbol
from scripts.embedded_vlm.looks import draw_number, spell
from scripts.embedded_vlm.tables import card_value
from scripts.embedded_vlm.words import LABELS, PRINTABLE, WORDS

__all__ = ["Facts", "number_question", "short_question", "spellings", "suits_alignment", "tile_tokens"]

Facts = tuple[str, dict[str, Any]]
"""Kind of a picture and what is true of it."""


def suits_alignment(facts: Facts) -> bool:
    """True for pictures that the questions are about: labelled numbers, and cards in rows."""
    kind, known = facts
    return kind == "labels" or (kind == "cards" and bool(known.get("rows")))


def tile_tokens(labels: np.ndarray, tokenizer: Any) -> np.ndarray:
    """Tokens that name what the 64 tiles of a picture show.

    The connector learns to put a tile where the embedding of its token is, so that reading becomes copying, which the
    language model practises on text.

    Args:
        labels: Classes of the patches ``[heads, 16, 16]``.
        tokenizer: The model's tokenizer.

    Returns:
        Token ids ``[64, 6]``, -1 for none: the characters of a tile's four patches, its word or kind of thing, the
        number at the end of its line or its colour.
    """
    heads = dict(zip(HEADS, labels.astype(int), strict=True))
    names = _names(tokenizer)
    half = PATCHES // 2
    tiles = {name: grid.reshape(half, 2, half, 2).transpose(0, 2, 1, 3).reshape(64, 4) for name, grid in heads.items()}
    top = {name: tile.max(1) for name, tile in tiles.items()}
    thing = np.where(top["word"] > 0, names["word"][top["word"]], names["kind"][top["kind"]])
    other = np.where(top["line"] > 0, names["line"][top["line"]], names["colour"][top["colour"]])
    return np.concatenate([names["char"][tiles["char"]], thing[:, None], other[:, None]], 1).astype(np.int16)


@functools.cache
def _names(tokenizer: Any) -> dict[str, np.ndarray]:
    """First token of each class's name, by head; -1 where none is wanted."""
    texts = {
        "char": list(PRINTABLE),
        "word": list(WORDS),
        # text says itself what it is; of "door_open" the state counts
        "kind": ["" if kind == "text" else kind.split("_")[-1] for kind in KINDS],
        "colour": ["" if name == "black" else name for name in COLOUR_IDS],
        "line": [str(number) if number < 10 else "" for number in range(100)],
    }
    return {
        head: np.array([-1] + [tokenizer.encode(name)[0] if name else -1 for name in names])
        for head, names in texts.items()
    }


def spellings(tokenizer: Any) -> np.ndarray:
    """Tokens that mean the same: with and without a space before them, in lower case, capitalised, in capitals.

    Questions name a thing in any spelling; where a tile's embedding leans to all of them, each finds it.

    Returns:
        For each token of the vocabulary six tokens ``[V, 6]``, the token itself among them.
    """
    found = np.arange(len(tokenizer))[:, None].repeat(6, 1)
    for token in range(8, len(tokenizer)):
        text = tokenizer.decode([token])
        if text.isascii() and text.islower() and text.isalpha() and len(text) > 1:
            forms = [text, text.capitalize(), text.upper()]
            spelt = [tokenizer.encode(space + form) for space in ("", " ") for form in forms]
            found[token] = [ids[0] if len(ids) == 1 else token for ids in spelt]
        elif len(text) == 1 and text.isascii() and text.isprintable():
            found[token, 3:] = tokenizer.encode(" " + text)[0]
    return found


def short_question(rng: Random, facts: Facts, simple: float = 0.0, found: float = 0.2) -> tuple[str, str]:
    """Ask in few words about labelled numbers or rows of cards: question and answer.

    Args:
        rng: Source of randomness.
        facts: A picture that :func:`suits_alignment`.
        simple: Share of questions in the fewest forms; what is asked in many forms at once is not learned.
        found: Share of these about labelled numbers that ask for the number behind a label.
    """
    kind, known = facts
    easy = rng.random() < simple
    if kind == "labels":
        return _few_about_labels(rng, known["labels"], found) if easy else _about_labels(rng, known["labels"])
    return (_few_about_cards if easy else _about_cards)(rng, known["rows"])


def _few_about_labels(rng: Random, labels: list[tuple[str, int]], found: float) -> tuple[str, str]:
    if len(labels) < 2 or rng.random() < found:
        label, number = rng.choice(labels)
        return _look_up(rng, rng.choice([label, label.capitalize()]), number)
    chance = rng.random()
    (_, x), (_, y) = labels[0], labels[-1]
    if chance < 0.125:
        return rng.choice([("Upper?", str(x)), ("Lower?", str(y))])
    if chance < 0.475:
        return "Sign between upper and lower?", by_order(x, y)
    if chance < 0.675:
        return "upper and lower, then the sign?", f"{x} {y} {by_order(x, y)}"
    if chance < 0.9:
        return "Is upper above lower?", by_order(x, y, "no", "yes", "equal")
    (a, x), (b, y) = rng.sample(labels, 2)
    return f"{a} and {b}, then the sign?", f"{x} {y} {by_order(x, y)}"


def _look_up(rng: Random, label: str, number: int) -> tuple[str, str]:
    """Ask for the number behind a label; where the reply says the label first, the number is what follows it."""
    return (f"{label}?", str(number)) if rng.random() < 0.5 else (f"Read {label}:", f"{label}: {number}")


def _few_about_cards(rng: Random, rows: list[list[Any]]) -> tuple[str, str]:
    return _row_or_total(rng, *_row(rng, rows))


def _row(rng: Random, rows: list[list[Any]]) -> tuple[str, list[str]]:
    # a row with one open card has little to ask about
    which = rng.choices(range(len(rows)), [1 + sum(card is not None for card in row) for row in rows])[0]
    name = "Lower" if which else "Upper" if len(rows) > 1 else "Cards"
    return name, [card[0] if card else "back" for card in rows[which]]


def _row_or_total(rng: Random, name: str, ranks: list[str]) -> tuple[str, str]:
    """Ask for the cards, their total, or both: adding what the reply has just read is a matter of text."""
    cards, total = " ".join(ranks), _total(ranks)
    if "A" in ranks and rng.random() < 0.2:
        return f"{name} total, ace 11?", str(total + 10 * ranks.count("A"))
    row, row_or_total = (0.35, 0.75) if len(ranks) < 3 else (0.2, 0.85)  # long rows are read soon, their totals late
    chance = rng.random()
    if chance < row:
        return f"{name} row?", cards
    if chance < row_or_total:
        return f"{name} total?", str(total)
    return f"{name} row, then the total?", f"{cards} = {total}"


def _total(ranks: list[str]) -> int:
    return sum(card_value(rank) for rank in ranks if rank != "back")


def _about_labels(rng: Random, labels: list[tuple[str, int]]) -> tuple[str, str]:
    row = rng.randrange(len(labels))
    label, number = labels[row]
    chance = rng.random()
    if len(labels) > 1 and chance < 0.6:
        (a, x), (b, y) = rng.sample(labels, 2)
        if chance < 0.5:
            a, x, b, y = "upper", labels[0][1], "lower", labels[-1][1]
        return _compare(rng, a, x, b, y)
    if chance < 0.72:
        names = {0: ["Upper?", "First?", "Top number?"], len(labels) - 1: ["Lower?", "Last?", "Bottom number?"]}
        if row in names:
            return rng.choice(names[row]), str(number)
    if chance < 0.92:
        written = rng.choice([label, label.capitalize(), label.upper()])
        forms = (f"{written}?", f"{written}:", f"What number is after {written}?", f"Read {label}.")
        return rng.choice(forms), str(number)
    return "Read all.", ", ".join(f"{a} {x}" for a, x in labels)


def number_question(rng: Random) -> tuple[str, str, str]:
    """Ask about numbers given in words: to compare two, to find one by its label, to add cards.

    Args:
        rng: Source of randomness.

    Returns:
        Question, answer, kind.
    """
    if rng.random() < 0.4:
        ranks = [rng.choice(RANKS) for _ in range(rng.choice([1, 2, 2, 3, 3, 3, 4, 5]))]
        name = rng.choice(["Upper", "Lower", "Cards"])
        question, answer = _row_or_total(rng, name, ranks)
        return f"{name} row: {' '.join(ranks)}. {question}", answer, "cards in words"
    x, y = draw_number(rng), draw_number(rng)
    if rng.random() < 0.15:
        y = x
    if rng.random() < 0.4:
        return *_compare(rng, str(x), x, str(y), y), "order in words"
    if rng.random() < 0.5:  # the same spelling in text and question
        a, b = (rng.choice([name, name.capitalize()]) for name in rng.sample(LABELS, 2))
        question, answer = _look_up(rng, *rng.choice([(a, x), (b, y)]))
        return f"{a}: {x}. {b}: {y}. {question}", answer, "label in words"
    a, b = ("upper", "lower") if rng.random() < 0.3 else rng.sample(LABELS, 2)
    shown = (a, b) if rng.random() < 0.4 else (spell(rng, a), spell(rng, b))
    text = f"{shown[0]}: {x}{rng.choice(['. ', ', ', chr(10)])}{shown[1]}: {y}. "
    if rng.random() < 0.5:
        a, x, b, y = b, y, a, x
    if rng.random() < 0.4:
        return text + rng.choice([f"{a}?", f"{a.capitalize()}?", f"Read {a}."]), str(x), "spelt label in words"
    question, answer = _compare(rng, a, x, b, y)
    return text + question, answer, "labels ordered in words"


def _compare(rng: Random, a: str, x: int, b: str, y: int) -> tuple[str, str]:
    """Ask which of two named numbers is more, for a fixed answer or between signs given in the question."""
    chance = rng.random()
    if chance < 0.06:
        return f"More, {a} or {b}?", by_order(x, y, b, a, "equal")
    if chance < 0.16:
        return f"Is {a} above {b}?", by_order(x, y, "no", "yes", "equal")
    if chance < 0.26:
        return f"Sign between {a} and {b}?", by_order(x, y)
    if chance < 0.36:  # reading both in the reply first makes comparing a matter of text
        return f"{a} and {b}, then the sign?", f"{x} {y} {by_order(x, y)}"
    low, high, same = rng.sample([*"+-#%&*<>=!?", symbol(rng), symbol(rng), "yes", "no", "equal"], 3)
    forms = (
        f"{low} if {a} is below {b}, {high} if above, else {same}.",
        f"{a} less than {b}: {low}, more: {high}, equal: {same}.",
    )
    return rng.choice(forms), by_order(x, y, low, high, same)


def _about_cards(rng: Random, rows: list[list[Any]]) -> tuple[str, str]:
    name, ranks = _row(rng, rows)
    if rng.random() < 0.7:
        return _row_or_total(rng, name, ranks)
    total = _total(ranks)
    limit = max(2, total + rng.choice([-4, -3, -2, -1, 0, 1, 2, 3, 4]))
    low, high = rng.sample([*"+-#%&*<>=!?", symbol(rng), symbol(rng), "yes", "no"], 2)
    return f"{name} total: {low} if below {limit}, else {high}.", low if total < limit else high
