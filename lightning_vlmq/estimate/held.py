"""Memory that tensors hold, counted while they come and go: what a GPU's allocator would count."""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Held", "size"]

_BLOCK = 512
"""Bytes to which PyTorch's allocator for GPUs rounds up."""


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context every result of an operation counts, once a storage, until nothing refers to it.

    Also shapes without numbers count, by the memory that they would take.

    Attributes:
        now: Bytes held at present.
        peak: Most bytes held so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that are there already."""
        for tensor in tensors:
            self._note(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._note(each)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        taken = _rounded(storage.nbytes())

        def gone(_: Any) -> None:
            del self._known[key]
            self.now -= taken

        self._known[key] = weakref.ref(storage, gone)
        self.now += taken
        self.peak = max(self.peak, self.now)


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes that tensors take on a GPU, once a storage."""
    storages = {storage._cdata: storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(map(_rounded, storages.values()))


def _rounded(number: int) -> int:
    return -(-number // _BLOCK) * _BLOCK
