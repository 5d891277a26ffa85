"""Small critics for the tests of heads and PopArt."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_vlmq.heads import Critic, EmbeddingCritic, MLPCritic, TokenCritic
from lightning_vlmq.normalisation import PopArt, Standardise

D, V = 12, 20
ONE = torch.ones(1, 1, dtype=torch.bool)


def mlp() -> MLPCritic:
    torch.manual_seed(0)
    return MLPCritic(D, V, width=16)


def over_embeddings() -> EmbeddingCritic:
    torch.manual_seed(0)
    return EmbeddingCritic(D, torch.randn(V, 8), width=16)


HEADS = [mlp, over_embeddings]
heads = pytest.mark.parametrize("make", HEADS)


def fresh(head: TokenCritic, **popart: float) -> Critic:
    """A critic as training starts it."""
    return Critic(head, PopArt(**popart), Standardise(D))


def trained(make: Callable[[], TokenCritic], **popart: float) -> Critic:
    """A critic whose values are not near zero, whose target lags behind, and whose statistics have moved."""
    critic = fresh(make(), **popart)
    with torch.no_grad():
        for parameter in critic.online.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    critic.ema_update(0.5)
    critic.observe(
        3 * hidden(1, 2) + 1, torch.tensor([[3.0, -40.0]]), torch.ones(1, 2, dtype=torch.bool), torch.ones(1)
    )
    critic.commit()
    return critic


def hidden(*shape: int) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1))
