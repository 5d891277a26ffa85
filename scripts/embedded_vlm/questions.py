"""Questions about generated pictures with their answers: reading, comparing, adding; never what to do in a game."""

from collections.abc import Callable
from random import Random
from typing import Any

from scripts.embedded_vlm.choices import PLACES, Question, by_order, choice, yes_no
from scripts.embedded_vlm.table_questions import ask_cards
from scripts.embedded_vlm.words import NOUNS
from scripts.embedded_vlm.world_questions import ask_grid, ask_shapes, ask_widgets, cell_name

__all__ = ["ask", "describe"]


def ask(rng: Random, kind: str, facts: dict[str, Any]) -> Question:
    """Ask one random question about a picture.

    Args:
        rng: Source of randomness.
        kind: Kind of the picture.
        facts: Facts of the picture.

    Returns:
        Question and answer.
    """
    return _ASKERS[kind](rng, facts)


def describe(rng: Random, kind: str, facts: dict[str, Any]) -> Question:
    """Ask for everything in a picture, in reading order: many tokens of supervision for the alignment.

    Args:
        rng: Source of randomness.
        kind: Kind of the picture.
        facts: Facts of the picture.

    Returns:
        Question and answer.
    """
    if kind == "labels":
        answer = ", ".join(f"{word} {number}" for word, number in facts["labels"])
    elif kind == "words":
        answer = " | ".join(facts["words"])
    elif kind == "cards":
        answer = " / ".join(" ".join(card[0] if card else "back" for card in row) for row in facts["rows"])
    elif kind == "shapes":
        shapes = sorted(facts["shapes"], key=lambda item: (item[3], item[2]))
        answer = ", ".join(f"{colour} {shape}" for shape, colour, _, _ in shapes)
    elif kind == "grid":
        cells = sorted(facts["cells"].items(), key=lambda item: (item[0][1], item[0][0]))
        parts = [f"{cell_name(cell)} {x} {y}" for (x, y), cell in cells]
        (x, y), facing = facts["agent"], facts["facing"]
        answer = ", ".join([f"agent {x} {y} {facing}", *parts])
    else:
        answer = ", ".join(f"{name.split('_')[0]} {word}" for name, word in facts["widgets"])
    return rng.choice(["Describe the picture.", "Describe everything.", "Read all of it.", "List everything."]), answer


def _name(rng: Random, word: str) -> str:
    mode = rng.random()
    if mode < 0.5:
        return word.capitalize() if mode < 0.3 else word
    return (
        f'"{word.capitalize()}"'
        if mode < 0.65
        else f"the {word}"
        if mode < 0.85
        else f"the number after {word.capitalize()}"
    )


