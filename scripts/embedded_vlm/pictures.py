"""Generated pictures with the facts that questions ask about: numbers, words, cards, shapes, grids, widgets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from scripts.embedded_vlm.canvas import Canvas
from scripts.embedded_vlm.tables import cards, deck, hands
from scripts.embedded_vlm.texts import digits, labels, page, words
from scripts.embedded_vlm.worlds import grid, shapes, view, widgets

__all__ = ["DENSE_SHARES", "MIDDLE_SHARES", "SHARES", "WHOLE_SHARES", "Scene", "make_scene"]

SHARES = {"labels": 0.36, "words": 0.12, "cards": 0.24, "shapes": 0.09, "grid": 0.12, "widgets": 0.07}
"""Share of each kind of picture."""


MIDDLE_SHARES = {"digits": 0.33, "page": 0.32, "deck": 0.2, "labels": 0.1, "grid": 0.05}
"""The start of the classification stage: big digits, pages of text, tables full of cards."""

DENSE_SHARES = {"digits": 0.15, "page": 0.4, "deck": 0.17, "labels": 0.18, "words": 0.05, "grid": 0.05}
"""Its middle: text of all kinds on nearly every patch."""

WHOLE_SHARES = {
    "digits": 0.04,
    "page": 0.22,
    "deck": 0.08,
    "labels": 0.3,
    "cards": 0.1,
    "words": 0.1,
    "grid": 0.07,
    "shapes": 0.03,
    "widgets": 0.06,
}
"""Its end: mostly pictures of the kinds that questions are asked about."""


@dataclass(slots=True)
class Scene:
    """A picture and what is true of it.

    Attributes:
        kind: Key of :data:`SHARES`; hands are cards, an agent's view is a grid.
        image: RGB picture after the processor's resize ``[256, 256, 3]`` uint8.
        labels: Classes of the patches ``[heads, 16, 16]``.
        facts: What questions may ask, by kind.
    """

    kind: str
    image: np.ndarray
    labels: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


_MAKERS: dict[str, Callable[[Random], tuple[Canvas, dict[str, Any]]]] = {
    "digits": digits,
    "page": page,
    "deck": deck,
    "labels": labels,
    "words": words,
    "cards": cards,
    "hands": hands,
    "shapes": shapes,
    "grid": grid,
    "view": view,
    "widgets": widgets,
}


def make_scene(rng: Random, kind: str | None = None, shares: dict[str, float] = SHARES) -> Scene:
    """Draw a random picture.

    Args:
        rng: Source of randomness.
        kind: Which; drawn by ``shares`` if missing.
        shares: Weights of the kinds.

    Returns:
        The picture, its labels and facts.
    """
    kind = kind or rng.choices(list(shares), list(shares.values()))[0]
    canvas, facts = _MAKERS[kind](rng)
    image, labels = canvas.finish()
    return Scene({"hands": "cards", "view": "grid"}.get(kind, kind), image, labels, facts)
