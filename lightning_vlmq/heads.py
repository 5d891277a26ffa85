"""The token critic: heads from hidden states to values of tokens, PopArt, and the moving-average target.

Everything here computes in float32 whatever the VLM's precision: steps of 5e-4 and .008 vanish in bfloat16.
"""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

__all__ = ["Critic", "EmbeddingCritic", "MLPCritic", "PopArt", "TokenCritic"]


class TokenCritic(nn.Module):
    """A head from hidden states to one number a token, before PopArt's scale."""

    def frozen_parts(self) -> list[nn.Module]:
        """Submodules without parameters that a target critic shares instead of copying."""
        return []

    def forward(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """Raw values.

        Args:
            h: Hidden states ``[..., D]``.
            ids: Tokens ``[..., K]``; ``None`` for the whole vocabulary.

        Returns:
            ``[..., K]`` or ``[..., V]``, float32.
        """
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return cast(Self, super()._apply(_keep_float32(fn), recurse))  # type: ignore[no-untyped-call]


class MLPCritic(TokenCritic):
    """The paper's critic: an MLP from D to V.

    The output layer starts near zero, so that tokens that are never trained start at the normalised mean, not at random
    values. They keep that value: PopArt preserves it when the mean moves, so expectations leave rare tokens out.

    Args:
        hidden_size: D.
        vocab_size: V.
        width: Hidden units.
        layers: Hidden layers.
    """

    def __init__(self, hidden_size: int, vocab_size: int, width: int = 400, layers: int = 1) -> None:
        super().__init__()
        self.body = _body(hidden_size, width, layers)
        self.out = nn.Linear(width, vocab_size, dtype=torch.float32)
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """Raw values; with ``ids`` only their rows of the output layer are read."""
        with torch.autocast(h.device.type, enabled=False):
            z = self.body(h.float())
            if ids is None:
                return self.out(z)  # type: ignore[no-any-return]
            return torch.einsum("...d,...kd->...k", z, self.out.weight[ids]) + self.out.bias[ids]


class EmbeddingCritic(TokenCritic):
    """Values over frozen token embeddings: Q(h)[v] = u(z) + m(z) . E_v, z the MLP's hidden layer.

    No matrix of size V is trained, and tokens with like embeddings share value (ours).

    Args:
        hidden_size: D.
        token_embeddings: Of the base VLM ``[V, E]``; kept as one normalised copy that checkpoints leave out and the
            target critic shares.
        width: Hidden units.
        layers: Hidden layers.
    """

    def __init__(self, hidden_size: int, token_embeddings: Tensor, width: int = 400, layers: int = 1) -> None:
        super().__init__()
        self.tokens = _FrozenEmbeddings(token_embeddings)
        self.body = _body(hidden_size, width, layers)
        self.value = nn.Linear(width, 1, dtype=torch.float32)
        self.direction = nn.Linear(width, token_embeddings.shape[1], dtype=torch.float32)
        for layer in (self.value, self.direction):
            nn.init.normal_(layer.weight, std=1e-2)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """Raw values; with ``ids`` only their embeddings are read."""
        with torch.autocast(h.device.type, enabled=False):
            z = self.body(h.float())
            direction = self.direction(z)
            if ids is None:
                return self.value(z) + direction @ self.embeddings.T  # type: ignore[no-any-return]
            return self.value(z) + torch.einsum("...d,...kd->...k", direction, self.embeddings[ids])  # type: ignore[no-any-return]

    @property
    def embeddings(self) -> Tensor:
        """Normalised token embeddings ``[V, E]``."""
        return self.tokens.rows

    def frozen_parts(self) -> list[nn.Module]:
        """The token embeddings."""
        return [self.tokens]


class _FrozenEmbeddings(nn.Module):
    """Token embeddings ``[V, E]``, centred, rows of norm 1; no parameter, not in checkpoints.

    A module, not a bare buffer: one that is shared moves to a device once, a shared tensor would be copied twice.
    """

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        rows = embeddings.detach().float()
        rows = rows - rows.mean(0)
        self.rows: Tensor
        self.register_buffer("rows", rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-6), persistent=False)


