"""Replies token by token, coloured by advantage, with what else could have been said."""

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw

from lightning_vlmq.drawing.text import (
    BLACK,
    GREEN,
    GREY,
    PALE,
    RED,
    Colour,
    height,
    printable,
    shorten,
    thumbnail,
    width,
    wrap,
    write,
)

__all__ = ["Alternative", "Cell", "Reply", "advantage_colour", "draw_tokens"]

_SIDE = 160
"""Pixels of the column that says whose reply it is."""
_CELL = 120
_A_LINE = 9
"""Cells a line."""
_INSIDE = 6
_GAP = 8
_TITLE = 16
_TOKEN = 15
_SMALL = 12
_PICTURE = 96
_DARK_RED: Colour = (140, 0, 0)
"""Still read where the cell is red."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have been said.

    Attributes:
        text: Of the token.
        pi: Its probability under the language head.
        q: Its value; ``None`` without a critic.
        counts: True if it has weight in V.
    """

    text: str
    pi: float
    q: float | None = None
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """A token of a reply.

    Attributes:
        text: Of the token.
        pi: Its probability under the language head.
        q: Its value; ``None`` without a critic, as the next three.
        v: The state's value.
        advantage: What colours the cell.
        weight: In the language loss; ``None`` where nothing is imitated.
        alternatives: The likeliest other tokens.
    """

    text: str
    pi: float
    q: float | None = None
    v: float | None = None
    advantage: float | None = None
    weight: float | None = None
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A turn's reply.

    Attributes:
        title: Whose it is.
        notes: Lines below the title.
        pictures: What the agent saw, PNG bytes.
        cells: Its tokens; a number stands for as many left out.
    """

    title: str
    notes: tuple[str, ...]
    pictures: tuple[bytes, ...]
    cells: tuple[Cell | int, ...]


def advantage_colour(advantage: float, scale: float) -> Colour:
    """White at 0, red below, green above, full where it is as far from 0 as ``scale``.

    The shade goes with the root: beside one large advantage small ones are still seen.
    """
    share = min(1.0, abs(advantage) / scale) ** 0.5
    full = (110, 205, 130) if advantage > 0 else (245, 130, 120)
    red, green, blue = (round(255 + share * (part - 255)) for part in full)
    return red, green, blue


def draw_tokens(replies: list[Reply], title: str) -> Image.Image:
    """Draws replies below each other, with a legend.

    Args:
        replies: One or more.
        title: Above all.
    """
    scale = _scale(replies)
    rows = [_draw_reply(reply, scale) for reply in replies]
    wide = max(width(printable(title), _TITLE) + 2 * _GAP, *(row.width for row in rows))
    lines = [line for text in _legend(scale) for line in wrap(text, _SMALL, wide - 2 * _GAP, 9)]
    bar = height(_SMALL) + _GAP if scale is not None else 0
    top = height(_TITLE) + len(lines) * height(_SMALL) + bar + 2 * _GAP
    sheet = Image.new("RGB", (wide, top + sum(row.height for row in rows)), "white")
    draw = ImageDraw.Draw(sheet)
    write(draw, (_GAP, _GAP), printable(title), _TITLE)
    down = _GAP + height(_TITLE)
    if scale is not None:
        _draw_bar(draw, (_GAP, down + _GAP // 2), scale)
        down += bar
    for line in lines:
        write(draw, (_GAP, down), line, _SMALL, GREY)
        down += height(_SMALL)
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _scale(replies: list[Reply]) -> float | None:
    """The advantage farthest from 0, rounded up to 1, 2, 3 or 5 times a power of ten; ``None`` without a critic."""
    cells = [cell for reply in replies for cell in reply.cells if isinstance(cell, Cell)]
    found = [abs(cell.advantage) for cell in cells if cell.advantage is not None]
    if not found:
        return None
    largest = max(0.01, *found)
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 3, 5, 10) if step * power >= largest * (1 - 1e-9))


def _legend(scale: float | None) -> list[str]:
    if scale is None:
        return ["pi: probability under the language head. Below the line: the likeliest other tokens and their pi."]
    return [
        "Q of the token, V of the state, A = Q - V, pi: probability under the language head, and whether the filter "
        "lets the token be imitated. "
        "Below the line: the likeliest other tokens, their pi and Q; grey ones do not count in V."
    ]


def _draw_bar(draw: ImageDraw.ImageDraw, at: tuple[int, int], scale: float) -> None:
    """The colours from -scale to +scale with their numbers."""
    left, top = at
    low, high = f"advantage {-scale:.4g} (or less)", f"{scale:+.4g} (or more)"
    write(draw, (left, top), low, _SMALL)
    left += width(low, _SMALL) + _GAP
    steps = 100
    for step in range(steps + 1):
        colour = advantage_colour((2 * step / steps - 1) * scale, scale)
        draw.rectangle((left + 2 * step, top, left + 2 * step + 1, top + height(_SMALL)), fill=colour)
    draw.rectangle((left - 1, top - 1, left + 2 * steps + 2, top + height(_SMALL)), outline=PALE)
    write(draw, (left + steps - width("0", _SMALL) // 2, top), "0", _SMALL)
    write(draw, (left + 2 * steps + 2 + _GAP, top), high, _SMALL)


def _draw_reply(reply: Reply, scale: float | None) -> Image.Image:
    """One row, its cells in as many lines as they need."""
    notes = [line for note in reply.notes for line in wrap(printable(note), _SMALL, _SIDE - _GAP, 3)]
    title = wrap(printable(reply.title), _SMALL, _SIDE - _GAP, 2)
    picture = _PICTURE + _GAP // 2 if reply.pictures else 0
    side = (len(title) + len(notes)) * height(_SMALL) + picture
    cells = [cell for cell in reply.cells if isinstance(cell, Cell)]
    high = max((_cell_height(cell) for cell in cells), default=0)
    lines = -(-len(reply.cells) // _A_LINE)
    wide = 2 * _GAP + _SIDE + min(_A_LINE, len(reply.cells)) * (_CELL + 2)
    row = Image.new("RGB", (wide, max(side, lines * (high + 4)) + 2 * _GAP), "white")
    draw = ImageDraw.Draw(row)
    draw.line((_GAP, 0, wide - _GAP, 0), fill=PALE)
    down = _GAP
    for text, colour in [(line, BLACK) for line in title] + [(line, GREY) for line in notes]:
        write(draw, (_GAP, down), text, _SMALL, colour)
        down += height(_SMALL)
    if reply.pictures:
        row.paste(thumbnail(reply.pictures, _PICTURE), (_GAP, down + _GAP // 2))
    for number, cell in enumerate(reply.cells):
        line, column = divmod(number, _A_LINE)
        at = (_GAP + _SIDE + column * (_CELL + 2), _GAP + line * (high + 4))
        if isinstance(cell, int):
            write(draw, (at[0] + _INSIDE, at[1] + high // 2 - height(_SMALL)), f"… {cell} tokens …", _SMALL, GREY)
        else:
            _draw_cell(draw, at, high, cell, scale)
    return row


def _verdict(weight: float) -> tuple[str, Colour]:
    if weight == 0:
        return "filtered", _DARK_RED
    return ("imitated", GREEN) if weight == 1 else (f"weight {weight:.2f}", GREEN)


def _cell_lines(cell: Cell) -> list[tuple[str, Colour]]:
    """What stands below the token's text."""
    lines = [(f"pi {_probability(cell.pi)}", BLACK)]
    if cell.q is not None and cell.v is not None and cell.advantage is not None:
        lines += [(f"Q {cell.q:.2f}  V {cell.v:.2f}", BLACK), (f"A {cell.advantage:+.2f}", BLACK)]
    if cell.weight is not None:
        lines.append(_verdict(cell.weight))
    return lines


