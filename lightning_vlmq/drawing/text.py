"""Text on pictures: Pillow's own scalable font, lines that fit, and what both kinds of picture share."""

import functools
import io
from collections.abc import Sequence
from typing import TypeAlias, TypeVar

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Colour", "elide", "font", "height", "printable", "shorten", "thumbnail", "width", "wrap", "write"]

Colour: TypeAlias = tuple[int, int, int]

BLACK: Colour = (20, 20, 20)
GREY: Colour = (120, 120, 120)
PALE: Colour = (205, 205, 205)
GREEN: Colour = (0, 120, 50)
RED: Colour = (190, 30, 30)

_OWN = "…·±"
"""What Pillow's font has beside ASCII, as far as we use it."""

_T = TypeVar("_T")


@functools.lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, kept: it is read anew from its bytes each time otherwise."""
    return ImageFont.load_default(size)


def printable(text: str) -> str:
    r"""Text in characters that the font has: a line's end becomes ``\n``, an é ``\xe9``."""
    return "".join(c if " " <= c <= "~" or c in _OWN else c.encode("unicode_escape").decode() for c in text)


def width(text: str, size: int) -> int:
    """Pixels from left to right."""
    return int(font(size).getlength(text)) + 1


def height(size: int) -> int:
    """Pixels from one line to the next."""
    return round(1.3 * size)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, fill: Colour = BLACK) -> None:
    """Writes one line with its upper left corner at a place; all lines of a size share a baseline."""
    draw.text((at[0], at[1] + size), text, font=font(size), fill=fill, anchor="ls")


def shorten(text: str, size: int, limit: int) -> str:
    """Text of at most ``limit`` pixels, with an ellipsis where something is missing."""
    if width(text, size) <= limit:
        return text
    while text and width(text + "…", size) > limit:
        text = text[:-1]
    return text + "…"


def wrap(text: str, size: int, limit: int, lines: int) -> list[str]:
    """Text in lines of at most ``limit`` pixels, broken at spaces where there are some.

    Args:
        text: Printable text.
        size: Of the font.
        limit: Pixels a line.
        lines: Lines at most; the last one of a text that is too long ends with an ellipsis.
    """
    found: list[str] = []
    while text:
        fits = len(text)
        while fits > 1 and width(text[:fits], size) > limit:
            fits -= 1
        space = text.rfind(" ", 1, fits + 1) if fits < len(text) else -1
        cut = space if space > 0 else fits
        found.append(text[:cut])
        text = text[cut:].lstrip(" ")
    if len(found) <= lines:
        return found
    kept = found[:lines]
    return [*kept[:-1], shorten(kept[-1] + "…", size, limit)]


def elide(items: Sequence[_T], head: int, tail: int) -> tuple[_T | int, ...]:
    """The first and the last items; between them the number of those left out, where there are any."""
    if len(items) <= head + tail:
        return tuple(items)
    return (*items[:head], len(items) - head - tail, *items[len(items) - tail :])


def thumbnail(pictures: Sequence[bytes], size: int) -> Image.Image:
    """Pictures (PNG bytes) side by side in as few rows as they need, on a grey square.

    Args:
        pictures: One or more.
        size: Side of the square in pixels.
    """
    square = Image.new("RGB", (size, size), (235, 235, 235))
    columns = next(n for n in range(1, len(pictures) + 1) if n * n >= len(pictures))
    side = size // columns
    for number, png in enumerate(pictures):
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        scale = side / max(picture.size)
        shape = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(shape, Image.Resampling.LANCZOS)
        row, column = divmod(number, columns)
        square.paste(picture, (column * side + (side - shape[0]) // 2, row * side + (side - shape[1]) // 2))
    return square
