"""The vision tower and the connector of a model: which weights are theirs, what tells them apart, how they are trained.

Together they are all that lies outside the language model and its head.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_vlmq.pictures import Pictures

__all__ = ["train_vision", "vision_fingerprint", "vision_parameters"]


def vision_parameters(hf: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and weights outside of the language model: the tower's and the connector's."""
    language = (hf.get_decoder(), hf.get_output_embeddings())
    left_out = {id(p) for part in language for p in part.parameters()}
    yield from ((name, p) for name, p in hf.named_parameters() if id(p) not in left_out)


def vision_fingerprint(hf: Any, processor: Any) -> str:
    """Short hash of what decides image features: weights outside of the language model and the processor."""
    how = type(processor.image_processor).__name__ + processor.to_json_string()
    digest = hashlib.sha256(how.encode())
    for name, parameter in vision_parameters(hf):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def train_vision(hf: Any, pictures: Pictures) -> None:
    """Trains all of the tower and the connector that a gradient of a picture's features reaches.

    What none reaches (a head for pooling, layers behind the one that is read) stays frozen: it would only decay, and
    several processes would wait for its gradient in vain.

    Raises:
        ValueError: Something there keeps running statistics, which are no weights.
    """
    if any(isinstance(part, _BatchNorm) for part in hf.modules()):
        raise ValueError(
            "vlm.train_vision_tower: this tower normalises by running statistics (BatchNorm), which are not trained "
            "and not in checkpoints; set it to false"
        )
    weights = [parameter for _, parameter in vision_parameters(hf)]
    for parameter in weights:
        parameter.requires_grad_(True)
    # the graph alone is looked at: what a backward pass would need is let go at once
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda kept: kept):
        reached = _leaves(pictures.of_blank())
    for parameter in weights:
        parameter.requires_grad_(id(parameter) in reached)


def _leaves(tensors: Iterable[Tensor]) -> set[int]:
    """Identities of the parameters at the leaves of a graph."""
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen, found = set[Any](), set[int]()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [following for following, _ in node.next_functions]
    return found
