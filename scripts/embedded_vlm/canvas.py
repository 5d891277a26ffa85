"""A canvas that remembers what it drew where: pictures with dense labels for the classification stage.

Labels stand on the 16 x 16 patches of the resized picture, one integer map per head (:data:`HEADS`).
"""

import functools
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scripts.embedded_vlm.words import COLOURS, PRINTABLE, WORD_IDS

__all__ = [
    "COLOUR_IDS",
    "HEADS",
    "IMAGE_SIZE",
    "KINDS",
    "PATCHES",
    "RANK_IDS",
    "SUIT_IDS",
    "Canvas",
    "font_files",
    "load_font",
    "random_font",
]

IMAGE_SIZE = 256
"""Side of the square picture that the processor makes, in pixels."""

PATCHES = 16
"""Patches along a side of the picture."""

KINDS = [
    "text",
    "circle",
    "square",
    "triangle",
    "star",
    "diamond",
    "cross",
    "card",
    "back",
    "key",
    "ball",
    "box",
    "door_open",
    "door_closed",
    "door_locked",
    "wall",
    "agent_right",
    "agent_down",
    "agent_left",
    "agent_up",
    "goal",
    "lava",
    "button",
    "checkbox_on",
    "checkbox_off",
    "tab",
    "link",
    "field",
]
"""Kinds of things, class 1 onwards in head ``kind``."""

KIND_IDS = {name: index + 1 for index, name in enumerate(KINDS)}
COLOUR_IDS = {name: index + 1 for index, name in enumerate(COLOURS)}
RANK_IDS = {
    name: index + 1 for index, name in enumerate(["A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K"])
}
SUIT_IDS = {name: index + 1 for index, name in enumerate(("clubs", "diamonds", "hearts", "spades"))}

HEADS: dict[str, int] = {
    "char": len(PRINTABLE) + 1,
    "word": len(WORD_IDS) + 1,
    "number": 101,
    "line": 101,
    "kind": len(KINDS) + 1,
    "colour": len(COLOURS) + 1,
    "rank": len(RANK_IDS) + 1,
    "suit": len(SUIT_IDS) + 1,
    "total": 80,
}
"""Classification heads and their number of classes; class 0 is always "none".

``line`` is the number that the patch's line of text ends with, ``total`` the sum of the patch's row of cards.
"""

_HEAD_INDEX = {name: index for index, name in enumerate(HEADS)}
Box = tuple[float, float, float, float]


@functools.cache
def font_files() -> tuple[str, ...]:
    """Scalable fonts of matplotlib, where it is installed; Pillow's own font is always there."""
    try:
        import matplotlib
    except ImportError:
        return ()
    names = "DejaVuSans DejaVuSans-Bold DejaVuSansMono DejaVuSansMono-Bold DejaVuSerif DejaVuSerif-Bold STIXGeneral "
    names += "STIXGeneralBol DejaVuSans-Oblique"
    folder = Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"
    return tuple(str(folder / f"{name}.ttf") for name in names.split() if (folder / f"{name}.ttf").is_file())


@functools.lru_cache(4096)
def load_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    """Font of a file, or Pillow's own for an empty name, of a size in pixels."""
    font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def random_font(rng: Random, size: int, own: float = 0.85) -> tuple[ImageFont.FreeTypeFont, int]:
    """Choose a font and a stroke width (bold).

    Args:
        rng: Source of randomness.
        size: Size in pixels.
        own: Probability of Pillow's own font.

    Returns:
        Font and stroke width in pixels.
    """
    files = font_files()
    file = "" if not files or rng.random() < own else rng.choice(files)
    bold = "Bol" in file
    stroke = 0 if bold or rng.random() < 0.45 else rng.randint(0, max(0, round(size * 0.05)))
    return load_font(file, size), stroke


class Canvas:
    """Drawing surface with labels.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        background: RGB colour.
    """

    def __init__(self, width: int, height: int, background: tuple[int, int, int]) -> None:
        self.image = Image.new("RGB", (width, height), background)
        self.draw = ImageDraw.Draw(self.image)
        self.marks: list[tuple[Box, dict[str, int]]] = []

    def mark(self, box: Box, **labels: int) -> None:
        """Label the patches under a box, one class per head; later marks win."""
        self.marks.append((box, labels))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        font: ImageFont.FreeTypeFont,
        colour: str,
        stroke: int = 0,
        line: int | None = None,
        fill: tuple[int, int, int] | None = None,
    ) -> Box:
        """Write a line of text with its top left corner at ``(x, y)`` and label its words and characters.

        Args:
            x: Left edge in pixels.
            y: Top edge in pixels.
            text: One line.
            font: Font of the wanted size.
            colour: Name of the colour, for the labels.
            stroke: Stroke width in pixels.
            line: Number that the line carries (0-99), if any.
            fill: RGB value; the typical one of ``colour`` if missing.

        Returns:
            Box of the ink.
        """
        rgb = fill or COLOURS[colour]
        self.draw.text((x, y), text, font=font, fill=rgb, stroke_width=stroke, stroke_fill=rgb)
        ink = self.draw.textbbox((x, y), text, font=font, stroke_width=stroke)
        offset = 0
        for part in text.split(" "):
            start = x + font.getlength(text[:offset]) + stroke
            word = part.strip(":.,!?=()[]")
            labels = {"kind": KIND_IDS["text"], "colour": COLOUR_IDS[colour]}
            if word.lower() in WORD_IDS:
                labels["word"] = WORD_IDS[word.lower()]
            if word.isdecimal() and len(word) <= 2:
                labels["number"] = int(word) + 1
            if line is not None:
                labels["line"] = line + 1
            edges = [start + font.getlength(part[:i]) for i in range(len(part) + 1)]
            self.mark((start, ink[1], edges[-1], ink[3]), **labels)
            for i, character in enumerate(part):
                if character in PRINTABLE:
                    self.mark((edges[i], ink[1], edges[i + 1], ink[3]), char=PRINTABLE.index(character) + 1)
            offset += len(part) + 1
        return ink

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Resize as the processor does and lay the labels on the patches.

        Returns:
            Picture ``[256, 256, 3]`` uint8 and labels ``[heads, 16, 16]`` int16.
        """
        width, height = self.image.size
        image = self.image
        if image.size != (IMAGE_SIZE, IMAGE_SIZE):
            image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
        labels = np.zeros((len(HEADS), PATCHES, PATCHES), np.int16)
        for (left, top, right, bottom), classes in self.marks:
            columns = _span(left / width, right / width, 0.0 if "char" in classes else 0.15)
            rows = _span(top / height, bottom / height, 0.2)
            for name, value in classes.items():
                labels[_HEAD_INDEX[name], rows[0] : rows[1], columns[0] : columns[1]] = value
        return np.asarray(image), labels


def _span(low: float, high: float, slack: float) -> tuple[int, int]:
    """Range of patches whose centres lie between two fractions of the side, never empty inside the picture."""
    first = int(np.ceil(low * PATCHES - 0.5 - slack))
    last = int(np.floor(high * PATCHES - 0.5 + slack))
    if last < first:
        first = last = int((low + high) / 2 * PATCHES)
    return max(0, first), min(PATCHES, last + 1)
