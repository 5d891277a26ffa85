"""Batches of a DataModule as Lightning takes them."""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_vlmq.batches import TokenBatch

__all__ = ["loader"]


def loader(batches: Callable[[], Iterator[TokenBatch]], length: int) -> DataLoader[TokenBatch]:
    """Hands out ``length`` whole batches an epoch."""
    # A generator of its own: a loader draws a number for each epoch, and the global one must stand where it stood when
    # the epoch before was saved.
    return DataLoader(_Batches(batches, length), batch_size=None, generator=torch.Generator())


class _Batches(IterableDataset[TokenBatch]):
    """Whole batches, made in the training process: an iterable is never re-sampled by Lightning."""

    def __init__(self, batches: Callable[[], Iterator[TokenBatch]], length: int) -> None:
        self.batches = batches
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[TokenBatch]:
        return itertools.islice(self.batches(), self.length)
