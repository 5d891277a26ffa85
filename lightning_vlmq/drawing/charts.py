"""Bar charts of shares with error bars, drawn by Pillow alone."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from lightning_vlmq.drawing.text import font

__all__ = ["Bar", "Panel", "Series", "bar_chart"]

_FINE = 2  # drawn so many times larger and shrunk: smooth edges
_LEFT, _RIGHT, _TOP, _LINE = 76, 24, 52, 20
_PLOT, _HEADROOM, _GAP = 220, 24, 34
_BAR, _BAR_GAP, _GROUP_GAP = 40, 8, 44
_NARROWEST = 760
_INK, _GRID = "#333333", "#dddddd"


@dataclass(frozen=True, slots=True)
class Series:
    """Bars of one kind, one in each group at most.

    Attributes:
        name: What the legend says.
        colour: As Pillow takes it.
        hatched: True draws stripes on white instead of a plain bar.
    """

    name: str
    colour: str
    hatched: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A share, 0 to 1, with the ends of its interval."""

    series: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart among several that share groups and series.

    Attributes:
        title: What is drawn.
        y_label: What it is a share of.
        groups: The bars of each group.
    """

    title: str
    y_label: str
    groups: Sequence[Sequence[Bar]]


def bar_chart(
    title: str, series: Sequence[Series], groups: Sequence[str], panels: Sequence[Panel], x_label: str
) -> Image.Image:
    """Draws panels below each other, each with an axis from 0 to 100 %.

    Args:
        title: Of the whole picture.
        series: What bars there are; the legend.
        groups: Names of the groups.
        panels: The charts.
        x_label: What the groups are.
    """
    slots = [_slot(max(len(panel.groups[i]) for panel in panels)) for i in range(len(groups))]
    width = max(_NARROWEST, _LEFT + sum(slots) + _RIGHT)
    spare = (width - _LEFT - _RIGHT - sum(slots)) / len(slots)
    edges = list(itertools.accumulate((slot + spare for slot in slots), initial=float(_LEFT)))
    names = [_wrapped(name, slot + spare - 10) for name, slot in zip(groups, slots, strict=True)]
    legend = _legend_places(series, width)
    top = _TOP + _LINE * (1 + max(row for _, row in legend)) + 14
    below = _LINE * max(len(lines) for lines in names) + 8
    step = _GAP + _PLOT + below
    canvas = _Canvas(width, top + step * len(panels) + _LINE + 6)
    canvas.text(width / 2, 28, title, 19, "ms")
    for each, (x, row) in zip(series, legend, strict=True):
        y = _TOP + _LINE * row
        canvas.bar(x, y, x + 14, y + 14, each)
        canvas.text(x + 20, y + 7, each.name, 13, "lm")
    for number, panel in enumerate(panels):
        _draw_panel(canvas, top + _GAP + step * number, panel, series, edges, names)
    canvas.text((_LEFT + width - _RIGHT) / 2, canvas.height - 12, x_label, 14, "ms")
    return canvas.finished()


def _draw_panel(
    canvas: "_Canvas",
    top: float,
    panel: Panel,
    series: Sequence[Series],
    edges: Sequence[float],
    names: Sequence[Sequence[str]],
) -> None:
    bottom, left, right = top + _PLOT, edges[0], edges[-1]

    def height(share: float) -> float:
        return bottom - share * (_PLOT - _HEADROOM)

    canvas.text(left, top - 12, panel.title, 15, "ls")
    canvas.upright(18, (top + bottom) / 2, panel.y_label, 14)
    for percent in range(0, 101, 20):
        y = height(percent / 100)
        canvas.line(left, y, right, y, _INK if percent == 0 else _GRID)
        canvas.text(left - 8, y, f"{percent} %", 12, "rm")
    canvas.line(left, top, left, bottom, _INK)
    for bars, edge, after, lines in zip(panel.groups, edges[:-1], edges[1:], names, strict=True):
        middle = (edge + after) / 2
        start = middle - (_slot(len(bars)) - _GROUP_GAP) / 2
        for place, bar in enumerate(bars):
            x = start + place * (_BAR + _BAR_GAP)
            centre = x + _BAR / 2
            stub = min(height(bar.share), bottom - 3)  # at 0 %, too, one sees whose bar it is
            canvas.bar(x, stub, x + _BAR, bottom, series[bar.series])
            canvas.line(centre, height(bar.low), centre, height(bar.high), _INK, 1.5)
            for end in (bar.low, bar.high):
                canvas.line(centre - 5, height(end), centre + 5, height(end), _INK, 1.5)
            canvas.text(centre, height(bar.high) - 5, _percent(bar.share), 12, "ms")
        for number, line in enumerate(lines):
            canvas.text(middle, bottom + 5 + _LINE * number, line, 13, "ma")


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _slot(bars: int) -> int:
    """Width of a group."""
    return bars * _BAR + (bars - 1) * _BAR_GAP + _GROUP_GAP


def _legend_places(series: Sequence[Series], width: float) -> list[tuple[float, int]]:
    """Left end and row of each entry, as many in a row as fit."""
    places, x, row = [], float(_LEFT), 0
    for each in series:
        needed = 20 + _length(each.name)
        if x > _LEFT and x + needed > width - _RIGHT:
            x, row = float(_LEFT), row + 1
        places.append((x, row))
        x += needed + 24
    return places


def _length(text: str) -> float:
    """Of a name, in pixels of the finished picture."""
    return font(13 * _FINE).getlength(text) / _FINE


def _wrapped(text: str, width: float) -> list[str]:
    """Lines of a name, broken behind its separators; a part that is too long is shortened."""
    lines = [""]
    for part in re.findall(r"[^-_/ ]*[-_/ ]?", text):
        while part and _length(part) > width:
            part = part.rstrip("…")[:-1] + "…"
        if lines[-1] and _length(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return lines


class _Canvas:
    """A white picture whose coordinates are pixels of the finished one."""

    def __init__(self, width: float, height: float) -> None:
        self.height = height
        self._image = Image.new("RGB", (round(width * _FINE), round(height * _FINE)), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: float, y: float, text: str, size: int, anchor: str) -> None:
        self._draw.text((x * _FINE, y * _FINE), text, _INK, font(size * _FINE), anchor)

    def upright(self, x: float, y: float, text: str, size: int) -> None:
        """Text from bottom to top, centred."""
        drawn = font(size * _FINE)
        label = Image.new("RGB", (round(drawn.getlength(text)) + 4, round(1.4 * size * _FINE)), "white")
        ImageDraw.Draw(label).text((label.width / 2, label.height / 2), text, _INK, drawn, "mm")
        turned = label.transpose(Image.Transpose.ROTATE_90)
        self._image.paste(turned, (round(x * _FINE - turned.width / 2), round(y * _FINE - turned.height / 2)))

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str, width: float = 1) -> None:
        self._draw.line([value * _FINE for value in (x0, y0, x1, y1)], colour, round(width * _FINE))

    def bar(self, x0: float, y0: float, x1: float, y1: float, series: Series) -> None:
        left, upper, right, lower = (round(value * _FINE) for value in (x0, y0, x1, y1))
        fill = Image.new("RGB", (right - left, lower - upper), "white" if series.hatched else series.colour)
        pen, stripe = ImageDraw.Draw(fill), 6 * _FINE
        if series.hatched:
            for start in range(-fill.height - stripe, fill.width, stripe):
                pen.line([start, fill.height, start + fill.height, 0], series.colour, 2 * _FINE)
            if fill.height > stripe:  # an outline would hide the stripes of a low one
                pen.rectangle([0, 0, fill.width - 1, fill.height - 1], outline=series.colour, width=2 * _FINE)
        self._image.paste(fill, (left, upper))

    def finished(self) -> Image.Image:
        size = (self._image.width // _FINE, self._image.height // _FINE)
        return self._image.resize(size, Image.Resampling.LANCZOS)
