"""Playing cards drawn from plain shapes: our own art, no picture files and no system fonts.

A card shows one big rank and one big pip, because that is what a small vision tower has to read. Cards are drawn
four times too large and shrunk once, so that edges are smooth, and every size is drawn only once.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lightning_vlmq.envs.pictures import Picture

__all__ = ["RANKS", "SUITS", "draw_back", "draw_card", "on_table", "table"]

RANKS = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
"""Ranks that can be drawn."""

SUITS = ("clubs", "diamonds", "hearts", "spades")
"""Suits that can be drawn."""

_SCALE = 4
_GREEN = (0x35, 0x65, 0x4D)
_RED = (200, 16, 32)
_BLACK = (16, 16, 16)
_EDGE = (90, 90, 90)
_BACK = (36, 60, 140)
_BACK_LINE = (150, 170, 225)


@functools.cache
def draw_card(rank: str, suit: str, width: int = 60, height: int = 84) -> Image.Image:
    """Draw the face of a card.

    Args:
        rank: One of :data:`RANKS`.
        suit: One of :data:`SUITS`.
        width: Width in pixels.
        height: Height in pixels.

    Returns:
        RGBA picture whose corners are transparent (paste it with itself as mask). It is shared between callers:
        copy it before drawing on it.

    Raises:
        ValueError: If the rank or the suit is unknown.
    """
    if rank not in RANKS:
        raise ValueError(f"rank {rank!r} is not a playing card's: choose one of {', '.join(RANKS)}")
    if suit not in SUITS:
        raise ValueError(f"suit {suit!r} is unknown: choose one of {', '.join(SUITS)}")
    image, draw = _blank(width, height)
    big_width, big_height = image.size
    colour = _RED if suit in ("diamonds", "hearts") else _BLACK
    _draw_rank(draw, rank, (0.10 * big_width, 0.06 * big_height, 0.90 * big_width, 0.56 * big_height), colour)
    side = min(0.56 * big_width, 0.34 * big_height)
    _draw_pip(draw, suit, 0.5 * big_width, 0.77 * big_height, side, colour)
    return image.resize((width, height), Image.Resampling.LANCZOS)


@functools.cache
def draw_back(width: int = 60, height: int = 84) -> Image.Image:
    """Draw the back of a card: a blue lattice with a white rim.

    Args:
        width: Width in pixels.
        height: Height in pixels.

    Returns:
        RGBA picture, shared like those of :func:`draw_card`.
    """
    image, _ = _blank(width, height)
    big_width, big_height = image.size
    rim = 0.08 * big_width
    lattice = Image.new("RGBA", image.size, (*_BACK, 255))
    lines = ImageDraw.Draw(lattice)
    pitch = max(1, big_width // 5)
    for start in range(-big_height, big_width + big_height, pitch):
        for direction in (1, -1):
            ends = ((start, 0), (start + direction * big_height, big_height))
            lines.line(ends, fill=_BACK_LINE, width=max(1, big_width // 30))
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((rim, rim, big_width - rim, big_height - rim), rim, fill=255)
    image.paste(lattice, (0, 0), mask)
    return image.resize((width, height), Image.Resampling.LANCZOS)


@functools.cache
def table(side: int) -> Picture:
    """Return an empty green table, ``[side, side, 3]``, shared between callers."""
    return np.full((side, side, 3), _GREEN, np.uint8)


@functools.cache
def on_table(card: tuple[str, str] | None, width: int, height: int) -> Picture:
    """Draw a card upon the table's green, ``[height, width, 3]``, once; it is shared between callers.

    Args:
        card: Rank and suit; ``None`` for its back.
        width: In pixels.
        height: In pixels.
    """
    image = draw_back(width, height) if card is None else draw_card(*card, width, height)
    green = Image.new("RGBA", image.size, _GREEN)
    green.alpha_composite(image)
    return np.asarray(green.convert("RGB"), dtype=np.uint8)


def _blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Make an enlarged card with round corners and a thin grey edge."""
    size = (width * _SCALE, height * _SCALE)
    # Transparent white, not black: shrinking mixes the colour of transparent pixels into the edge.
    image = Image.new("RGBA", size, (255, 255, 255, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle(
        (0, 0, size[0] - 1, size[1] - 1), 0.1 * size[0], fill="white", outline=_EDGE, width=max(1, size[0] // 50)
    )
    return image, draw


def _draw_rank(
    draw: ImageDraw.ImageDraw, rank: str, box: tuple[float, float, float, float], colour: tuple[int, int, int]
) -> None:
    """Write the rank as large as the box allows, boldened by a stroke."""
    left, top, right, bottom = box
    size = bottom - top
    # "10" is twice as wide as the others: take the largest size whose ink fits both ways.
    for _ in range(3):
        font, stroke = ImageFont.load_default(size), max(1, round(size * 0.045))
        ink = draw.textbbox((0, 0), rank, font=font, stroke_width=stroke)
        size *= min((right - left) / (ink[2] - ink[0]), (bottom - top) / (ink[3] - ink[1]))
    font, stroke = ImageFont.load_default(size), max(1, round(size * 0.045))
    ink = draw.textbbox((0, 0), rank, font=font, stroke_width=stroke)
    x = (left + right - ink[0] - ink[2]) / 2
    y = (top + bottom - ink[1] - ink[3]) / 2
    draw.text((x, y), rank, font=font, fill=colour, stroke_width=stroke, stroke_fill=colour)


def _draw_pip(
    draw: ImageDraw.ImageDraw, suit: str, x: float, y: float, side: float, colour: tuple[int, int, int]
) -> None:
    """Draw a suit's sign from ellipses and polygons into a square around ``(x, y)``."""

    def circle(centre_x: float, centre_y: float, radius: float) -> None:
        centre_x, centre_y, radius = x + centre_x * side, y + centre_y * side, radius * side
        box = (centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius)
        draw.ellipse(box, fill=colour)

    def polygon(*corners: tuple[float, float]) -> None:
        draw.polygon([(x + a * side, y + b * side) for a, b in corners], fill=colour)

    if suit == "diamonds":
        polygon((0, -0.5), (0.4, 0), (0, 0.5), (-0.4, 0))
    elif suit == "hearts":
        circle(-0.23, -0.2, 0.26)
        circle(0.23, -0.2, 0.26)
        polygon((-0.46, -0.08), (0.46, -0.08), (0, 0.5))
    elif suit == "spades":
        circle(-0.22, 0.1, 0.25)
        circle(0.22, 0.1, 0.25)
        polygon((-0.44, 0), (0.44, 0), (0, -0.5))
        polygon((0, 0), (0.18, 0.5), (-0.18, 0.5))
    else:
        circle(0, -0.24, 0.24)
        circle(-0.25, 0.12, 0.24)
        circle(0.25, 0.12, 0.24)
        polygon((0, -0.15), (0.18, 0.5), (-0.18, 0.5))
