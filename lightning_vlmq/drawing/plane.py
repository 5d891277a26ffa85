"""Pairs of numbers in a plane, for two that should be equal."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lightning_vlmq.drawing.text import GREY, PALE, Colour, height, printable, width, write

__all__ = ["draw_plane"]

_BINS = 40
_BIN = 12
_SIZE = _BINS * _BIN
_LEFT = 64
_GAP = 12
_TITLE = 16
_SMALL = 13


def draw_plane(
    x: Sequence[float], y: Sequence[float], names: tuple[str, str], title: str, notes: list[str]
) -> Image.Image:
    """Draws how many pairs lie where, on axes of one range, with the diagonal on which both are equal.

    Args:
        x: First of each pair.
        y: Second of each pair.
        names: Of the axes.
        title: Above all.
        notes: Lines below it.
    """
    low, high, step = _range([*x, *y])
    edges = np.linspace(low, high, _BINS + 1)
    counts = np.histogram2d(np.asarray(x, float), np.asarray(y, float), bins=(edges, edges))[0].astype(int)
    texts = [printable(note) for note in notes] + [f"a square's colour: 1 (pale) to {counts.max()} (dark) turns"]
    top = _GAP + height(_TITLE) + (len(texts) + 2) * height(_SMALL)
    right = max(_LEFT + _SIZE, width(printable(title), _TITLE), *(width(text, _SMALL) for text in texts))
    sheet = Image.new("RGB", (right + 2 * _GAP, top + _SIZE + 3 * height(_SMALL)), "white")
    draw = ImageDraw.Draw(sheet)
    write(draw, (_GAP, _GAP), printable(title), _TITLE)
    for number, text in enumerate(texts):
        write(draw, (_GAP, _GAP + height(_TITLE) + number * height(_SMALL)), text, _SMALL, GREY)
    bottom = top + _SIZE
    for tick in np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step:
        place, text = round((tick - low) / (high - low) * _SIZE), f"{tick:.4g}"
        draw.line((_LEFT + place, top, _LEFT + place, bottom), fill=PALE)
        draw.line((_LEFT, bottom - place, _LEFT + _SIZE, bottom - place), fill=PALE)
        write(draw, (_LEFT + place - width(text, _SMALL) // 2, bottom + 4), text, _SMALL)
        write(draw, (_LEFT - width(text, _SMALL) - 6, bottom - place - height(_SMALL) // 2), text, _SMALL)
    for column, row in zip(*(where.tolist() for where in np.nonzero(counts)), strict=True):
        left, down = _LEFT + column * _BIN, bottom - row * _BIN
        draw.rectangle((left, down - _BIN, left + _BIN - 1, down - 1), fill=_shade(counts[column, row] / counts.max()))
    draw.line((_LEFT, bottom, _LEFT + _SIZE, top), fill=GREY)
    draw.rectangle((_LEFT, top, _LEFT + _SIZE, bottom), outline=GREY)
    write(draw, (_LEFT, top - height(_SMALL) - 4), printable(names[1]), _SMALL)
    across = printable(names[0])
    write(draw, (_LEFT + _SIZE - width(across, _SMALL), bottom + 4 + height(_SMALL)), across, _SMALL)
    return sheet


def _shade(share: float) -> Colour:
    """From pale to dark blue; a few turns are still seen beside many."""
    deep = share**0.5
    return round(190 - 170 * deep), round(210 - 150 * deep), round(240 - 100 * deep)


def _range(values: Sequence[float]) -> tuple[float, float, float]:
    """A range of round numbers around all values, and the step of its ticks."""
    low, high = min(values), max(values)
    span = max(high - low, 1e-2)
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= span / 5 * (1 - 1e-9))
    return math.floor(low / step) * step, (math.floor(high / step) + 1) * step, step