def _probability(pi: float) -> str:
    return f"{pi:.2f}" if pi >= 0.005 or pi == 0 else "<.01"


def _cell_height(cell: Cell) -> int:
    lines = len(_cell_lines(cell)) + len(cell.alternatives)
    return height(_TOKEN) + lines * height(_SMALL) + 3 * _INSIDE


def _draw_cell(draw: ImageDraw.ImageDraw, at: tuple[int, int], high: int, cell: Cell, scale: float | None) -> None:
    left, top = at
    fill = (245, 245, 245) if cell.advantage is None or scale is None else advantage_colour(cell.advantage, scale)
    lines = _cell_lines(cell)
    said = top + height(_TOKEN) + len(lines) * height(_SMALL) + _INSIDE + _INSIDE // 2
    draw.rectangle((left, top, left + _CELL - 1, said), fill=fill)
    draw.rectangle((left, top, left + _CELL - 1, top + high - 1), outline=RED if cell.weight == 0 else GREY)
    draw.line((left, said, left + _CELL - 1, said), fill=GREY)
    inside = _CELL - 2 * _INSIDE
    write(draw, (left + _INSIDE, top + 3), shorten(_shown(cell.text), _TOKEN, inside), _TOKEN)
    down = top + 3 + height(_TOKEN)
    for text, colour in lines:
        write(draw, (left + _INSIDE, down), shorten(text, _SMALL, inside), _SMALL, colour)
        down += height(_SMALL)
    down = said + _INSIDE // 2
    for other in cell.alternatives:
        colour = BLACK if other.counts else GREY
        numbers = _probability(other.pi) + (f"  {other.q:.2f}" if other.q is not None else "")
        place = left + _CELL - _INSIDE - width(numbers, _SMALL)
        write(draw, (place, down), numbers, _SMALL, colour)
        room = inside - width(numbers, _SMALL) - 4
        write(draw, (left + _INSIDE, down), shorten(_shown(other.text), _SMALL, room), _SMALL, colour)
        down += height(_SMALL)


def _shown(token: str) -> str:
    """A token's text; spaces at its ends are shown as a dot."""
    inner = token.strip(" ")
    ahead = len(token) - len(token.lstrip(" "))
    return printable("·" * ahead + inner + "·" * (len(token) - ahead - len(inner)))
