"""Turns of conversation about a picture: questions in many prompts, copying, copying and reading in the same reply."""

from random import Random
from typing import Any

from scripts.embedded_vlm.choices import choice, symbol
from scripts.embedded_vlm.questions import ask
from scripts.embedded_vlm.words import COLOURS, CONNECTIVES, FREQUENT, NOUNS, SYMBOLS, WIDGET_WORDS, WORDS

__all__ = ["FORBIDDEN", "corpus", "dress", "filler", "make_turn", "random_string"]

FORBIDDEN = "[action]"
"""The tag that agents are taught later: no text of the pre-training may hold it."""

_ALL = tuple(dict.fromkeys((*WORDS, *CONNECTIVES, *(word.lower() for word in FREQUENT))))

_SENTENCES = (
    "You see a picture.",
    "Look at the picture.",
    "The image shows what you need.",
    "Read carefully.",
    "Reply with one word.",
    "Reply with one line.",
    "Reply in the format that is asked for.",
    "Valid replies are short.",
    "The previous reply was invalid.",
    "The previous message had an error.",
    "An invalid reply costs a point.",
    "Your objective is to answer.",
    "Objective: answer the question.",
    "Objective: read the numbers.",
    "Objective: the right word.",
    "Actions: none.",
    "No actions are needed here.",
    "Task: look and tell.",
    "You are a reader of pictures.",
    "You read signs and cards.",
    "This is a test of reading.",
    "There may be one or two lines.",
    "Do not explain.",
    "Use no other words.",
    "Only the answer counts.",
    "The reply must be exact.",
    "Here is the next picture.",
    "Keep the error message in mind.",
    "All numbers are whole.",
    "Faces count 10.",
    "An ace counts 1.",
    "The environment is a grid of cells.",
    "The agent stands in a room with a door.",
    "The dealer has one card face down.",
    "The page has buttons, tabs and links.",
    "A game of cards lies on the table.",
    "A number can be raised or lowered.",
    "The target is a number.",
    "Invalid in a row: 0 of 3.",
)


def filler(rng: Random) -> str:
    """A sentence of the kind that surrounds a question: irrelevant to the answer."""
    mode = rng.random()
    if mode < 0.5:
        return rng.choice(_SENTENCES)
    if mode < 0.64:
        last = rng.choice([5, 10, 10, 20, 64, 25])
        word = rng.choice(["Step", "Step", "Turn", "Page", "Round", "Picture"])
        return f"{word} {rng.randint(0, last)} of {last}."
    if mode < 0.8:  # an example stands in the prompts of agents: it is no order to copy
        return f"{rng.choice(['Example:', 'Example:', 'Reply like:', 'Replies look like'])} {random_string(rng)}"
    if mode < 0.9:
        title = rng.choice(["Error", "Note", "Format", "Actions", "Words", "Hint"])
        return f"{title}: {', '.join(rng.choice(_ALL) for _ in range(rng.randint(1, 4)))}."
    words = [rng.choice(_ALL) for _ in range(rng.randint(3, 8))]
    return " ".join(words).capitalize() + "."


def random_string(rng: Random) -> str:
    """A short string of signs, words and digits, of any syntax."""
    while True:
        mode = rng.random()
        word, other = rng.choice(_ALL), rng.choice(_ALL)
        if mode < 0.2:
            left, right = rng.choice(["[]", "()", "<>", "{}", "##", '""', "**", "``", "||", "::"])
            text = f"{left}{word}{right}"
        elif mode < 0.3:
            text = rng.choice(
                [f"{word}:", f"{word} =", f"{word}.", f"#{word}", f"{word} {other}", f"{word}->", f"/{word}"]
            )
        elif mode < 0.4:
            inside = rng.choice(
                [f'"{other}"', f"'{other}'", str(rng.randint(0, 99)), f"{other}", f"'{rng.randint(0, 99)}'"]
            )
            text = rng.choice(
                [f"{word}({inside})", f'{{"{word}": {inside}}}', f"{word}[{inside}]", f"<{word}>{inside}"]
            )
        elif mode < 0.55:
            text = word if rng.random() < 0.5 else word.capitalize()
        elif mode < 0.65:
            text = f"{rng.randint(0, 9)}{rng.choice('+-*/=')}{rng.randint(0, 9)}"
        else:
            parts = []
            for _ in range(rng.randint(1, 5)):
                piece = rng.choice(
                    [
                        rng.choice(SYMBOLS),
                        rng.choice(SYMBOLS),
                        rng.choice(_ALL),
                        str(rng.randint(0, 9)),
                        rng.choice("abcdefghijklmnopqrstuvwxyz"),
                    ]
                )
                parts.append((" " if parts and rng.random() < 0.35 else "") + piece)
            text = "".join(parts)
        # "<image>" is one token to the tokenizer and would ask for a picture that is not there.
        if not any(taboo in text.lower().replace(" ", "") for taboo in (FORBIDDEN, "<image>")):
            return text


