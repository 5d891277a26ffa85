"""Short questions about labelled numbers and cards: the narrow start of the language stage.

With all kinds of questions at once the language model stays at chance for its first thousand steps; with these few
it reads the cards of a row within five hundred. Everything else comes after.
"""

from random import Random
from typing import Any

__all__ = ["short_description", "short_turn", "suits_alignment"]

_SYMBOLS = [*"+-#%&*<>=!?", "yes", "no", "left", "right", "up", "down", "red", "blue", "one", "two"]
_LETTERS = "abcdefghij klmnop0123456789+-[]"

Facts = tuple[str, dict[str, Any]]


def suits_alignment(facts: Facts) -> bool:
    """True for pictures that the questions are about: labelled numbers, and cards in rows."""
    kind, known = facts
    return kind == "labels" or (kind == "cards" and bool(known.get("rows")))


def short_turn(
    rng: Random, tokenizer: Any, facts: Facts | None, copying: float, wordy: float
) -> tuple[list[int], list[int], str]:
    """Make a turn as tokens, as :func:`~scripts.embedded_vlm.sequences.turn_tokens` does: message, reply, kind."""
    kind, known = facts or ("plain", {})
    if kind == "labels":
        question, answer, kind = _about_labels(rng, known["labels"])
    elif kind == "cards":
        question, answer, kind = _about_cards(rng, known["rows"])
    else:
        answer = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 6)))
        question, kind = f"Say {answer}", "copy"
    return tokenizer.encode(question), [*tokenizer.encode(answer), tokenizer.eos_token_id], kind


def short_description(rng: Random, kind: str, known: dict[str, Any]) -> tuple[str, str]:
    """Question and answer that name everything in a picture."""
    if kind == "labels":
        return "Read all.", ", ".join(f"{label} {number}" for label, number in known["labels"])
    return "Read all.", " ".join(rank for row in known["rows"] for rank in _ranks(row) if rank != "back")


def _about_labels(rng: Random, labels: list[tuple[str, int]]) -> tuple[str, str, str]:
    label, number = rng.choice(labels)
    chance = rng.random()
    if len(labels) > 1 and chance < 0.45:
        (a, x), (b, y) = rng.sample(labels, 2)
        if rng.random() < 0.5:
            return f"More, {a} or {b}?", f" {a if x > y else b if y > x else 'equal'}", "more"
        low, high = rng.sample(_SYMBOLS, 2)
        answer = low if x < y else high if x > y else "equal"
        return f"{low} if {a} is below {b}, {high} if above.", f" {answer}", "pick"
    if chance < 0.8:
        written = rng.choice([label, label.capitalize(), label.upper()])
        forms = (f"{written}?", f"{written}:", f"What number is after {written}?", f"Read {label}.")
        return rng.choice(forms), f" {number}", "label"
    return "Read all.", " " + ", ".join(f"{a} {x}" for a, x in labels), "all"


def _about_cards(rng: Random, rows: list[list[Any]]) -> tuple[str, str, str]:
    which = rng.randrange(len(rows))
    name = "Lower" if which else "Upper" if len(rows) > 1 else "Cards"
    ranks = _ranks(rows[which])
    if rng.random() < 0.6:
        return f"{name} row?", " " + " ".join(ranks), "row"
    values = [1 if rank == "A" else 10 if rank in "JQK" else int(rank) for rank in ranks if rank != "back"]
    return f"{name} total?", f" {sum(values)}", "total"


def _ranks(row: list[Any]) -> list[str]:
    return [card[0] if isinstance(card, tuple | list) else "back" for card in row]