def _labels(rng: Random, facts: dict[str, Any]) -> Question:
    labels: list[tuple[str, int]] = facts["labels"]
    mode = rng.random()
    if len(labels) < 2 and mode > 0.4:
        mode *= 0.4
    word, number = rng.choice(labels)
    if mode < 0.26:
        asked = rng.choice([word, word.capitalize(), f'"{word.capitalize()}"'])
        form = rng.choice(
            [
                "What number stands after {}?",
                "What is the number after {}?",
                "{}?",
                "What is the {}?",
                "Read the number after {}.",
                "Which value does {} have?",
                "Give the number under {}.",
                "Tell me {}.",
                "The number next to {}:",
                "How much is {}?",
            ]
        )
        return form.format(asked), str(number)
    if mode < 0.3:
        form = rng.choice(["Read the picture.", "Read everything.", "What is written here?", "Which text do you see?"])
        return form, ", ".join(f"{w} {n}" for w, n in labels)
    if mode < 0.34:
        row = rng.randrange(len(labels))
        place = "last" if row == len(labels) - 1 and rng.random() < 0.5 else PLACES[row]
        if rng.random() < 0.5:
            return rng.choice(["What number is in the {} line?", "The number of the {} line?"]).format(place), str(
                labels[row][1]
            )
        return rng.choice(["Which word is in the {} line?", "Name the {} label."]).format(place), labels[row][0]
    if mode < 0.36:
        return rng.choice(["How many lines are there?", "Count the lines.", "How many numbers do you see?"]), str(
            len(labels)
        )
    if mode < 0.38:
        return rng.choice(["What colour is the text?", "Name the colour of the letters."]), facts["colour"]
    if mode < 0.42 or len(labels) < 2:
        limit = max(0, number + rng.choice([-3, -2, -1, 0, 0, 1, 2, 3]))
        name = _name(rng, word)
        if rng.random() < 0.6:
            relation = rng.choice(["more than", "less than", "equal to"])
            true = (
                number > limit
                if relation == "more than"
                else number < limit
                if relation == "less than"
                else number == limit
            )
            return f"Is {name} {relation} {limit}?", yes_no(true)
        return choice(
            rng, [(f"{name} is more than {limit}", number > limit), (f"{name} is {limit} or less", number <= limit)]
        )
    (a, x), (b, y) = rng.sample(labels, 2)
    first, second = _name(rng, a), _name(rng, b)
    more = rng.choice(["more than", "larger than", "greater than", "above", "higher than"])
    less = rng.choice(["less than", "smaller than", "below", "lower than"])
    if mode < 0.54:
        if rng.random() < 0.5:
            return f"Is {first} {more} {second}?", yes_no(x > y)
        return f"Is {first} {less} {second}?", yes_no(x < y)
    if mode < 0.6:
        larger = rng.random() < 0.5
        word = (
            rng.choice(["larger", "greater", "higher", "more"]) if larger else rng.choice(["smaller", "lower", "less"])
        )
        answer = "equal" if x == y else a if (x > y) == larger else b
        return rng.choice([f"Which is {word}, {a} or {b}?", f"{a} or {b}: which is {word}?"]), answer
    if mode < 0.64:
        big = rng.random() < 0.5
        form = f"Write the {'larger' if big else 'smaller'} of {first} and {second}."
        if len(labels) == 2 and rng.random() < 0.5:
            form = f"What is the {'largest' if big else 'smallest'} number?"
        return form, str(max(x, y) if big else min(x, y))
    if mode < 0.67:
        return rng.choice([f"Are {first} and {second} equal?", f"Do {a} and {b} have the same number?"]), yes_no(x == y)
    if mode < 0.72:
        form = rng.choice([f"How far apart are {first} and {second}?", f"What is the difference of {a} and {b}?"])
        return form, str(abs(x - y))
    if mode < 0.75:
        return rng.choice([f"Add {first} and {second}.", f"What is the sum of {a} and {b}?"]), str(x + y)
    if mode < 0.9 or x == y:
        if rng.random() < 0.5 and x != y:
            return choice(rng, [(f"{first} is {more} {second}", x > y), (f"{first} is {less} {second}", x < y)])
        if rng.random() < 0.5:
            return choice(rng, [(f"{first} is {more} {second}", x > y), (f"{first} is not {more} {second}", x <= y)])
        return choice(
            rng,
            [
                (f"{first} is {more} {second}", x > y),
                (f"{first} is {less} {second}", x < y),
                ("they are equal", x == y),
            ],
        )
    if rng.random() < 0.5:
        return rng.choice(
            [f"Compare {first} with {second}.", f"{first} and {second}: which sign stands between?"]
        ), by_order(x, y)
    return f"Write {a}, the sign and {b}.", f"{x} {by_order(x, y)} {y}"


def _words(rng: Random, facts: dict[str, Any]) -> Question:
    words: list[str] = facts["words"]
    mode = rng.random()
    row = rng.randrange(len(words))
    place = "last" if row == len(words) - 1 and len(words) > 1 and rng.random() < 0.5 else PLACES[row]
    if len(words) == 1 and mode < 0.6:
        return rng.choice(
            ["What is written here?", "Read the picture.", "What do you see?", "Copy the text.", "Read it."]
        ), words[0]
    if mode < 0.55:
        form = rng.choice(["What is in the {} line?", "Read the {} line.", "The {} line?", "What stands in line {}?"])
        return form.format(row + 1 if "line {}" in form else place), words[row]
    if mode < 0.65 and len(words) <= 4:
        return rng.choice(["Read everything.", "Read all lines.", "What is written here?"]), " | ".join(words)
    if mode < 0.75:
        return rng.choice(["How many lines are there?", "Count the lines."]), str(len(words))
    if mode < 0.8:
        return "What colour is the text?", facts["colour"]
    if mode < 0.9 and len(words) > 1:
        row = rng.randrange(len(words) - 1)
        if rng.random() < 0.5 and words.count(words[row]) == 1:
            return rng.choice(["What stands under {}?", "What is below {}?"]).format(words[row]), words[row + 1]
        if words.count(words[row + 1]) == 1:
            return rng.choice(["What stands over {}?", "What is above {}?"]).format(words[row + 1]), words[row]
    there = rng.random() < 0.5
    word = rng.choice(words) if there else rng.choice(NOUNS)
    lowered = [w.lower() for w in words]
    return rng.choice(['Is there "{}"?', "Do you see {}?", "Is {} in the picture?"]).format(word), yes_no(
        word.lower() in lowered
    )


_ASKERS: dict[str, Callable[[Random, dict[str, Any]], Question]] = {
    "labels": _labels,
    "words": _words,
    "cards": ask_cards,
    "shapes": ask_shapes,
    "grid": ask_grid,
    "widgets": ask_widgets,
}
