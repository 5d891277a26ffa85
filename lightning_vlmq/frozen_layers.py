"""Layers below the first adapted one: with and without the adapter they compute the same, so once is enough.

So it is for a pass in training and one in inference, where nothing is dropped out.
"""

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["drops_out", "layers_below_adapter", "layers_in_order", "noted", "repeated"]


def drops_out(model: nn.Module) -> bool:
    """Whether some part drops something out in training: a layer of dropout, or a probability of its own."""
    return any(
        ("drop" in name or (name == "p" and isinstance(part, _DropoutNd))) and isinstance(value, float) and value > 0
        for part in model.modules()
        for name, value in vars(part).items()
    )


def layers_in_order(decoder: nn.Module) -> list[nn.Module]:
    """Layers of a language model."""
    layers = {
        int(found[1]): module
        for name, module in decoder.named_modules()
        if name.count("layers.") == 1 and (found := re.fullmatch(r"(?:.*\.)?layers\.(\d+)", name))
    }
    return [layer for _, layer in sorted(layers.items())]


def layers_below_adapter(decoder: nn.Module) -> list[nn.Module]:
    """Layers of a language model, in order, up to the first in which something is adapted or trained.

    None where something outside of the layers is, token embeddings for instance.
    """
    layers = layers_in_order(decoder)
    trained = {id(p) for p in decoder.parameters() if p.requires_grad}
    if trained - {id(p) for layer in layers for p in layer.parameters()}:
        return []
    return list(itertools.takewhile(lambda layer: trained.isdisjoint(map(id, layer.parameters())), layers))


@contextlib.contextmanager
def noted(layers: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Within this context the layers run as in inference, without dropout; yields a list for the last one's output."""
    outputs: list[Any] = []
    modes = [(part, part.training) for layer in layers for part in layer.modules()]

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        # a copy: some families add to a layer's output in place
        outputs.append(_each_tensor(output, lambda tensor: tensor.detach().clone()))

    with contextlib.ExitStack() as stack:
        for layer in layers[-1:]:
            stack.callback(layer.register_forward_hook(note).remove)
        for part, training in modes:
            stack.callback(setattr, part, "training", training)
            part.training = False
        yield outputs


@contextlib.contextmanager
def repeated(layers: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Within this context the last layer returns what was noted of it; those below, which nobody reads then, zeros."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(delattr, layer, "forward")
            layer.forward = functools.partial(_repeat, outputs[0], layer is layers[-1])
        yield


def _repeat(output: Any, is_last: bool, *_: Any, **__: Any) -> Any:
    return output if is_last else _each_tensor(output, torch.zeros_like)


def _each_tensor(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A layer's output, a tensor or a tuple with tensors, with each of them changed."""
    if isinstance(output, Tensor):
        return change(output)
    assert isinstance(output, tuple)
    return tuple(change(each) if isinstance(each, Tensor) else each for each in output)
