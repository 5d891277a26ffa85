"""torch.compile for a language model: its layers one by one, which is soon done and leaves names of weights alone."""

import torch
from torch import nn

from lightning_vlmq.frozen_layers import layers_below_adapter, layers_in_order

__all__ = ["compile_layers"]


def compile_layers(decoder: nn.Module, backend: str) -> None:
    """Has the layers that are adapted or trained compiled at their next calls, in place.

    Those below stay as they are: what they compute is noted by a hook and repeated by another ``forward``
    (:mod:`lightning_vlmq.frozen_layers`), of which a compiled layer would not hear.

    Args:
        decoder: The language model, with its adapter.
        backend: Of ``torch.compile``.

    Raises:
        ValueError: There is no such backend.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"vlm.compile must be null or one of {', '.join(known)}, not {backend!r}")
    for layer in layers_in_order(decoder)[len(layers_below_adapter(decoder)) :]:
        layer.compile(backend=backend, dynamic=True)  # batches differ in size and length
