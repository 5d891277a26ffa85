"""Random sizes, colours, spellings and numbers of the generated pictures."""

from random import Random
from typing import Any

from scripts.embedded_vlm.words import COLOURS

__all__ = ["contrasting", "draw_number", "draw_size", "shade", "spell"]


def contrasting(rng: Random) -> tuple[tuple[int, int, int], str, tuple[int, int, int]]:
    """Choose a background and a text colour that stands out: RGB, name of the text colour, its RGB."""
    mode = rng.random()
    if mode < 0.78:
        background = (255, 255, 255)
    elif mode < 0.88:
        background = tuple(rng.randint(205, 255) for _ in range(3))
    elif mode < 0.92:
        background = tuple(rng.randint(0, 50) for _ in range(3))
    else:
        background = tuple(rng.randint(0, 255) for _ in range(3))
    if mode < 0.88 and rng.random() < 0.85:
        return background, "black", tuple(rng.randint(0, 30) for _ in range(3))  # type: ignore[return-value]
    for _ in range(20):
        name = rng.choice(list(COLOURS))
        rgb = shade(rng, name)
        if abs(_luma(rgb) - _luma(background)) > 70:
            return background, name, rgb  # type: ignore[return-value]
    dark = _luma(background) > 127
    return background, ("black" if dark else "white"), (COLOURS["black"] if dark else COLOURS["white"])  # type: ignore[return-value]


def _luma(rgb: Any) -> float:
    return 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]


def shade(rng: Random, name: str, spread: int = 18) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in COLOURS[name])
    return red, green, blue


def spell(rng: Random, word: str) -> str:
    """Write a word capitalised, in lower or in upper case."""
    mode = rng.random()
    return word.capitalize() if mode < 0.65 else word if mode < 0.85 else word.upper()


def draw_size(rng: Random) -> tuple[int, int]:
    """Size of a picture: mostly 300 x 300, sometimes another one."""
    if rng.random() < 0.7:
        return 300, 300
    return rng.choice([(256, 256), (224, 224), (320, 320), (400, 400), (498, 321), (321, 498), (360, 300)])


def draw_number(rng: Random) -> int:
    return rng.randint(0, 9) if rng.random() < 0.72 else rng.randint(0, 99)