def _plain(rng: Random) -> tuple[str, str]:
    """A question that needs no picture: small arithmetic, comparing, choosing."""
    a, b = (rng.randint(0, 9) for _ in range(2)) if rng.random() < 0.7 else (rng.randint(0, 99) for _ in range(2))
    mode = rng.random()
    if mode < 0.3:
        return rng.choice(["What is {} + {}?", "Add {} and {}.", "{} + {} ="]).format(a, b), str(a + b)
    if mode < 0.45:
        a, b = max(a, b), min(a, b)
        return rng.choice(["What is {} - {}?", "{} minus {}?"]).format(a, b), str(a - b)
    if mode < 0.65:
        return rng.choice(
            [(f"Is {a} more than {b}?", "yes" if a > b else "no"), (f"Is {a} less than {b}?", "yes" if a < b else "no")]
        )
    if mode < 0.85:
        return choice(rng, [(f"{a} is more than {b}", a > b), (f"{a} is not more than {b}", a <= b)])
    numbers = [rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10]) for _ in range(rng.randint(2, 5))]
    return f"Add {' '.join(map(str, numbers))}.", str(sum(numbers))


def make_turn(
    rng: Random,
    scene: tuple[str, dict[str, Any]] | None,
    copying: float = 0.0,
    wordy: float = 0.3,
    asked: tuple[str, str] | None = None,
) -> tuple[str, str, tuple[str, ...]]:
    """Make one user message and its answer.

    Args:
        rng: Source of randomness.
        scene: Kind and facts of the picture; ``None`` for a turn without picture.
        copying: Share of turns that copy, alone or together with an answer.
        wordy: Share of turns with sentences around the question.
        asked: Question and answer to be used; drawn if missing.

    Returns:
        Message, answer, and the strings that were to be copied.
    """
    mode = rng.random()
    copies: tuple[str, ...] = ()
    if mode < 0.35 * copying:
        text = random_string(rng)
        form = rng.choice(
            [
                'Say "{}".',
                "Write {}",
                "Repeat: {}",
                "Copy: {}",
                'Answer with "{}".',
                'Reply "{}" and nothing else.',
                "Say {}",
            ]
        )
        question, answer, copies = form.format(text), text, (text,)
    else:
        question, answer = asked or (ask(rng, *scene) if scene and rng.random() < 0.93 else _plain(rng))
        if mode < copying:
            text = random_string(rng)
            question, answer = _joined(rng, text, question, answer)
            copies = (text,)
    return dress(rng, question) if rng.random() < wordy else question, answer, copies


def dress(rng: Random, question: str) -> str:
    """Put a question among sentences that do not matter, as prompts of agents do."""
    before = [filler(rng) for _ in range(rng.choice([0, 1, 1, 2, 3, 5]))]
    after = [filler(rng) for _ in range(rng.choice([0, 0, 0, 1, 2]))]
    return rng.choice([" ", " ", "\n"]).join([*before, question, *after])


def _joined(rng: Random, text: str, question: str, answer: str) -> tuple[str, str]:
    """Join copying and answering into one message and one reply."""
    quoted = rng.choice([f'"{text}"', text])
    verb = rng.choice(["Say", "Write", "Begin with", "Start with"])
    mode = rng.random()
    if mode < 0.5:
        return f"{verb} {quoted}, then {rng.choice(['answer', 'reply', 'tell'])}: {question}", f"{text} {answer}"
    if mode < 0.75:
        return f"{verb} {quoted} and, without a space, answer: {question}", f"{text}{answer}"
    if mode < 0.9:
        return f"{question} {rng.choice(['Begin', 'Start'])} the reply with {quoted}", f"{text} {answer}"
    return f"{question} After the answer {verb.split()[0].lower()} {quoted}", f"{answer} {text}"


def corpus(rng: Random, lines: int) -> list[str]:
    """Sentences for the tokenizer: prompts and replies without pictures, and every word in its spellings.

    Args:
        rng: Source of randomness.
        lines: Number of generated lines.

    Returns:
        Lines of text.
    """
    found = []
    for _ in range(lines):
        number, other = rng.randint(0, 99), rng.randint(0, 99)
        labels = rng.sample(WORDS, 3)
        rows = [[(rng.choice("A23456789JQK"), "hearts") for _ in range(3)] for _ in range(2)]
        scenes: list[tuple[str, dict[str, Any]]] = [
            ("labels", {"labels": [(labels[0], number), (labels[1], other)], "colour": "red"}),
            ("words", {"words": labels, "colour": "blue"}),
            ("cards", {"rows": rows}),
            ("shapes", {"shapes": [("circle", "red", 0, 1), ("star", rng.choice(list(COLOURS)), 2, 2)]}),
            (
                "grid",
                {"cells": {(2, 3): ("red", "ball"), (4, 4): ("blue", "door_open")}, "agent": (1, 2), "facing": "left"},
            ),
            (
                "widgets",
                {"widgets": [("button", rng.choice(WIDGET_WORDS)), ("tab", rng.choice(NOUNS)), ("link", "help")]},
            ),
        ]
        question, answer, _ = make_turn(rng, rng.choices(scenes, [6, 2, 4, 1, 2, 1])[0], 0.3, 0.7)
        found += [question, answer, symbol(rng)]
    for word in _ALL:
        found += [f"{word}, {word} {word}. {word.capitalize()} {word}"] * 12 + [word, word.capitalize()] * 10
    for word in FREQUENT:
        found += [word, f" {word}", word.capitalize(), f"({word})", f"the {word} {word}"] * 150
    for number in range(10):
        found += [f"{number} {number} {number}"] * 40
    for sign in SYMBOLS:
        found += [f"{sign} {sign} {sign} a {sign}b"] * 40
    return found
