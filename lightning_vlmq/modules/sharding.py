"""Weights in shards: of each weight every rank holds its part alone, and asks for the others' when it computes (FSDP2).

It is Lightning's ``ModelParallelStrategy``. The layers of the language model are gathered one at a time, whatever else
is trained or as large as the vocabulary once a step; a frozen vision tower stays whole, as each rank encodes pictures
when it needs them.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from lightning_vlmq.frozen_layers import layers_in_order
from lightning_vlmq.vlm import VLM

__all__ = ["before_loading", "check_shardable", "shard", "whole"]

_REMEDY = "tensor_parallel_size: 1, data_parallel_size: the number of processes, save_distributed_checkpoint: false"


def check_shardable(strategy: Any, vlm: VLM, options: Mapping[str, Any], precision: str) -> None:
    """Refuses at the start what shards cannot go with.

    Args:
        strategy: The trainer's.
        vlm: The model, not in shards yet.
        options: The module's.
        precision: The trainer's.

    Raises:
        ValueError: A combination that does not work; the message names key and remedy.
    """
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(f"trainer.strategy: fsdp does not work here; take ModelParallelStrategy ({_REMEDY})")
    if not isinstance(strategy, ModelParallelStrategy):
        return
    if strategy.device_mesh["tensor_parallel"].size() > 1 or strategy._save_distributed_checkpoint:
        raise ValueError(f"trainer.strategy: ModelParallelStrategy needs {_REMEDY}")
    if not all(parameter.is_floating_point() for parameter in vlm.parameters()):
        raise ValueError("vlm.load_in_4bit does not go with ModelParallelStrategy; set it to false, or take ddp")
    if vlm.trains_vision_tower:
        raise ValueError("vlm.train_vision_tower does not go with ModelParallelStrategy; set it to false, or take ddp")
    if vlm.compiled:
        raise ValueError("vlm.compile does not go with ModelParallelStrategy; set it to null, or take ddp")
    if options.get("optimizer") == "adamw8bit":
        raise ValueError("optimizer: adamw8bit does not go with ModelParallelStrategy; take adamw, or ddp")
    if precision.endswith("-true") and precision != "32-true":
        raise ValueError(f"trainer.precision: {precision} would round what is trained; take bf16-mixed or 32-true")


def shard(module: L.LightningModule, vlm: VLM) -> None:
    """Puts the module's weights into shards: each layer of the language model a group, the module itself the root.

    The root's group is gathered by the module's forward and stands until the step's backward pass is over, so that the
    critic and the language head can be asked in between.
    """
    mesh = module.device_mesh["data_parallel"]  # type: ignore[index]
    _ = vlm.base_fingerprint  # of whole weights
    for layer in layers_in_order(vlm.hf.get_decoder()):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh, ignored_params={parameter for _, parameter in vlm.vision_parameters()})
    module.strict_loading = False  # else Lightning misses the frozen base in checkpoints


@contextlib.contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Within this context each rank has all weights: it may play and judge as long as it likes, without the others.

    All ranks must enter it. Where nothing is in shards it does nothing.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if parts:
        _forward_of_nothing(module)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not module, recurse=False)


def before_loading(strategy: ModelParallelStrategy, check: Callable[[dict[str, Any]], None]) -> None:
    """Has a checkpoint checked before it is loaded: Lightning puts its weights into shards before it shows it."""
    load = strategy.load_checkpoint

    @functools.wraps(load)
    def checked(checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        if not Path(checkpoint_path).is_file():
            raise ValueError(f"ckpt_path {checkpoint_path} is no file; give one saved with {_REMEDY}")
        check(torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True))
        return load(checkpoint_path, weights_only)

    strategy.load_checkpoint = checked  # type: ignore[method-assign]


def _forward_of_nothing(root: nn.Module) -> None:
    """By the first forward FSDP learns which module is the root: it must not be a layer's."""
    root.forward = lambda: None
    try:
        root()
    finally:
        del root.forward
