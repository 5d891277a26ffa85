"""A function of many rows, computed for some rows at a time: what it makes of all of them never stands at once."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["CHUNK", "in_chunks"]

T = TypeVar("T")

CHUNK = 2**22
"""Numbers that a chunk may have in a tensor of logits: 16 MB in float32, of which there are a handful at a time."""


def in_chunks(
    function: Callable[..., T], *rows: Tensor, width: int, layers: Callable[[], Sequence[nn.Module]] | None = None
) -> T:
    """``function(*rows)``, some rows at a time; with more than one chunk its backward pass computes each chunk again.

    Args:
        function: Makes of n rows n rows: a tensor, or a (nested, named) tuple of tensors and ``None``. Without anything
            random. What needs no gradient should come last, as it is not computed again.
        rows: Tensors with equally many rows.
        width: Numbers that it makes of a row, such as the vocabulary's size.
        layers: Names modules that the function runs once a chunk. The gradient of a linear layer's weight among them is
            summed in place: each chunk's own, which is as large as the weight, would stand beside the sum.
    """
    size = max(1, CHUNK // width)
    # of shapes all at once: on these, beside a mode that counts tensors, checkpoint damages the heap (torch 2.13)
    if len(rows[0]) <= size or isinstance(rows[0], FakeTensor):
        return function(*rows)
    parts = list(zip(*(torch.split(each, size) for each in rows), strict=True))
    if not torch.is_grad_enabled():
        return cast(T, _together([function(*part) for part in parts]))
    linear = [part for layer in (layers() if layers else ()) for part in layer.modules() if type(part) is nn.Linear]
    sums = [_Sum(part, len(parts)) for part in linear if part.weight.requires_grad]

    def of_chunk(*part: Tensor) -> T:
        with contextlib.ExitStack() as stack:
            for each in sums:
                stack.enter_context(each.in_place())
            return function(*part)

    again = [checkpoint(of_chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return cast(T, _together(again))


def _together(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    whole = map(_together, zip(*parts, strict=True))
    return type(first)(*whole) if hasattr(first, "_fields") else tuple(whole)


class _Sum:
    """The gradient of a linear layer's weight over chunks."""

    def __init__(self, layer: nn.Linear, chunks: int) -> None:
        self._layer = layer
        self._left = chunks
        self._sum: Tensor | None = None

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the layer's gradient goes into the sum."""
        part: Any = self._layer
        apply: Any = _Linear.apply
        part.forward = lambda x: apply(x, part.weight, part.bias, self)
        try:
            yield
        finally:
            del part.forward

    def add(self, x: Tensor, grad: Tensor, weight: Tensor) -> Tensor | None:
        """Takes in a chunk's; hands the sum over with the last one."""
        if self._sum is None:
            self._sum = torch.zeros_like(weight)
        size = max(1, CHUNK // weight.shape[1])
        for part, of_part in zip(self._sum.split(size), grad.split(size, dim=-1), strict=True):  # type: ignore[no-untyped-call]
            part += of_part.T @ x
        self._left -= 1
        if self._left:
            return None
        whole, self._sum = self._sum, None  # whoever takes it need not copy it
        return whole


class _Linear(Function):
    """A linear layer of rows ``[n, D]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, total: _Sum) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.total = total
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads  # of the type in which the product was computed
        of_x = (grad @ weight.to(grad.dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        of_bias = grad.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return of_x, ctx.total.add(x.to(grad.dtype), grad, weight), of_bias, None
