"""Pictures of text: labelled numbers, words at free places, pages full of both."""

from random import Random
from typing import Any

from scripts.embedded_vlm.canvas import Canvas, random_font
from scripts.embedded_vlm.looks import contrasting, draw_number, draw_size, spell
from scripts.embedded_vlm.words import LABELS, NOUNS, PRINTABLE, WIDGET_WORDS

__all__ = ["digits", "labels", "page", "words"]


def labels(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """Lines such as "Speed: 7": the number of every label is asked."""
    width, height = draw_size(rng)
    plain = rng.random() < 0.6
    background, colour, rgb = ((255, 255, 255), "black", (0, 0, 0)) if plain else contrasting(rng)
    canvas = Canvas(width, height, background)
    count = 2 if plain and rng.random() < 0.7 else rng.choices([1, 2, 3, 4], [0.12, 0.55, 0.2, 0.13])[0]
    names = rng.sample(LABELS, count)
    if count == 2 and rng.random() < 0.06:
        names = rng.sample(["target", "current", "now", "goal"], 2)
    separator = rng.choices([": ", " ", " = ", ":", " - "], [0.7, 0.12, 0.08, 0.06, 0.04])[0]
    numbers = [draw_number(rng) for _ in names]
    if count > 1 and rng.random() < 0.12:
        numbers[1] = numbers[0]
    lines = [f"{spell(rng, name)}{separator}{number}" for name, number in zip(names, numbers, strict=True)]
    scale = width / 300
    largest = min(70, int(0.85 * 300 / count))
    size = int(rng.uniform(13, 24) if rng.random() < 0.06 else rng.uniform(22, 54)) if rng.random() < 0.85 else largest
    size = max(12, int(min(rng.uniform(28, 54) if plain and rng.random() < 0.85 else size, largest) * scale))
    font, stroke = random_font(rng, size, own=0.97 if plain else 0.7)
    longest = max(font.getlength(line) for line in lines) + 2 * stroke
    while longest > 0.96 * width and size > 12:
        size -= 2
        font = font.font_variant(size=size)
        longest = max(font.getlength(line) for line in lines) + 2 * stroke
    stroke = min(stroke, max(0, size // 16))
    pitch = size * rng.uniform(1.15, 1.3)
    room = height - pitch * count
    spread = rng.random() < 0.5
    extra = max(0.0, room) / (count + 1) if spread else 0.0
    x0 = rng.uniform(0, max(1.0, width - longest))
    y0 = rng.uniform(0.3, 1.2) * extra if spread else rng.uniform(0, max(1.0, room))
    aligned = rng.random() < 0.7
    for row, (line, number) in enumerate(zip(lines, numbers, strict=True)):
        x = x0 if aligned else rng.uniform(0, max(1.0, width - font.getlength(line) - 2 * stroke))
        canvas.text(x, y0 + row * (pitch + extra), line, font, colour, stroke, number, rgb)
    return canvas, {"labels": list(zip(names, numbers, strict=True)), "colour": colour}


def words(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """Words, bare numbers and letters at free places."""
    width, height = draw_size(rng)
    background, colour, rgb = contrasting(rng)
    canvas = Canvas(width, height, background)
    count = rng.choices([1, 2, 3, 4, 6], [0.25, 0.3, 0.2, 0.15, 0.1])[0]
    items: list[tuple[str, float, float]] = []
    band = height / count
    for row in range(count):
        mode = rng.random()
        if mode < 0.45:
            text = spell(rng, rng.choice(NOUNS + LABELS + WIDGET_WORDS))
        elif mode < 0.75:
            text = str(draw_number(rng))
        elif mode < 0.83:
            text = f"{rng.randint(0, 9)} {rng.choice('+-*/=<>')} {rng.randint(0, 9)}"
        elif mode < 0.92:
            text = "".join(
                rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
                for _ in range(rng.randint(1, 4))
            )
        else:
            text = rng.choice("+-*/=<>#@&%$!?()[]{}")
        size = max(12, int(min(rng.uniform(12, 70) * width / 300, band / 1.3)))
        font, stroke = random_font(rng, size)
        while font.getlength(text) + 2 * stroke > 0.96 * width:
            size -= 3
            font = font.font_variant(size=size)
        x = rng.uniform(0, max(1.0, width - font.getlength(text) - 2 * stroke))
        y = row * band + rng.uniform(0, max(0.0, band - 1.25 * size))
        line = int(text) if text.isdecimal() and len(text) <= 2 else None
        canvas.text(x, y, text, font, colour, stroke, line, rgb)
        items.append((text, x / width, y / height))
    return canvas, {"words": [item[0] for item in items], "colour": colour}


def page(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """Bands of text from edge to edge, each with its own size, font and colours."""
    width, height = (300, 300) if rng.random() < 0.8 else draw_size(rng)
    background, colour, rgb = contrasting(rng)
    canvas = Canvas(width, height, background)
    y, varied = rng.uniform(0, 12), rng.random() < 0.25
    while y < height - 16:
        size = int(rng.triangular(16, 58, 30) * width / 300)
        if varied:
            background, colour, rgb = contrasting(rng)
            canvas.draw.rectangle((0, y, width, y + 1.3 * size), fill=background)
        font, stroke = random_font(rng, size)
        x = rng.uniform(0, 0.6 * size)
        while x < width - 0.4 * size:
            mode, line = rng.random(), None
            if mode < 0.38:
                line = draw_number(rng)
                text = f"{spell(rng, rng.choice(LABELS))}{rng.choice([': ', ': ', ' ', ' = '])}{line}"
            elif mode < 0.72:
                line = draw_number(rng)
                text = str(line)
            elif mode < 0.86:
                text = spell(rng, rng.choice(NOUNS + LABELS + WIDGET_WORDS))
            elif mode < 0.96:
                text = rng.choice("A23456789JQK") if rng.random() < 0.8 else rng.choice(PRINTABLE)
            else:
                text = "".join(rng.choice(PRINTABLE) for _ in range(rng.randint(1, 4)))
            canvas.text(x, y, text, font, colour, stroke, line, rgb)
            x += font.getlength(text) + 2 * stroke + rng.uniform(0.5, 1.5) * size
        y += size * rng.uniform(1.2, 1.5)
    return canvas, {}


def digits(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """A white page full of numbers and capital letters in one font and size."""
    canvas = Canvas(300, 300, (255, 255, 255))
    size = rng.randint(28, 54)
    font, stroke = random_font(rng, size, own=0.95)
    y = rng.uniform(0, 20)
    while y < 300 - size:
        x = rng.uniform(0, size)
        while x < 298 - size:
            line = draw_number(rng) if rng.random() < 0.85 else None
            text = rng.choice("AJQK" if rng.random() < 0.8 else PRINTABLE[32:58]) if line is None else str(line)
            canvas.text(x, y, text, font, "black", stroke, line, (0, 0, 0))
            x += font.getlength(text) + rng.uniform(0.3, 0.9) * size
        y += size * rng.uniform(1.15, 1.4)
    return canvas, {}
