"""Pictures for TensorBoard: records of what is to be seen, and pure functions that draw them with Pillow."""

from lightning_vlmq.drawing.film import Frame, Strip, draw_film
from lightning_vlmq.drawing.plane import draw_plane
from lightning_vlmq.drawing.text import elide
from lightning_vlmq.drawing.tokens import Alternative, Cell, Reply, advantage_colour, draw_tokens

__all__ = [
    "Alternative",
    "Cell",
    "Frame",
    "Reply",
    "Strip",
    "advantage_colour",
    "draw_film",
    "draw_plane",
    "draw_tokens",
    "elide",
]
