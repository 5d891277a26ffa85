"""Random changes of training pictures, for environments that show few distinct ones."""

import functools
import hashlib
import io
from typing import Any, Protocol

import numpy as np
from PIL import Image

__all__ = ["Augmentation", "RandomZoomOut"]


class Augmentation(Protocol):
    """Anything that changes a picture at random."""

    def __call__(self, image: bytes, rng: np.random.Generator) -> bytes:
        """Returns a picture of the same size and meaning, as PNG bytes."""
        ...


class RandomZoomOut:
    """Shrinks a picture and puts it, whole, at a random place of a canvas of its own size and border colour.

    An agent that sees few distinct pictures learns where things stand in them; this one must read. Nothing is cut
    off. A picture has ``variants`` variants, the first one is the picture itself, so that image features are
    computed once for each of them: use it where pictures repeat.

    Args:
        scale: Smallest and largest share of the side.
        variants: Variants of each picture.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, scale: tuple[float, float] = (0.6, 1.0), variants: int = 16) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale {tuple(scale)} must be two shares of the side, 0 < smallest <= largest <= 1")
        if variants < 1:
            raise ValueError(f"variants must be at least 1, not {variants}")
        self.scale = (float(scale[0]), float(scale[1]))
        self.variants = variants

    def __call__(self, image: bytes, rng: np.random.Generator) -> bytes:
        """Returns one of the picture's variants, as PNG bytes."""
        return self.variant(image, int(rng.integers(self.variants)))

    def variant(self, image: bytes, number: int) -> bytes:
        """Returns the variant of that number, the same each time; 0 is the picture itself."""
        return image if number == 0 else _zoomed_out(image, number, self.scale)


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
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _border_colour(pixels: "np.ndarray[Any, np.dtype[np.uint8]]") -> tuple[int, int, int]:
    """Median colour of the outermost pixels."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(value) for value in np.median(border, axis=0))
    return red, green, blue
