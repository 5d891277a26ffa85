"""Episodes as film strips: a row an episode, a frame a turn."""

from dataclasses import dataclass

from PIL import Image, ImageDraw

from lightning_vlmq.drawing.text import (
    BLACK,
    GREEN,
    GREY,
    PALE,
    RED,
    Colour,
    elide,
    height,
    printable,
    shorten,
    thumbnail,
    width,
    wrap,
    write,
)

__all__ = ["Frame", "Strip", "draw_film"]

_WIDTH = 184
_INSIDE = 8
_GAP = 8
_LEFT_OUT = 64
_TITLE = 16
_REPLY = 15
_SMALL = 13
_PROMPT_LINES = 4
_REPLY_LINES = (2, 2)
"""First and last lines of a long reply: the action stands at its end."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A turn.

    Attributes:
        title: Above the picture.
        pictures: What the agent saw, PNG bytes.
        prompt: Last lines of the prompt.
        reply: What it replied; ``None`` behind the last turn.
        valid: True if the reply was a valid action.
        reward: Reward with penalties.
        env_reward: The environment's own.
        outcome: How the episode ended, where it did.
    """

    title: str
    pictures: tuple[bytes, ...] = ()
    prompt: tuple[str, ...] = ()
    reply: str | None = None
    valid: bool = False
    reward: float = 0.0
    env_reward: float = 0.0
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """An episode.

    Attributes:
        title: Above the frames.
        frames: In order; a number stands for as many turns left out.
    """

    title: str
    frames: tuple[Frame | int, ...]


def draw_film(strips: list[Strip], title: str) -> Image.Image:
    """Draws strips below each other.

    Args:
        strips: One or more.
        title: Above all.
    """
    rows = [_draw_strip(strip) for strip in strips]
    wide = max(width(printable(title), _TITLE) + 2 * _GAP, *(row.width for row in rows))
    top = height(_TITLE) + 2 * _GAP
    sheet = Image.new("RGB", (wide, top + sum(row.height for row in rows)), "white")
    write(ImageDraw.Draw(sheet), (_GAP, _GAP), printable(title), _TITLE)
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def _draw_strip(strip: Strip) -> Image.Image:
    """One row: all of its frames are as high as the highest."""
    frames = [_LeftOut(frame) if isinstance(frame, int) else _Lines(frame) for frame in strip.frames]
    title = height(_SMALL) + _GAP
    high = max(frame.height for frame in frames)
    wide = sum(frame.width + _GAP for frame in frames) + _GAP
    row = Image.new("RGB", (max(wide, width(printable(strip.title), _SMALL) + 2 * _GAP), title + high + _GAP), "white")
    draw = ImageDraw.Draw(row)
    draw.line((_GAP, 0, row.width - _GAP, 0), fill=PALE)
    write(draw, (_GAP, _GAP // 2), printable(strip.title), _SMALL, GREY)
    left = _GAP
    for frame in frames:
        frame.draw(row, draw, (left, title), high)
        left += frame.width + _GAP
    return row


class _LeftOut:
    """Turns that are not shown."""

    width, height = _LEFT_OUT, 0

    def __init__(self, turns: int) -> None:
        self.turns = turns

    def draw(self, row: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], high: int) -> None:
        for number, text in enumerate(("…", str(self.turns), "turns", "…")):
            place = at[0] + (_LEFT_OUT - width(text, _SMALL)) // 2
            write(draw, (place, at[1] + high // 2 + (number - 2) * height(_SMALL)), text, _SMALL, GREY)


class _Lines:
    """A frame and the lines below its picture: text, size and colour."""

    width = _WIDTH

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        inside = _WIDTH - 2 * _INSIDE
        self.lines: list[tuple[str, int, Colour]] = []
        prompt = [line for text in frame.prompt for line in wrap(printable(text), _SMALL, inside, 999)]
        if len(prompt) > _PROMPT_LINES:  # the end of it is what differs
            prompt = [shorten("… " + prompt[-_PROMPT_LINES], _SMALL, inside), *prompt[1 - _PROMPT_LINES :]]
        self.lines += [(line, _SMALL, GREY) for line in prompt]
        if frame.reply is not None:
            said = elide(wrap(printable(frame.reply) or "(nothing)", _REPLY, inside, 999), *_REPLY_LINES)
            self.lines += [("…" if isinstance(line, int) else line, _REPLY, BLACK) for line in said]
            colour = GREEN if frame.reward > 0 else RED if frame.reward < 0 else BLACK
            reward = f"reward {frame.reward:+.4g}"
            if frame.reward != frame.env_reward:
                reward += f" ({frame.env_reward:+.4g})"
            self.lines.append(("valid", _SMALL, GREEN) if frame.valid else ("not valid", _SMALL, RED))
            self.lines.append((shorten(reward, _SMALL, inside), _SMALL, colour))
        if frame.outcome:
            self.lines += [(line, _SMALL, BLACK) for line in wrap(printable(frame.outcome), _SMALL, inside, 3)]
        text = sum(height(size) for _, size, _ in self.lines)
        picture = inside + _INSIDE if frame.pictures else 0
        self.height = height(_SMALL) + picture + text + 2 * _INSIDE

    def draw(self, row: Image.Image, draw: ImageDraw.ImageDraw, at: tuple[int, int], high: int) -> None:
        frame, (left, top) = self.frame, at
        edge = PALE if frame.reply is None else GREEN if frame.valid else RED
        draw.rectangle((left, top, left + _WIDTH - 1, top + high - 1), outline=edge, width=2)
        left, top = left + _INSIDE, top + _INSIDE // 2
        write(draw, (left, top), printable(frame.title), _SMALL)
        top += height(_SMALL) + 2
        if frame.pictures:
            inside = _WIDTH - 2 * _INSIDE
            row.paste(thumbnail(frame.pictures, inside), (left, top))
            top += inside + _INSIDE
        for text, size, colour in self.lines:
            write(draw, (left, top), text, size, colour)
            top += height(size)
