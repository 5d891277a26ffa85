"""MoonDream2 as its public code describes it, one conversation at a time, over weights by their published names.

Written apart from the package: patches by ``unfold``, one matrix for queries, keys and values, rotations as complex
numbers, tiles put together by who owns a place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["features", "logits"]

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"model.{name}.weight"].T + w[f"model.{name}.bias"]


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"model.{name}.weight"], w[f"model.{name}.bias"])


def mlp(w: Weights, name: str, x: Tensor) -> Tensor:
    inner = linear(w, f"{name}.fc1", x)
    inner = 0.5 * inner * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)))
    return linear(w, f"{name}.fc2", inner)


def attention(w: Weights, name: str, x: Tensor, heads: int, allowed: Tensor | None, turned: int = 0) -> Tensor:
    """Of states ``[S, D]``; the first ``turned`` dimensions of a head are rotated by place."""
    query, key, value = (part.unflatten(-1, (heads, -1)) for part in linear(w, f"{name}.qkv", x).chunk(3, dim=-1))
    scores = torch.einsum("shd,thd->hst", query[..., turned:], key[..., turned:])
    if turned:
        half = turned // 2
        speed = 10000.0 ** -(torch.arange(half) / half)
        turn = torch.polar(torch.ones(len(x), 1, half), (torch.arange(len(x)).unsqueeze(-1) * speed).unsqueeze(1))
        spun = [
            torch.complex(p[..., :half].contiguous(), p[..., half:turned].contiguous()) * turn for p in (query, key)
        ]
        scores = scores + torch.einsum("shd,thd->hst", spun[0], spun[1].conj()).real
    scores = scores / query.shape[-1] ** 0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    seen = torch.einsum("hst,thd->shd", scores.softmax(-1), value).flatten(1)
    return linear(w, f"{name}.proj", seen)


def features(w: Weights, tiles: Tensor, rows: int, columns: int, *, patch: int, margin: int) -> Tensor:
    """Of one picture ``[N, D]``: as a whole, then ``rows`` x ``columns`` overlapping tiles."""
    seen = []
    for tile in tiles[: 1 + rows * columns]:
        x = linear(w, "vision.patch_emb", F.unfold(tile[None], patch, stride=patch)[0].T) + w["model.vision.pos_emb"][0]
        for block in ("vision.blocks.0", "vision.blocks.1"):
            x = x + attention(w, f"{block}.attn", norm(w, f"{block}.ln1", x), 2, None)
            x = x + mlp(w, f"{block}.mlp", norm(w, f"{block}.ln2", x))
        seen.append(norm(w, "vision.post_ln", x))
    grid = int(len(seen[0]) ** 0.5)
    step = grid - 2 * margin

    def owner(place: int, count: int) -> int:
        return min(max((place - margin) // step, 0), count - 1)

    stitched = torch.stack(
        [
            seen[1 + owner(y, rows) * columns + owner(x, columns)][
                (y - owner(y, rows) * step) * grid + x - owner(x, columns) * step
            ]
            for y in range(rows * step + 2 * margin)
            for x in range(columns * step + 2 * margin)
        ]
    ).unflatten(0, (rows * step + 2 * margin, -1))
    shrunk = F.adaptive_avg_pool2d(stitched.permute(2, 0, 1), grid).flatten(1).T
    return mlp(w, "vision.proj_mlp", torch.cat([seen[0], shrunk], dim=-1))


def logits(w: Weights, begin: int, pictures: Sequence[Tensor], ids: Sequence[int]) -> Tensor:
    """Of the beginning, pictures in front of all text, and the text ``[S, V]``."""
    words = w["model.text.wte"]
    x = torch.cat([words[begin][None], *pictures, words[list(ids)]])
    allowed = torch.ones(len(x), len(x), dtype=torch.bool).tril()
    prefix = 1 + sum(map(len, pictures)) if pictures else 0
    allowed[:prefix, :prefix] = True
    for block in ("text.blocks.0", "text.blocks.1"):
        y = norm(w, f"{block}.ln", x)
        x = x + attention(w, f"{block}.attn", y, 2, allowed, turned=y.shape[-1] // 4) + mlp(w, f"{block}.mlp", y)
    return linear(w, "text.lm_head", norm(w, "text.post_ln", x))
