"""Questions about playing cards."""

from random import Random
from typing import Any

from scripts.embedded_vlm.choices import PLACES, Question, choice, yes_no
from scripts.embedded_vlm.tables import card_value, total

__all__ = ["ask_cards"]


def _row_name(rng: Random, row: int, rows: int) -> str:
    if rows == 1:
        return rng.choice(["the row", "the cards", "the table"])
    if row == 0:
        return rng.choice(["the top row", "the upper row", "the first row", "the dealer's row"])
    return rng.choice(["the bottom row", "the lower row", "the second row", "the player's row"])


def ask_cards(rng: Random, facts: dict[str, Any]) -> Question:
    """Ask about ranks, suits, counts and totals of rows of cards."""
    rows: list[list[tuple[str, str] | None]] = facts["rows"]
    index = rng.choice([0, len(rows) - 1, len(rows) - 1])
    row = rows[index]
    where = _row_name(rng, index, len(rows))
    shown = [card for card in row if card]
    mode = rng.random()
    if mode < 0.2 or not shown:
        column = rng.randrange(len(row))
        place = "last" if column == len(row) - 1 and rng.random() < 0.4 else PLACES[column]
        card = row[column]
        form = rng.choice(["What is the {} card of {}?", "The {} card of {}?", "Which rank has the {} card in {}?"])
        return form.format(place, where), card[0] if card else "back"
    if mode < 0.32:
        form = rng.choice(["Which cards are in {}?", "Read the cards of {}.", "Name the ranks in {}.", "{}?"])
        return form.format(where), " ".join(card[0] if card else "back" for card in row)
    if mode < 0.36:
        column = rng.randrange(len(row))
        card = row[column]
        return f"What suit has the {PLACES[column]} card of {where}?", card[1] if card else "back"
    if mode < 0.4:
        if rng.random() < 0.7:
            return rng.choice(["How many cards are in {}?", "Count the cards of {}."]).format(where), str(len(row))
        return "How many cards lie face down?", str(sum(card is None for r in rows for card in r))
    if mode < 0.45:
        rank = rng.choice(shown)[0] if rng.random() < 0.4 else rng.choice(["A", "A", "10", "K", "7", "2"])
        names = {"A": "an ace", "K": "a king", "10": "a 10", "7": "a 7", "2": "a 2"}
        return f"Is there {names.get(rank, 'a ' + rank)} in {where}?", yes_no(any(card[0] == rank for card in shown))
    if mode < 0.52:
        card = rng.choice(shown) if len(shown) == 1 else row[0] or shown[0]
        name = f"the open card in {where}" if len(shown) == 1 else f"the first open card of {where}"
        return rng.choice([f"What is the value of {name}?", f"How much is {name} worth?"]), str(card_value(card[0]))
    sum_ = total(row)
    if mode < 0.74:
        form = rng.choice(
            [
                "What is the total of {}?",
                "Add the cards of {}.",
                "The sum of {}?",
                "What is the value of {}?",
                "{}: total?",
            ]
        )
        if rng.random() < 0.12:
            sum_ += 10 * sum(card[0] == "A" for card in shown)
            return form.format(where) + rng.choice([" An ace counts 11.", " Aces are 11."]), str(sum_)
        return form.format(where) + rng.choice(["", "", " An ace counts 1.", " Faces count 10, aces 1."]), str(sum_)
    if mode < 0.9 or len(rows) == 1:
        limit = max(1, sum_ + rng.choice([-6, -4, -3, -2, -1, -1, 0, 0, 1, 1, 2, 3, 4, 6]))
        if rng.random() < 0.5:
            return choice(rng, [(f"the total of {where} is more than {limit}", sum_ > limit),
                                (f"the total of {where} is {limit} or less", sum_ <= limit)])  # fmt: skip
        if rng.random() < 0.5:
            return rng.choice(
                [f"Is the total of {where} over {limit}?", f"Is {where} worth more than {limit}?"]
            ), yes_no(sum_ > limit)
        return rng.choice([f"Is the total of {where} under {limit}?", f"Is {where} worth less than {limit}?"]), yes_no(
            sum_ < limit
        )
    other = total(rows[1 - index])
    there = _row_name(rng, 1 - index, 2)
    if rng.random() < 0.5:
        return f"Is the total of {where} larger than that of {there}?", yes_no(sum_ > other)
    return choice(
        rng,
        [
            (f"{where} is worth more than {there}", sum_ > other),
            (f"{where} is not worth more than {there}", sum_ <= other),
        ],
    )
