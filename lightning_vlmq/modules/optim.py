"""One optimiser with a parameter group for each part of a module: own rate, own warm-up, own gradient norm."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_vlmq.vlm import VLM

__all__ = ["Group", "clip_groups", "groups_of", "make_optimizer"]


class Group(NamedTuple):
    """Parameters that are trained alike.

    Attributes:
        name: In logs.
        parameters: Frozen ones are left out.
        lr: Peak learning rate.
        warmup_steps: Optimiser steps of linear warm-up.
    """

    name: str
    parameters: list[nn.Parameter]
    lr: float
    warmup_steps: int


def groups_of(vlm: VLM, critic: nn.Module, options: Mapping[str, Any]) -> list[Group]:
    """A VLM without its tower, its tower and connector, and a critic.

    Args:
        vlm: The model.
        critic: Of its hidden states.
        options: Of :class:`~lightning_vlmq.modules.vlmq.VLMQ`: rates and warm-ups.
    """
    vision = [parameter for _, parameter in vlm.vision_parameters()]
    apart = set(map(id, vision))
    others = [parameter for parameter in vlm.parameters() if id(parameter) not in apart]
    vision_lr = options["lr"] if options["vision_lr"] is None else options["vision_lr"]
    return [
        Group("vlm", others, options["lr"], options["warmup_steps"]),
        Group("vision", vision, vision_lr, options["warmup_steps"]),
        Group("critic", list(critic.parameters()), options["critic_lr"], options["critic_warmup_steps"]),
    ]


def make_optimizer(
    name: str, groups: list[Group], weight_decay: float, decay_steps: int = 0
) -> tuple[Optimizer, LambdaLR]:
    """AdamW over the groups that have something to train, and its schedule.

    Args:
        name: ``"adamw"``, or ``"adamw8bit"`` of bitsandbytes (Dettmers 2021).
        groups: The groups.
        weight_decay: Of all groups.
        decay_steps: Optimiser steps over which all rates fall linearly to a tenth; 0 keeps them.

    Raises:
        ValueError: The name is unknown, or everything is frozen.
    """
    settings: list[dict[str, Any]] = []
    ramps: list[Callable[[int], float]] = []
    for group in groups:
        trained = [p for p in group.parameters if p.requires_grad]
        if trained:
            settings.append({"name": group.name, "params": trained, "lr": group.lr, "weight_decay": weight_decay})
            ramps.append(partial(_schedule, group.warmup_steps, decay_steps))
    if not settings:
        raise ValueError("there is nothing to train: set vlm.lora_rank > 0 or td_weight > 0")
    optimizer: Optimizer
    if name == "adamw":
        # One kernel for all parameters; not on GPUs, where Lightning's fp16 precision refuses to clip beside it.
        on_cpu = all(p.device.type == "cpu" for group in settings for p in group["params"])
        optimizer = torch.optim.AdamW(settings, fused=True if on_cpu else None)
    elif name == "adamw8bit":
        # imported here: the library probes for a GPU when it is imported
        from bitsandbytes.optim.adamw import AdamW8bit

        optimizer = cast(Optimizer, AdamW8bit(settings))  # type: ignore[no-untyped-call]
    else:
        raise ValueError(f"optimizer must be adamw or adamw8bit, not {name!r}")
    return optimizer, LambdaLR(optimizer, ramps)


def clip_groups(optimizer: Optimizer, limit: float | None, algorithm: str | None) -> dict[str, Tensor]:
    """Clips each group's gradient by its own norm (or by value) and returns the norms to log.

    Args:
        optimizer: Holds the groups; in logs one without a name goes by its number.
        limit: Largest norm, or value; ``None`` only measures.
        algorithm: ``"norm"`` (also ``None``) or ``"value"``.
    """
    logs: dict[str, Tensor] = {}
    for number, group in enumerate(optimizer.param_groups):
        name = group.get("name", str(number))
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        if not gradients:
            continue
        norm = nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):  # of shards
            norm = norm.full_tensor()
        logs[f"grad_norm/{name}"] = norm
        if limit and algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(group["params"], limit, norm)
            logs[f"grad_norm/{name}_kept"] = (limit / norm.clamp(min=1e-12)).clamp(max=1.0)
        elif limit:
            nn.utils.clip_grad_value_(group["params"], limit)
    return logs


def _schedule(warmup_steps: int, decay_steps: int, step: int) -> float:
    """Factor on the peak rate: linear warm-up times linear decay to a tenth."""
    decay = max(0.1, 1 - 0.9 * step / decay_steps) if decay_steps else 1.0
    return min(1.0, (step + 1) / max(1, warmup_steps)) * decay
