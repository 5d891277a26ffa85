"""A small VLM in plain PyTorch that knows nothing of transformers: other names, another shape, no batches.

It reads one conversation at a time, a list of token ids and pictures. Attention and MLP stand side by side, places are
learned, one linear layer makes queries, keys and values, and what it says is scaled.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

__all__ = ["Block", "Eye", "Network", "pixels"]

Piece = list[int] | Tensor
"""Token ids, or a picture's pixels ``[3, S, S]``."""
Recall = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes the keys and values of new places and gives those of all."""


def pixels(picture: Image.Image, side: int) -> Tensor:
    """A picture as the eye takes it ``[3, S, S]``, from -1 to 1."""
    small = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1).float() / 127.5 - 1


class Eye(nn.Module):
    """Pixels ``[..., 3, S, S]`` to one state a patch ``[..., N, D]``."""

    def __init__(self, width: int, side: int, patch: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, width, patch, stride=patch)
        self.spots = nn.Parameter(torch.randn((side // patch) ** 2, width) / 4)
        self.mix = nn.Linear(width, width)

    def forward(self, seen: Tensor) -> Tensor:
        patches = self.cut(seen).flatten(-2).transpose(-1, -2)
        return patches + self.mix(torch.tanh(patches + self.spots))


class Block(nn.Module):
    """States ``[..., S, D]``; attention and MLP read the same and are added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.ask = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, allowed: Tensor, recall: Recall | None = None) -> Tensor:
        y = self.norm(x)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in self.ask(y).chunk(3, dim=-1)
        )
        if recall is not None:
            key, value = recall(key, value)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        seen = scores.masked_fill(~allowed.unsqueeze(-3), float("-inf")).softmax(-1) @ value
        return x + self.out(seen.transpose(-2, -3).flatten(-2)) + self.down(torch.tanh(self.up(y)))


class Network(nn.Module):
    """The whole: eye, words, places, blocks, and what it says."""

    loudness = 0.5

    def __init__(self, words: int, width: int = 32, depth: int = 2, heads: int = 2, side: int = 32, patch: int = 8):
        super().__init__()
        self.eye = Eye(width, side, patch)
        self.words = nn.Parameter(torch.randn(words, width) / 2)
        self.places = nn.Parameter(torch.randn(1024, width) / 2)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.say = nn.Linear(width, words)

    def read(self, pieces: Sequence[Piece]) -> Tensor:
        """Last states ``[S, D]`` of a conversation."""
        x = torch.cat([self.words[piece] if isinstance(piece, list) else self.eye(piece) for piece in pieces])
        x = x + self.places[: len(x)]
        for block in self.blocks:
            x = block(x, torch.ones(len(x), len(x), dtype=torch.bool).tril())
        return self.norm(x)

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """Scores ``[S, V]`` of each next token."""
        return self.say(self.read(pieces)) * self.loudness

    def reply(self, pieces: Sequence[Piece], limit: int, stop: Sequence[int], never: Sequence[int]) -> list[int]:
        """The likeliest tokens behind a conversation, one after the other."""
        said: list[int] = []
        while len(said) < limit and not (said and said[-1] in stop):
            scores = self([*pieces, said] if said else pieces)[-1]
            scores[list(never)] = float("-inf")
            said.append(int(scores.argmax()))
        return said
