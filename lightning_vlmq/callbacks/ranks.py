"""What ranks tell each other, beyond tensors."""

from typing import TypeVar

import torch.distributed

__all__ = ["of_all_ranks"]

_T = TypeVar("_T")


def of_all_ranks(mine: _T) -> list[_T]:
    """Each rank's object, by rank; all ranks must call it."""
    if not torch.distributed.is_initialized():
        return [mine]
    ranks = [mine] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, mine)
    return ranks
