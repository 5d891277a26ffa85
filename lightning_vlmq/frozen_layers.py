"""Layers below the first adapted one: with and without the adapter they compute the same, so once is enough."""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["layers_below_adapter", "noted", "repeated"]


def layers_below_adapter(decoder: nn.Module) -> list[nn.Module]:
    """Layers of a language model, in order, up to the first in which something is adapted or trained.

    None where something outside of the layers is, token embeddings for instance.
    """
    layers = {
        int(found[1]): module
        for name, module in decoder.named_modules()
        if name.count("layers.") == 1 and (found := re.fullmatch(r"(?:.*\.)?layers\.(\d+)", name))
    }
    trained = {id(p) for p in decoder.parameters() if p.requires_grad}
    if trained - {id(p) for layer in layers.values() for p in layer.parameters()}:
        return []
    in_order = (layer for _, layer in sorted(layers.items()))
    return list(itertools.takewhile(lambda layer: trained.isdisjoint(map(id, layer.parameters())), in_order))


@contextlib.contextmanager
def noted(layers: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Within this context the layers run as in inference, without dropout; yields the list of what they return."""
    outputs: list[Any] = []
    modes = [(part, part.training) for layer in layers for part in layer.modules()]

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(_copied(output))

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(note).remove)
        for part, training in modes:
            stack.callback(setattr, part, "training", training)
            part.training = False
        yield outputs


@contextlib.contextmanager
def repeated(layers: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Within this context each layer returns what was noted of it, whatever it is given."""
    with contextlib.ExitStack() as stack:
        for layer, output in zip(layers, outputs, strict=True):
            stack.callback(delattr, layer, "forward")
            layer.forward = _returning(output)
        yield


def _returning(output: Any) -> Callable[..., Any]:
    return lambda *_, **__: output


def _copied(output: Any) -> Any:
    """The tensors of an output, apart from it: some families add to a layer's output in place."""
    if isinstance(output, Tensor):
        return output.detach().clone()
    assert isinstance(output, tuple)
    return tuple(each.detach().clone() if isinstance(each, Tensor) else each for each in output)
