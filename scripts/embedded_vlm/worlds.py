"""Pictures of shapes, grid worlds and small pages with widgets."""

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Box, Door, Goal, Key, Wall, WorldObj
from PIL import Image

from scripts.embedded_vlm.canvas import COLOUR_IDS, KIND_IDS, Canvas, random_font
from scripts.embedded_vlm.looks import contrasting, draw_size, shade
from scripts.embedded_vlm.words import COLOURS, NOUNS, WIDGET_WORDS

__all__ = ["GRID_COLOURS", "agents_view", "from_agent", "grid", "shapes", "sides", "view", "widgets"]

GRID_COLOURS = {
    "yellow": (255, 255, 0),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "purple": (112, 39, 195),
    "grey": (100, 100, 100),
}
"""Of things in grid worlds."""


def _polygon(kind: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Corners of a shape around ``(x, y)``."""
    if kind == "triangle":
        return [(x, y - r), (x + r, y + r), (x - r, y + r)]
    if kind == "diamond":
        return [(x, y - r), (x + r * 0.75, y), (x, y + r), (x - r * 0.75, y)]
    if kind == "cross":
        a = r * 0.35
        return [
            (x - a, y - r),
            (x + a, y - r),
            (x + a, y - a),
            (x + r, y - a),
            (x + r, y + a),
            (x + a, y + a),
            (x + a, y + r),
            (x - a, y + r),
            (x - a, y + a),
            (x - r, y + a),
            (x - r, y - a),
            (x - a, y - a),
        ]
    angles = [(-90 + 36 * i, r if i % 2 == 0 else 0.42 * r) for i in range(10)]
    return [(x + d * np.cos(np.deg2rad(a)), y + d * np.sin(np.deg2rad(a))) for a, d in angles]


def shapes(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """Coloured shapes in the cells of a loose 3 x 3 raster."""
    width, height = draw_size(rng)
    background, _, _ = contrasting(rng)
    canvas = Canvas(width, height, background)
    items: list[tuple[str, str, int, int]] = []
    for cell in rng.sample(range(9), rng.choices([1, 2, 3, 4, 5], [0.2, 0.3, 0.25, 0.15, 0.1])[0]):
        column, row = cell % 3, cell // 3
        kind = rng.choice(["circle", "square", "triangle", "star", "diamond", "cross"])
        colour = rng.choice(
            [c for c in COLOURS if max(abs(a - b) for a, b in zip(COLOURS[c], background, strict=True)) > 80]
        )
        r = rng.uniform(0.06, 0.155) * min(width, height)
        x = (column + 0.5) * width / 3 + rng.uniform(-1, 1) * max(0.0, width / 6 - r)
        y = (row + 0.5) * height / 3 + rng.uniform(-1, 1) * max(0.0, height / 6 - r)
        box, fill = (x - r, y - r, x + r, y + r), shade(rng, colour)
        if kind == "circle":
            canvas.draw.ellipse(box, fill=fill)
        elif kind == "square":
            canvas.draw.rectangle(box, fill=fill)
        else:
            canvas.draw.polygon(_polygon(kind, x, y, r), fill=fill)
        canvas.mark(box, kind=KIND_IDS[kind], colour=COLOUR_IDS[colour])
        items.append((kind, colour, column, row))
    return canvas, {"shapes": items}


Cell = tuple[int, int]
Cells = dict[Cell, tuple[str, str]]

_AHEAD = {"right": (1, 0), "down": (0, 1), "left": (-1, 0), "up": (0, -1)}

_COLOURS = ("red", "green", "blue", "purple", "yellow", "grey")

_THINGS: dict[str, Callable[[str], WorldObj]] = {
    "wall": Wall,
    "goal": lambda _: Goal(),
    "ball": Ball,
    "box": Box,
    "key": Key,
    "door_open": lambda colour: Door(colour, is_open=True),
    "door_closed": Door,
    "door_locked": lambda colour: Door(colour, is_locked=True),
}


def grid(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """A grid world of 8 x 8 tiles: walls around, things and a triangular agent inside."""
    cells, agent, facing = _world(rng)
    lit = {(agent[0] + dx, agent[1] + dy) for dx in range(-3, 4) for dy in range(-3, 4)}
    canvas = _drawn(cells, agent, facing, rng.choice([28, 32, 32, 36]), 8, lit if rng.random() < 0.5 else set())
    return canvas, {"cells": _things(cells), "agent": agent, "facing": facing, "beside": _beside(cells, agent, facing)}


def view(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """What an agent in such a world sees: 7 x 7 tiles, itself at the bottom, facing up; often padded to 8 x 8."""
    world, agent, facing = _world(rng, 10)
    canvas, facts = agents_view(world, agent, facing, side=rng.choice([7, 8, 8, 8]), tile=rng.choice([28, 28, 32]))
    return canvas, facts | {"beside": _beside(world, agent, facing)}


def agents_view(world: Cells, agent: Cell, facing: str, *, side: int, tile: int) -> tuple[Canvas, dict[str, Any]]:
    """A world as its agent sees it, from tiles of so many pixels, padded to a side of 8 or not (7)."""
    (fx, fy), own = _AHEAD[facing], (3, side - 1)
    cells: Cells = {}
    for ahead, right in itertools.product(range(7), range(-3, 4)):
        place = (agent[0] + ahead * fx - right * fy, agent[1] + ahead * fy + right * fx)
        if place in world:
            cells[own[0] + right, own[1] - ahead] = world[place]
    lit = _seen(cells, own, side)
    cells = {place: thing for place, thing in cells.items() if place in lit}
    canvas = _drawn(cells, own, "up", tile, side, lit)
    if side == 8:  # the padding has no lines
        canvas.draw.rectangle((0, 0, 8 * tile, tile - 1), fill=(0, 0, 0))
        canvas.draw.rectangle((7 * tile, 0, 8 * tile, 8 * tile), fill=(0, 0, 0))
    return canvas, {"cells": _things(cells), "agent": own, "facing": "up", "walls": False}


def _world(rng: Random, most: int = 8) -> tuple[Cells, Cell, str]:
    """What stands where, the agent's place and direction; at ``most`` so many things and agents."""
    cells: Cells = {}
    wall = [(x, y) for x in range(8) for y in range(8) if x in (0, 7) or y in (0, 7)]
    if rng.random() < 0.4:
        split = rng.randint(2, 5)
        wall += [(split, y) for y in range(1, 7)] if rng.random() < 0.5 else [(x, split) for x in range(1, 7)]
    for cell in wall:
        cells[cell] = ("grey", "wall")
    inside = [(x, y) for x in range(1, 7) for y in range(1, 7) if (x, y) not in cells]
    if len(wall) > 28 and rng.random() < 0.8:
        cells[rng.choice(wall[28:])] = (rng.choice(_COLOURS), rng.choice(["door_open", "door_closed", "door_locked"]))
    if rng.random() < 0.3:
        cells[rng.choice(wall[:28])] = (rng.choice(_COLOURS), "door_closed")
    places = rng.sample(inside, rng.randint(2, most))
    agent = places.pop()
    for place in places:
        cells[place] = _thing(rng)
    facing = rng.choice(list(_AHEAD))
    # by chance there is something beside the agent too rarely for it to be learned
    for place, share in zip(sides(agent, facing), (0.5, 0.2, 0.2), strict=True):
        if place in inside and place not in cells and rng.random() < share:
            cells[place] = _thing(rng)
    return cells, agent, facing


def _thing(rng: Random) -> tuple[str, str]:
    thing = rng.choice(["key", "ball", "box", "ball", "box", "key", "goal"])
    return ("green" if thing == "goal" else rng.choice(_COLOURS)), thing


def from_agent(place: Cell, agent: Cell, facing: str) -> Cell:
    """How many tiles a place lies ahead of the agent, and how many to its right."""
    (fx, fy), dx, dy = _AHEAD[facing], place[0] - agent[0], place[1] - agent[1]
    return fx * dx + fy * dy, fx * dy - fy * dx


def sides(agent: Cell, facing: str) -> tuple[Cell, Cell, Cell]:
    """The cells ahead of the agent, to its left and to its right."""
    (x, y), (fx, fy) = agent, _AHEAD[facing]
    return (x + fx, y + fy), (x + fy, y - fx), (x - fy, y + fx)


def _beside(cells: Cells, agent: Cell, facing: str) -> list[tuple[str, str] | None]:
    """What stands ahead of the agent, to its left and to its right."""
    return [cells.get(place) for place in sides(agent, facing)]


def _things(cells: Cells) -> Cells:
    return {place: thing for place, thing in cells.items() if thing[1] != "wall"}


def _seen(cells: Cells, agent: Cell, side: int) -> set[Cell]:
    """Cells of a view that no wall or shut door hides: those reached from the agent, and what bounds them."""
    seen, front = {agent}, [agent]
    while front:
        x, y = front.pop()
        if cells.get((x, y), ("", ""))[1] in ("wall", "door_closed", "door_locked"):
            continue
        for place in itertools.product((x - 1, x, x + 1), (y - 1, y, y + 1)):
            if place not in seen and 0 <= place[0] < 7 and side - 7 <= place[1] < side:
                seen.add(place)
                front.append(place)
    return seen


def _drawn(cells: Cells, agent: Cell, facing: str, tile: int, side: int, lit: set[Cell]) -> Canvas:
    """A picture of ``side`` x ``side`` tiles as minigrid draws them; lit ones are brighter."""
    canvas = Canvas(side * tile, side * tile, (0, 0, 0))
    for x, y in itertools.product(range(side), range(side)):
        here = (x, y) == agent
        cell = None if here else cells.get((x, y))
        drawn = Grid.render_tile(
            cell and _THINGS[cell[1]](cell[0]), tuple(_AHEAD).index(facing) if here else None, (x, y) in lit, tile
        )
        a, b = x * tile, y * tile
        canvas.image.paste(Image.fromarray(drawn.astype(np.uint8)), (a, b))
        kind, colour = (f"agent_{facing}", "red") if here else (cell[1], cell[0]) if cell else ("", "")
        if kind:
            canvas.mark((a + 1, b + 1, a + tile - 1, b + tile - 1), kind=KIND_IDS[kind], colour=COLOUR_IDS[colour])
    return canvas


def widgets(rng: Random) -> tuple[Canvas, dict[str, Any]]:
    """A small page: buttons, ticked and empty boxes, tabs, links and fields with small text."""
    width, height = rng.choice([(498, 321), (321, 498), (300, 300), (332, 214)])
    canvas = Canvas(width, height, (255, 255, 255))
    draw = canvas.draw
    words = rng.sample(WIDGET_WORDS + NOUNS, 10)
    items: list[tuple[str, str]] = []
    y = rng.uniform(3, 20)
    size = rng.randint(13, 18)
    font, _ = random_font(rng, size)
    if rng.random() < 0.4:
        x = 6.0
        for _ in range(rng.randint(2, 3)):
            word = words.pop().capitalize()
            length = font.getlength(word) + 16
            draw.rectangle((x, y, x + length, y + size * 1.7), outline=(120, 120, 120), fill=(230, 230, 230))
            canvas.mark((x, y, x + length, y + size * 1.7), kind=KIND_IDS["tab"])
            canvas.text(x + 8, y + 3, word, font, "black")
            items.append(("tab", word))
            x += length + 3
        y += size * 2.6
    while y < height - 40 and len(words) > 2 and len(items) < 7:
        kind = rng.choice(["button", "button", "checkbox_on", "checkbox_off", "link", "field"])
        word = words.pop()
        word = word if rng.random() < 0.4 else word.capitalize()
        x = rng.uniform(5, width * 0.4)
        length = font.getlength(word)
        if kind == "button":
            box = (x, y, x + length + 20, y + size * 1.8)
            draw.rounded_rectangle(box, 3, fill=(225, 225, 225), outline=(110, 110, 110))
            canvas.mark(box, kind=KIND_IDS[kind])
            canvas.text(x + 10, y + size * 0.3, word, font, "black")
        elif kind in ("checkbox_on", "checkbox_off"):
            box = (x, y, x + size, y + size)
            draw.rectangle(box, outline=(60, 60, 60), fill=(255, 255, 255), width=1)
            if kind == "checkbox_on":
                draw.rectangle(box, fill=(0, 110, 235))
                draw.line(
                    [(x + 3, y + size * 0.5), (x + size * 0.42, y + size * 0.8), (x + size - 2, y + 3)],
                    fill="white",
                    width=2,
                )
            canvas.text(x + size + 6, y - 2, word, font, "black")
            canvas.mark(box, kind=KIND_IDS[kind])
        elif kind == "link":
            canvas.text(x, y, word, font, "blue", fill=(0, 0, 238))
            draw.line((x, y + size * 1.15, x + length, y + size * 1.15), fill=(0, 0, 238))
        else:
            box = (x + length + 8, y - 2, x + length + 90, y + size * 1.5)
            draw.rectangle(box, outline=(120, 120, 120))
            canvas.text(x, y, word, font, "black")
            canvas.mark(box, kind=KIND_IDS[kind])
        items.append((kind, word))
        y += size * rng.uniform(2.1, 3.0)
    return canvas, {"widgets": items}
