"""Pictures of playing cards on tables."""

from random import Random
from typing import Any

from lightning_vlmq.envs.cards import RANKS, SUITS, draw_back, draw_card
from scripts.embedded_vlm.canvas import KIND_IDS, RANK_IDS, SUIT_IDS, Canvas, random_font
from scripts.embedded_vlm.looks import draw_size, shade
from scripts.embedded_vlm.words import PRINTABLE

__all__ = ["card_value", "cards", "deck", "hands", "total"]

_COUNTS = (0.1, 0.36, 0.25, 0.14, 0.08, 0.05, 0.02)
"""Weights of rows of 1, 2, ... cards."""

_LOW = ("A", "2", "3", "4", "5", "6", "7", "8")


def card_value(rank: str) -> int:
    """Value of a rank: faces count 10, an ace 1."""
    return 1 if rank == "A" else 10 if rank in "JQK" else int(rank)


def total(cards: list[tuple[str, str] | None]) -> int:
    """Sum of a row's open cards, aces as 1."""
    return sum(card_value(card[0]) for card in cards if card)


def hands(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """The same with longer rows, whose totals need many examples, and with an ace among low cards in many of these:
    where it counts 11 is learned from nothing else."""
    return cards(rng, (0.02, 0.2, 0.38, 0.24, 0.1, 0.05, 0.01), 0.4)


def cards(rng: Random, counts: tuple[float, ...] = _COUNTS, soft: float = 0.0) -> tuple[Canvas, dict[str, Any]]:
    """One or two rows of cards on a coloured table, some face down, in two styles of drawing.

    Args:
        rng: Source of randomness.
        counts: Weights of rows of 1, 2, ... cards.
        soft: Share of the rows of three and more cards that hold an ace among low cards.
    """
    width, height = (300, 300) if rng.random() < 0.85 else draw_size(rng)
    if rng.random() < 0.7:
        table = (53 + rng.randint(-12, 12), 101 + rng.randint(-12, 12), 77 + rng.randint(-12, 12))
    else:
        table = shade(rng, rng.choice(["green", "blue", "brown", "grey", "white", "black", "red"]), 40)
    canvas = Canvas(width, height, table)
    plain = rng.random() < 0.1
    rows: list[list[tuple[str, str] | None]] = []
    for row in range(rng.choices([1, 2], [0.15, 0.85])[0]):
        count = rng.choices(range(1, len(counts) + 1), counts)[0]
        cards: list[tuple[str, str] | None] = [(rng.choice(RANKS), rng.choice(SUITS)) for _ in range(count)]
        if count >= 3 and rng.random() < soft:
            ranks = ["A", *rng.choices(_LOW, k=count - 1)]
            cards = [(rank, rng.choice(SUITS)) for rank in rng.sample(ranks, count)]
        if row == 0 and rng.random() < 0.55:
            cards = [cards[0], None] if rng.random() < 0.75 else [None, cards[0]]
        rows.append(cards)
    if len(rows) == 2 and not plain and rng.random() < 0.75:
        _deal(rng, canvas, rows)
        return canvas, {"rows": rows}
    longest = max(len(row) for row in rows)
    card_height = min(rng.uniform(64, 108) * height / 300, 0.92 * height / len(rows))
    card_width = card_height * rng.uniform(0.64, 0.78)
    for row, cards in enumerate(rows):
        this = min(card_width, 0.96 * width / len(cards) if rng.random() < 0.5 else 0.96 * width / longest)
        gap = min(rng.uniform(0.04, 0.25) * this, max(0.0, (0.98 * width - this * len(cards)) / max(1, len(cards))))
        span = len(cards) * (this + gap) - gap
        x = (width - span) / 2 if rng.random() < 0.4 else rng.uniform(1, max(2.0, width - span - 1))
        band = height / len(rows)
        y = row * band + rng.uniform(0.02, 0.98) * max(0.0, band - card_height)
        tall = min(card_height, this * 1.6)
        for card in cards:
            # Sizes on a raster of 6 pixels: drawn cards are kept, and new sizes cost milliseconds.
            _draw_one(
                rng, canvas, card, x, y, max(12, int(this / 6) * 6), max(18, int(tall / 6) * 6), plain, total(cards)
            )
            x += this + gap
    return canvas, {"rows": rows}


def _deal(rng: Random, canvas: Canvas, rows: list[list[tuple[str, str] | None]]) -> None:
    """Lay two hands out from the left in columns; a long lower hand goes on in the next line."""
    width, height = canvas.image.size
    wide = rng.choice([54, 60, 60, 60, 60, 60, 66])
    tall = int(wide * rng.choice([1.4, 1.4, 1.4, 1.4, 1.5]))
    gap, columns = rng.randint(3, 12), 4
    left = rng.randint(0, max(0, width - columns * (wide + gap)))
    tops = (rng.randint(0, 30), int(height * rng.uniform(0.37, 0.5)))
    for top, cards in zip(tops, rows, strict=True):
        for index, card in enumerate(cards):
            x, y = left + index % columns * (wide + gap), top + index // columns * (tall + gap)
            if y + tall <= height + 4:
                _draw_one(rng, canvas, card, x, y, wide, tall, False, total(cards))


def _draw_one(
    rng: Random,
    canvas: Canvas,
    card: tuple[str, str] | None,
    x: float,
    y: float,
    width: int,
    height: int,
    plain: bool,
    sum_: int,
) -> None:
    """Draw one card and mark its patches."""
    box = (x, y, x + width, y + height)
    place = (int(x), int(y))
    if card is None:
        picture = draw_back(width, height)
        canvas.image.paste(picture, place, picture)
        canvas.mark(box, kind=KIND_IDS["back"])
        return
    rank, suit = card
    if plain:  # a second style: rank in two corners, no border art
        canvas.draw.rectangle(box, fill="white", outline="black")
        colour = (205, 20, 30) if suit in ("diamonds", "hearts") else (10, 10, 10)
        font, _ = random_font(rng, max(12, int(width * 0.42)))
        canvas.draw.text((x + 3, y + 1), rank, font=font, fill=colour, stroke_width=1, stroke_fill=colour)
        if rng.random() < 0.6:
            canvas.draw.text(
                (x + width - 3 - font.getlength(rank), y + height - font.size * 1.25), rank, font=font, fill=colour
            )
        pip = draw_card(rank, suit, width, height).crop((0, int(height * 0.57), width, int(height * 0.97)))
        small = pip.resize((max(4, width // 2), max(4, int(height * 0.2))))
        canvas.image.paste(small, (int(x + width * 0.25), int(y + height * 0.45)), small)
    else:
        picture = draw_card(rank, suit, width, height)
        canvas.image.paste(picture, place, picture)
    part = (
        (x, y, x + width * 0.45, y + height * 0.3)
        if plain
        else (x + width * 0.2, y + height * 0.06, x + width * 0.8, y + height * 0.56)
    )
    step = (part[2] - part[0]) / len(rank)
    for i, character in enumerate(rank):
        glyph = (part[0] + i * step, part[1], part[0] + (i + 1) * step, part[3])
        canvas.mark(glyph, char=PRINTABLE.index(character) + 1)
    # Rank and suit on the patches that show them: to spread them over the card is left to the language model.
    canvas.mark(box, kind=KIND_IDS["card"], total=min(79, sum_))
    canvas.mark(part, rank=RANK_IDS[rank])
    canvas.mark((x + 0.2 * width, y + 0.58 * height, x + 0.8 * width, y + 0.96 * height), suit=SUIT_IDS[suit])


def deck(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """A table full of cards."""
    canvas = Canvas(
        300, 300, shade(rng, rng.choice(["green", "green", "green", "green", "blue", "brown", "white", "black"]), 40)
    )
    rows = rng.choice([2, 3, 3, 4])
    y, plain = rng.uniform(0, 10), rng.random() < 0.08
    usual = rng.random() < 0.65
    tall = 84 if usual else int(min(108.0, rng.uniform(0.75, 0.97) * 290 / rows) / 6) * 6
    rows = 3 if usual else rows
    for _ in range(rows):
        wide = 60 if usual else max(24, int(tall * rng.uniform(0.62, 0.8) / 6) * 6)
        gap = rng.uniform(1, 12)
        count = int(295 / (wide + gap))
        cards: list[tuple[str, str] | None] = [
            None if rng.random() < 0.06 else (rng.choice(RANKS), rng.choice(SUITS)) for _ in range(count)
        ]
        x = rng.uniform(0, max(1.0, 298 - count * (wide + gap)))
        for card in cards:
            _draw_one(rng, canvas, card, x, y, wide, tall, plain, total(cards))
            x += wide + gap
        y += tall + rng.uniform(0.3, 1) * (296 - rows * tall) / rows
    return canvas, {}
