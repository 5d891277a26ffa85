"""Models whose weights are shapes without numbers: a step on them takes neither memory nor time worth mentioning.

Weights are PyTorch's fake tensors. What decides the way through a step, ids and masks, keeps its numbers: an operation
on numbers alone computes, one that any shape takes part in only says how large its result is.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText
from transformers.initialization import no_init_weights

__all__ = ["drop_numbers", "made_of_shapes", "network_of_shapes", "shapes", "without_numbers"]

_fake = FakeTensorMode(allow_non_fake_inputs=True)
_asked_for = False


@contextlib.contextmanager
def shapes() -> Iterator[None]:
    """Within this context models are loaded as shapes, and whatever they compute may meet masks with numbers.

    What operations keep for a backward pass is what they keep on a GPU, also where shapes stand for a CPU's tensors.
    """
    global _asked_for
    before, _asked_for = _asked_for, True
    try:
        with _AsOnAGPU(), _Counted():  # type: ignore[no-untyped-call]
            yield
    finally:
        _asked_for = before


def made_of_shapes() -> bool:
    """Whether models are to be loaded as shapes."""
    return _asked_for


def without_numbers(tensor: Tensor) -> bool:
    """Whether a tensor is a shape only."""
    return isinstance(tensor, FakeTensor)


def network_of_shapes(config: Any, dtype: torch.dtype, *, four_bit: bool = False) -> Any:
    """A Hugging Face model of shapes, made from its configuration alone.

    Args:
        config: Of the model.
        dtype: Of its weights.
        four_bit: The linear layers of the language model in 4 bits, as bitsandbytes keeps them.
    """
    with _fake, no_init_weights():
        network: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        network.tie_weights()
    if four_bit:
        _round_to_4_bits(network, dtype)
    return network


def drop_numbers(module: nn.Module) -> None:
    """Makes shapes of a module's floating-point weights and buffers; those that are shared stay shared."""
    known: dict[int, Any] = {}
    for part in module.modules():
        own: dict[str, Any]
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is not None and tensor.is_floating_point() and not without_numbers(tensor):
                    if id(tensor) not in known:
                        known[id(tensor)] = _shape_of(tensor)
                    own[name] = known[id(tensor)]


def _shape_of(tensor: Tensor) -> Tensor:
    with _fake:
        shape = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape


def _round_to_4_bits(network: Any, dtype: torch.dtype) -> None:
    """Puts a language model's linear layers into NF4 with double quantisation: half a byte a weight, and its scales."""
    # imported here: the library probes for a GPU when it is imported
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit  # type: ignore[attr-defined]

    class Rounded(Linear4bit):
        """bitsandbytes' layer as it stands on a GPU, but for the rounding, which needs numbers."""

        def __init__(self, linear: nn.Linear) -> None:
            nn.Linear.__init__(self, linear.in_features, linear.out_features, bias=False, device="meta")
            number, small = linear.weight.numel(), (torch.uint8, torch.float32)
            blocks = -(-number // 64)
            with _fake:
                packed = torch.empty(-(-number // 2), 1, dtype=small[0])
                self.register_buffer("absmax", torch.empty(blocks, dtype=small[0]))
                self.register_buffer("absmax_of_absmax", torch.empty(-(-blocks // 256), dtype=small[1]))
                self.register_buffer("code_of_absmax", torch.empty(256, dtype=small[1]))
                self.register_buffer("code", torch.empty(16, dtype=small[1]))
                self.register_buffer("offset", torch.empty((), dtype=small[1]))
            self.weight = nn.Parameter(packed, requires_grad=False)
            self.bias = linear.bias
            made: Any = QuantState  # it comes without types
            outer = made(self.absmax_of_absmax, code=self.code_of_absmax, blocksize=256, dtype=torch.float32)
            state = made(
                self.absmax, linear.weight.shape, self.code, 64, "nf4", dtype, offset=self.offset, state2=outer
            )
            for name, value in {"quant_state": state, "compress_statistics": True, "quant_type": "nf4"}.items():
                setattr(self.weight, name, value)
            self.quant_state, self.quant_storage = state, torch.uint8
            self.compute_dtype, self.compute_type_is_set = dtype, True
            self.support_avx512bf16_for_cpu = False  # packs the weights on a CPU

    for parent in list(network.get_decoder().modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Linear:
                setattr(parent, name, Rounded(module))
    network.is_loaded_in_4bit = True  # what peft asks


class _Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shapes cannot be taken by a mask, since its numbers decide how large the result is: takes them by places."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in ("index", "index_put", "index_put_", "_index_put_impl_"):
            args = (args[0], _places(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


class _AsOnAGPU(TorchFunctionMode):
    """Dropout keeps a byte a number there; on a CPU it keeps factors in the type of its input."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return (_dropout if func is nn.functional.dropout else func)(*args, **(kwargs or {}))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, train=True)[0] if training and p > 0 else input


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices without masks."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not without_numbers(index):
            found.extend(index.nonzero(as_tuple=True))
        else:
            found.append(index)
    return found
