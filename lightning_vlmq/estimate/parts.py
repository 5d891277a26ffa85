"""What stands on a GPU all the time of a fit: weights by part, gradients, the optimiser's state."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_vlmq.estimate.held import size
from lightning_vlmq.modules import VLMQ
from lightning_vlmq.modules.optim import groups_of, make_optimizer

__all__ = ["Part", "optimizer_of", "states_of", "tensors_of", "weights_by_part", "weights_of"]


class Part(NamedTuple):
    """A part of a module.

    Attributes:
        name: Of the part.
        trained: Parameters that are trained.
        frozen: Parameters that are not.
        bytes: Memory of both and of what stands beside them.
    """

    name: str
    trained: int
    frozen: int
    bytes: int


def weights_by_part(module: VLMQ) -> list[Part]:
    """Parameters and memory of a module's parts, each weight in one of them."""
    vlm, critic = module.vlm, module.critic
    head = vlm.hf.get_output_embeddings()
    in_adapter = {id(p) for name, p in vlm.named_parameters() if "lora_" in name or "modules_to_save" in name}
    parts = {
        "language model": [*weights_of(vlm.hf.get_decoder()), *weights_of(head)],
        "vision tower, connector": weights_of(vlm),
        "critic": weights_of(critic.online),
        "target critic, statistics": weights_of(module),
    }
    rounded = _weights_in_4_bits(vlm)
    found, seen = [], set[int]()
    for name, tensors in parts.items():
        own = [t for t in _once(tensors) if id(t) not in seen]
        seen.update(map(id, own))
        adapter = [t for t in own if id(t) in in_adapter]
        found.append(_part(name, [t for t in own if id(t) not in in_adapter], rounded))
        if adapter:
            found.append(_part("adapter", adapter, rounded))
    return found


def _part(name: str, tensors: list[Tensor], rounded: dict[int, int]) -> Part:
    numbers = [(t, rounded.get(id(t), t.numel())) for t in tensors if isinstance(t, nn.Parameter)]
    trained = sum(number for t, number in numbers if t.requires_grad)
    return Part(name, trained, sum(number for _, number in numbers) - trained, size(tensors))


def _weights_in_4_bits(vlm: nn.Module) -> dict[int, int]:
    """Number of weights behind each tensor that packs two in a byte."""
    states = ((p, getattr(p, "quant_state", None)) for p in vlm.parameters())
    return {id(p): int(torch.Size(state.shape).numel()) for p, state in states if state is not None}


def optimizer_of(module: VLMQ) -> Optimizer:
    """The optimiser as it is behind its first step on a GPU: with its state, and gradients in place."""
    hp = module.hparams
    optimizer: Any
    optimizer, _ = make_optimizer(hp["optimizer"], groups_of(module.vlm, module.critic, hp), hp["weight_decay"])
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            parameter.grad = torch.zeros_like(parameter)
            if hp["optimizer"] == "adamw8bit":  # its step itself needs numbers, but no more memory
                optimizer.init_state(group, parameter, number, index)
        # as on GPUs: one kernel for many parameters, which holds some of them once more
        group.update(fused=None, foreach=True)
    if hp["optimizer"] == "adamw":
        optimizer.step()
    return optimizer  # type: ignore[no-any-return]


def states_of(optimizer: Optimizer) -> list[Tensor]:
    """Tensors of an optimiser's state; what it keeps once for all parameters of a size is among them once."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors_of(each)


def weights_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, and what stands beside weights in 4 bits."""
    found: list[Tensor] = [*module.parameters(), *module.buffers()]
    for state in [each for p in module.parameters() if (each := getattr(p, "quant_state", None)) is not None]:
        found += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return found


def _once(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())
