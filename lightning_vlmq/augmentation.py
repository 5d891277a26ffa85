"""Random changes of training pictures, for environments that show few distinct ones."""

import functools
import hashlib
import io
from typing import Protocol

import numpy as np
from PIL import Image

from lightning_vlmq.envs.pictures import Picture, encode_png

__all__ = ["Augmentation", "RandomZoomOut"]


class Augmentation(Protocol):
    """Anything that changes a picture at random."""

    def __call__(self, image: bytes, rng: np.random.Generator) -> bytes:
        """Returns a picture of the same size and meaning, as PNG bytes."""
        ...


class RandomZoomOut:
    """Shrinks a picture and puts it, whole, at a random place of a canvas of its own size and border colour.

    An agent that sees few distinct pictures learns where things stand in them; this one must read. Nothing is cut
    off. A picture has so many variants and no more, so that image features are computed once for each of them: use
    it where pictures repeat.

    Args:
        scale: Smallest and largest share of the side.
        p: Probability of a change.
        variants: Variants of each picture, beside itself.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, scale: tuple[float, float] = (0.6, 1.0), p: float = 0.5, variants: int = 16) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale {tuple(scale)} must be two shares of the side, 0 < smallest <= largest <= 1")
        if not 0 <= p <= 1:
            raise ValueError(f"p must be a probability, not {p}")
        if variants < 1:
            raise ValueError(f"variants must be at least 1, not {variants}")
        self.scale = (float(scale[0]), float(scale[1]))
        self.p = p
        self.variants = variants

    def __call__(self, image: bytes, rng: np.random.Generator) -> bytes:
        """Returns the picture itself or one of its variants, as PNG bytes."""
        change, number = rng.random() < self.p, int(rng.integers(self.variants))
        return self.variant(image, number) if change else image

    def variant(self, image: bytes, number: int) -> bytes:
        """Returns the variant of that number, the same each time."""
        return _zoomed_out(image, number, self.scale)


@functools.lru_cache(maxsize=4096)
def _zoomed_out(image: bytes, number: int, scale: tuple[float, float]) -> bytes:
    # by the picture's content, so that another run finds its features in the cache
    rng = np.random.default_rng([int.from_bytes(hashlib.sha256(image).digest()[:8], "big"), number])
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    share = rng.uniform(*scale)
    width, height = (max(1, round(side * share)) for side in picture.size)
    place = (int(rng.integers(picture.width - width + 1)), int(rng.integers(picture.height - height + 1)))
    canvas = Image.new("RGB", picture.size, _border_colour(np.asarray(picture)))
    canvas.paste(picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0), place)
    return encode_png(np.asarray(canvas))


def _border_colour(pixels: Picture) -> tuple[int, int, int]:
    """Median colour of the outermost pixels."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(value) for value in np.median(border, axis=0))
    return red, green, blue
