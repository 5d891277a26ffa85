"""Running statistics of the critic: PopArt for its targets, standardised inputs.

Both collect within an accumulation and move once an optimiser step, by what all ranks saw. Everything here computes in
float32 whatever the VLM's precision: steps of 5e-4 vanish in bfloat16.
"""

from collections.abc import Callable
from typing import Self, cast

import torch
from torch import Tensor, nn

__all__ = ["Float32", "PopArt", "Standardise"]


class Float32(nn.Module):
    """A module that stays in float32: ``to(bfloat16)`` and ``half()`` only move it between devices."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            # the original is moved, not the converted tensor turned back: that would round every value to bfloat16
            return converted if converted.dtype == tensor.dtype else tensor.to(converted.device)

        return cast(Self, super()._apply(convert, recurse))  # type: ignore[no-untyped-call]


class _Running(Float32):
    """Statistics that collect in ``pending``, a weight and weighted sums, and move once an optimiser step.

    Args:
        sums: Number of sums.
        step: Step size, bias-corrected by ``count``.
        count: Steps that the initial statistics count for.
        enabled: False collects nothing.
    """

    def __init__(self, sums: int, step: float, count: int, enabled: bool) -> None:
        super().__init__()
        self.step = step
        self.enabled = enabled
        self.count: Tensor
        self.pending: Tensor
        self.register_buffer("count", torch.tensor(count, dtype=torch.long))
        self.register_buffer("pending", torch.zeros(1 + sums, dtype=torch.float32))

    @torch.no_grad()
    def commit(self) -> None:
        """Moves the statistics by what was observed on all ranks, once an optimiser step."""
        if not self.enabled:
            return
        pending = self.pending.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(pending)
        self.pending.zero_()
        if pending[0] <= 0:
            return
        self.count += 1
        self._move(pending[1:] / pending[0], self.step / (1 - (1 - self.step) ** int(self.count)))

    def _move(self, means: Tensor, step: float) -> None:
        raise NotImplementedError


class PopArt(_Running):
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
        # sums over turns of weight x mean target, weight x mean squared target
        super().__init__(2, step, 1, enabled)
        self.mu: Tensor
        self.nu: Tensor
        self.w: Tensor
        self.b: Tensor
        self.register_buffer("mu", torch.tensor(0.0, dtype=torch.float32))
        self.register_buffer("nu", torch.tensor(init, dtype=torch.float32))
        self.register_buffer("w", torch.tensor(1.0, dtype=torch.float32))
        self.register_buffer("b", torch.tensor(0.0, dtype=torch.float32))

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

    def _move(self, means: Tensor, step: float) -> None:
        """Values stay the same."""
        mean, square = means
        old_mu, old_sigma = self.mu.clone(), self.sigma
        self.mu += step * (mean - self.mu)
        self.nu += step * (square - self.nu)
        new_sigma = self.sigma
        self.w *= old_sigma / new_sigma
        self.b.copy_((old_sigma * self.b + old_mu - self.mu) / new_sigma)


class Standardise(_Running):
    """Standardises hidden states, dimension by dimension, by running means and variances.

    Some dimensions of a language model's hidden states are far from zero or vary far more than others, and the ones
    that tell states apart are among the small ones: a critic on raw states learns these late.

    Args:
        size: D, the width of the hidden states.
        step: Step size of the statistics; bias-corrected, so that the first batch sets them.
        enabled: False leaves the states as they are.
    """

    def __init__(self, size: int, step: float = 0.01, enabled: bool = True) -> None:
        # sums over states of their deviations from the mean and of these squared
        super().__init__(2 * size, step, 0, enabled)
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float32))
        self.register_buffer("variance", torch.ones(size, dtype=torch.float32))

    def forward(self, h: Tensor) -> Tensor:
        """Standardised hidden states ``[..., D]``, float32."""
        if not self.enabled:
            return h.float()
        return (h.float() - self.mean) / (self.variance + 1e-5).sqrt()

    @torch.no_grad()
    def observe(self, h: Tensor) -> None:
        """Takes hidden states ``[N, D]`` in without moving yet."""
        if self.enabled:
            deviation = h.float() - self.mean
            number = deviation.new_tensor([len(h)])
            self.pending += torch.cat([number, deviation.sum(0), deviation.square().sum(0)])

    def _move(self, means: Tensor, step: float) -> None:
        moved, square = means.chunk(2)
        self.mean += step * moved
        # about the mean of before, then about the new one: no difference of large numbers
        self.variance += step * (square - self.variance) - (step * moved).square()
        self.variance.clamp_(min=0)
