"""The token critic: heads from hidden states to values of tokens, and the moving-average target.

Everything here computes in float32 whatever the VLM's precision: steps of .008 vanish in bfloat16.
"""

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vlmq.normalisation import Float32, PopArt, Standardise

__all__ = ["Critic", "EmbeddingCritic", "MLPCritic", "TokenCritic"]


class TokenCritic(Float32):
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
        token_embeddings: Of the base VLM ``[V, E]``, of which one normalised copy is kept; or what returns them where
            they stand for good: then only their mean and lengths are kept. Either stays out of checkpoints, and the
            target critic shares it.
        width: Hidden units.
        layers: Hidden layers.
    """

    def __init__(
        self, hidden_size: int, token_embeddings: Tensor | Callable[[], Tensor], width: int = 400, layers: int = 1
    ) -> None:
        super().__init__()
        self.tokens: _CopiedEmbeddings | _SharedEmbeddings
        if isinstance(token_embeddings, Tensor):
            self.tokens, size = _CopiedEmbeddings(token_embeddings), token_embeddings.shape[1]
        else:
            self.tokens, size = _SharedEmbeddings(token_embeddings), token_embeddings().shape[1]
        self.body = _body(hidden_size, width, layers)
        self.value = nn.Linear(width, 1, dtype=torch.float32)
        self.direction = nn.Linear(width, size, dtype=torch.float32)
        for layer in (self.value, self.direction):
            nn.init.normal_(layer.weight, std=1e-2)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """Raw values; with ``ids`` only their embeddings are read."""
        with torch.autocast(h.device.type, enabled=False):
            z = self.body(h.float())
            direction = self.direction(z)
            if ids is None:
                return self.value(z) + self.tokens.products(direction)  # type: ignore[no-any-return]
            return self.value(z) + torch.einsum("...d,...kd->...k", direction, self.tokens.of(ids))  # type: ignore[no-any-return]

    def frozen_parts(self) -> list[nn.Module]:
        """The token embeddings."""
        return [self.tokens]


class _CopiedEmbeddings(nn.Module):
    """Token embeddings ``[V, E]``, centred, rows of norm 1; no parameter, not in checkpoints.

    A module, not a bare buffer: one that is shared moves to a device once, a shared tensor would be copied twice.
    """

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        rows = embeddings.detach().float()
        rows = rows - rows.mean(0)
        self.rows: Tensor
        self.register_buffer("rows", rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-6), persistent=False)

    def of(self, ids: Tensor) -> Tensor:
        """Rows of tokens ``[..., E]``."""
        return self.rows[ids]

    def products(self, direction: Tensor) -> Tensor:
        """Products of directions ``[..., E]`` with all rows ``[..., V]``."""
        return direction @ self.rows.T


class _SharedEmbeddings(nn.Module):
    """The same of weights that stand elsewhere: what has the vocabulary's size here is one number a token.

    Args:
        weights: Returns them ``[V, E]``; they never change.
    """

    def __init__(self, weights: Callable[[], Tensor]) -> None:
        super().__init__()
        self._weights = weights
        self.mean: Tensor
        self.lengths: Tensor
        self.register_buffer("mean", weights().detach().mean(0, dtype=torch.float32), persistent=False)
        lengths = torch.cat([part.norm(dim=-1) for part in self._centred()])
        self.register_buffer("lengths", lengths.clamp(min=1e-6), persistent=False)

    def _centred(self) -> Iterator[Tensor]:
        """Some rows at a time."""
        return (part.float() - self.mean for part in torch.split(self._weights().detach(), 2**13))

    def of(self, ids: Tensor) -> Tensor:
        """Rows of tokens ``[..., E]``."""
        return (self._weights().detach()[ids].float() - self.mean) / self.lengths[ids].unsqueeze(-1)

    def products(self, direction: Tensor) -> Tensor:
        """Products of directions ``[..., E]`` with all rows ``[..., V]``."""
        return torch.cat([direction @ part.T for part in self._centred()], dim=-1) / self.lengths


class Critic(nn.Module):
    """Critic head, its frozen moving average, and the statistics that both share.

    Args:
        head: The critic; the target is a deep copy of it.
        popart: Statistics of the targets.
        inputs: Statistics of the hidden states.
    """

    def __init__(self, head: TokenCritic, popart: PopArt, inputs: Standardise) -> None:
        super().__init__()
        self.online = head
        shared: dict[int, Any] = {id(part): part for part in head.frozen_parts()}
        self.target = copy.deepcopy(head, shared).requires_grad_(False)
        self.popart = popart
        self.inputs = inputs

    def q_normalised(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """The critic's normalised predictions ``[..., K]`` or ``[..., V]``: what the loss compares."""
        return self.popart.scale(self.online(self.inputs(h), ids))

    def q(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """Q in units of reward ``[..., K]`` or ``[..., V]``."""
        return self.popart.denormalise(self.q_normalised(h, ids))

    @torch.no_grad()
    def q_target(self, h: Tensor, ids: Tensor | None = None) -> Tensor:
        """The target critic's Q in units of reward ``[..., K]`` or ``[..., V]``; no gradient."""
        return self.popart.denormalise(self.popart.scale(self.target(self.inputs(h), ids)))

    @torch.no_grad()
    def observe(self, h: Tensor, targets: Tensor, mask: Tensor, weight: Tensor) -> None:
        """Collects the statistics of a micro-batch; nothing moves yet.

        Args:
            h: Hidden states ``[B, T, D]``.
            targets: ``[B, T]``, in units of reward.
            mask: True at tokens that count ``[B, T]``.
            weight: Of the turns ``[B]``; of 0, a turn does not count.
        """
        self.popart.observe(targets, mask, weight)
        self.inputs.observe(h[mask & (weight != 0).unsqueeze(-1)])

    def commit(self) -> None:
        """Moves both statistics, once an optimiser step."""
        self.popart.commit()
        self.inputs.commit()

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