class PopArt(nn.Module):
    """Normalises targets by running statistics and preserves outputs when these move (van Hasselt 2016).

    A scalar affine (w, b) stands between the critic's raw output x and its normalised prediction w x + b; the value is
    sigma (w x + b) + mu. When mu and sigma move, w and b are rescaled so that values stay the same, and the output
    layer is never touched. All five are buffers that no optimiser sees, shared by the critic and its target.

    Args:
        step: Step size of the statistics (paper: 5e-4); bias-corrected, counted from 2, since a first step of
            size 1 would erase ``init``.
        init: Second moment to start from (paper: 100).
        enabled: False leaves values as they are.
    """

    def __init__(self, step: float = 5e-4, init: float = 100.0, enabled: bool = True) -> None:
        super().__init__()
        self.step = step
        self.enabled = enabled
        self.mu: Tensor
        self.nu: Tensor
        self.count: Tensor
        self.w: Tensor
        self.b: Tensor
        self.pending: Tensor
        self.register_buffer("mu", torch.tensor(0.0, dtype=torch.float32))
        self.register_buffer("nu", torch.tensor(init, dtype=torch.float32))
        self.register_buffer("count", torch.tensor(1, dtype=torch.long))
        self.register_buffer("w", torch.tensor(1.0, dtype=torch.float32))
        self.register_buffer("b", torch.tensor(0.0, dtype=torch.float32))
        # sums over turns of weight, weight x mean target, weight x mean squared target since the last commit
        self.register_buffer("pending", torch.zeros(3, dtype=torch.float32))

    @property
    def sigma(self) -> Tensor:
        """Scale, sqrt(clip(nu - mu^2, 1e-4, 1e8)); 1 when disabled."""
        if not self.enabled:
            return torch.ones_like(self.mu)
        return (self.nu - self.mu.square()).clamp(1e-4, 1e8).sqrt()

    def scale(self, x: Tensor) -> Tensor:
        """Normalised predictions w x + b of raw outputs."""
        return self.w * x + self.b

    def normalise(self, y: Tensor) -> Tensor:
        """(y - mu) / sigma."""
        return (y - self.mu) / self.sigma

    def denormalise(self, y: Tensor) -> Tensor:
        """Sigma y + mu, in units of reward."""
        return y * self.sigma + self.mu

    @torch.no_grad()
    def observe(self, targets: Tensor, mask: Tensor, weight: Tensor | None = None) -> None:
        """Takes targets in without moving yet; each turn counts once, spread over its tokens.

        Args:
            targets: ``[B, T]``.
            mask: True at tokens that count ``[B, T]``.
            weight: Of the turns ``[B]``.
        """
        if not self.enabled:
            return
        if weight is not None:
            mask = mask & (weight != 0).unsqueeze(-1)  # a turn of weight 0 may hold anything
        tokens = mask.sum(-1)
        used = (tokens > 0).float() if weight is None else (tokens > 0) * weight.float()
        targets = torch.where(mask, targets.float(), 0.0)
        size = tokens.clamp(min=1)
        mean, square = targets.sum(-1) / size, targets.square().sum(-1) / size
        self.pending += torch.stack([used.sum(), (used * mean).sum(), (used * square).sum()])

    @torch.no_grad()
    def commit(self) -> None:
        """Moves the statistics by what was observed on all ranks, once an optimiser step; values stay the same."""
        if not self.enabled:
            return
        pending = self.pending.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(pending)
        self.pending.zero_()
        if pending[0] <= 0:
            return
        mean, square = pending[1] / pending[0], pending[2] / pending[0]
        self.count += 1
        step = self.step / (1 - (1 - self.step) ** int(self.count))
        old_mu, old_sigma = self.mu.clone(), self.sigma
        self.mu += step * (mean - self.mu)
        self.nu += step * (square - self.nu)
        new_sigma = self.sigma
        self.w *= old_sigma / new_sigma
        self.b.copy_((old_sigma * self.b + old_mu - self.mu) / new_sigma)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return cast(Self, super()._apply(_keep_float32(fn), recurse))  # type: ignore[no-untyped-call]


class Critic(nn.Module):
    """Critic head, its frozen moving average, and the statistics that both share.

    Args:
        head: The critic; the target is a deep copy of it.
        popart: Statistics.
    """

    def __init__(self, head: TokenCritic, popart: PopArt) -> None:
        super().__init__()
        self.online = head
        shared: dict[int, Any] = {id(part): part for part in head.frozen_parts()}
        self.target = copy.deepcopy(head, shared).requires_grad_(False)
        self.popart = popart

    def q_normalised(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """The critic's normalised predictions ``[..., K]`` or ``[..., V]``: what the loss compares."""
        return self.popart.scale(self.online(h, ids))

    def q(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """Q in units of reward ``[..., K]`` or ``[..., V]``."""
        return self.popart.denormalise(self.q_normalised(h, ids))

    @torch.no_grad()
    def q_target(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """The target critic's Q in units of reward ``[..., K]`` or ``[..., V]``; no gradient."""
        return self.popart.denormalise(self.popart.scale(self.target(h, ids)))

    @torch.no_grad()
    def ema_update(self, tau: float) -> None:
        """C-bar <- (1 - tau) C-bar + tau C."""
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.lerp_(fast, tau)


def _body(hidden_size: int, width: int, layers: int) -> nn.Sequential:
    """Hidden layers, in float32 also where the default type is another."""
    if layers < 1:
        raise ValueError(f"layers {layers}: a critic has at least one hidden layer")
    sizes = [hidden_size] + [width] * layers
    return nn.Sequential(*(m for a, b in pairwise(sizes) for m in (nn.Linear(a, b, dtype=torch.float32), nn.SiLU())))


def _keep_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``module.to(bfloat16)`` and ``half()`` then move devices only.

    The original is moved, not the converted tensor turned back: that would round every value to bfloat16.
    """

    def convert(tensor: Tensor) -> Tensor:
        converted = fn(tensor)
        return converted if converted.dtype == tensor.dtype else tensor.to(converted.device)

    return convert
