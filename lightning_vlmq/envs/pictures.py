"""Pictures for environments: cached text, and PNG encoding that does the same picture only once."""

import functools
import hashlib
import io
from collections import OrderedDict
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

__all__ = ["Picture", "encode_png", "text_sprite"]

Picture: TypeAlias = npt.NDArray[np.uint8]
"""RGB picture, ``[height, width, 3]``, 0 to 255."""

_CACHE_BYTES = 32 * 1024 * 1024


@functools.lru_cache(maxsize=2048)
def text_sprite(text: str, size: int) -> Picture:
    """Draw one line of bold black text on white with Pillow's own scalable font.

    Args:
        text: The text.
        size: Font size in pixels.

    Returns:
        Read-only picture ``[1.25 size, width of the ink, 3]``; all texts of a size share a baseline.
    """
    font, stroke = ImageFont.load_default(size), max(1, round(size / 40))
    left, _, right, _ = font.getbbox(text, stroke_width=stroke, anchor="ls")
    # A stroke makes it bold: the default font has no bold face. Base line at 1.0, so that descenders fit in .25.
    image = Image.new("RGB", (int(right - left) + 1, round(1.25 * size)), "white")
    ImageDraw.Draw(image).text(
        (-left, size), text, font=font, fill="black", anchor="ls", stroke_width=stroke, stroke_fill="black"
    )
    sprite = np.asarray(image, dtype=np.uint8).copy()
    sprite.flags.writeable = False
    return sprite


class _PngCache:
    """Encoded pictures by content, the least recently used dropped first; bounded in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._encoded: OrderedDict[bytes, bytes] = OrderedDict()

    def encode(self, picture: Picture) -> bytes:
        """Encode a picture, or return what was encoded before."""
        pixels = np.ascontiguousarray(picture)
        # SHA-256 has processor instructions: half the time of blake2b on 270 KB.
        digest = hashlib.sha256(pixels.data, usedforsecurity=False)
        digest.update(f"{pixels.shape}".encode())
        key = digest.digest()
        encoded = self._encoded.get(key)
        if encoded is not None:
            self._encoded.move_to_end(key)
            return encoded
        buffer = io.BytesIO()
        # Lossless whatever the level: 1 is several times faster than the standard 6 at a few KB more.
        Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
        encoded = self._encoded[key] = buffer.getvalue()
        self._size += len(encoded)
        while self._size > self._limit:
            self._size -= len(self._encoded.popitem(last=False)[1])
        return encoded


_png_cache = _PngCache(_CACHE_BYTES)


def encode_png(picture: Picture) -> bytes:
    """Encode a picture as PNG, lossless; equal pictures are encoded once (the cache holds at most 32 MiB).

    Args:
        picture: RGB picture ``[height, width, 3]``.

    Returns:
        The bytes of the PNG file.
    """
    return _png_cache.encode(picture)
