"""Memory of what a fit does, each stage run once on shapes: a step of training, encoding of pictures, generation."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.estimate.held import Held, size
from lightning_vlmq.estimate.parts import optimizer_of, states_of, tensors_of, weights_of
from lightning_vlmq.modules import VLMQ
from lightning_vlmq.modules.optim import clip_groups
from lightning_vlmq.shapes import shapes
from lightning_vlmq.vlm import VLM

__all__ = ["StepMemory", "Training", "encoding", "generation"]


class StepMemory(NamedTuple):
    """Bytes of a step of training.

    Attributes:
        fixed: Weights, optimiser's state, gradients and the critic's memory: what stands there before.
        kept: What the forward pass leaves for the backward pass, the batch included.
        peak: Most of all that is held at once.
    """

    fixed: int
    kept: int
    peak: int


class Training:
    """Steps of a module of shapes as they are in the midst of a fit.

    Args:
        module: The module; its weights are shapes.
        precision: Makes the context in which Lightning computes losses.
        accumulate: Micro-batches of an optimiser step.
        clip: Whether gradients are clipped.
    """

    def __init__(self, module: VLMQ, precision: Any, *, accumulate: int = 1, clip: bool = True) -> None:
        self.module = module.train()
        self._precision: Any = precision
        self._accumulates, self._clip = accumulate > 1, clip
        with shapes():
            self.optimizer: Optimizer = optimizer_of(module)
        self.gradients = size(self._gradients())
        self.states = size(states_of(self.optimizer))
        self.critic_memory = 0

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.module.parameters() if p.grad is not None]

    def resident(self) -> list[Tensor]:
        """Everything that stands there between two steps."""
        return [*weights_of(self.module), *states_of(self.optimizer), *self._gradients()]

    def step(self, batch: TokenBatch) -> StepMemory:
        """Runs a step: losses, backward pass, clipping, optimiser."""
        module, hp = self.module, self.module.hparams
        earlier = 0
        if hp["critic_replay"]:
            earlier = self._fill_memory(batch)
        gradients = [torch.zeros_like(p) if p.requires_grad else None for p in module.parameters()]
        for parameter, gradient in zip(module.parameters(), gradients, strict=True):
            parameter.grad = gradient
        held = Held()
        held.hold(self.resident())
        held.hold(tensors_of(list(module.td.replay._batches)))
        fixed = held.now
        del gradients, gradient
        held.hold(tensors_of(batch))
        with shapes(), held:
            with self._precision.forward_context():
                loss, logs = module.losses(batch)
            kept = held.now - fixed
            # Lightning keeps the gradients of the step before through the forward pass
            if not self._accumulates:
                self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            del loss, logs
            clip_groups(self.optimizer, 1.0 if self._clip else None, None)
            if hp["optimizer"] == "adamw":
                self.optimizer.step()
        module.td.replay.load([])
        return StepMemory(fixed + earlier, kept, held.peak + earlier)

    def _fill_memory(self, batch: TokenBatch) -> int:
        """Puts a batch into the critic's memory; returns bytes of all others that it will hold."""
        module = self.module
        with shapes(), torch.no_grad(), self._precision.forward_context():
            module.losses(batch)
        one = size(tensors_of(list(module.td.replay._batches)))
        self.critic_memory = one * int(module.hparams["critic_memory"])
        return self.critic_memory - one


def encoding(vlm: VLM, pictures: Sequence[Any], resident: Sequence[Tensor]) -> int:
    """Peak in bytes while the tower encodes pictures, beside what stands there."""
    with _beside(resident) as held:
        vlm.image_features(pictures)
    return held.peak


def generation(vlm: VLM, inputs: Mapping[str, Tensor], resident: Sequence[Tensor]) -> int:
    """Peak in bytes while replies are sampled, beside what stands there.

    One pass over prompts as long as prompt and reply together, with what it keeps for later tokens: the last token of
    a generation finds that much kept, and its first one, over the prompt, makes hardly less beside it.

    Args:
        vlm: The model.
        inputs: Prompts with replies as long as they may be.
        resident: What stands there.
    """
    with _beside(resident) as held, torch.no_grad(), vlm.inference(), vlm.pictures.asked_for():
        held.hold(inputs.values())
        output = vlm.hf.base_model(**vlm.pictures.arguments(inputs), use_cache=True)
        # of the last token alone; its probabilities are noted, cleared of forbidden tokens and drawn from
        scores = vlm.logits(output.last_hidden_state[:, -1]).float()
        _ = scores.log_softmax(-1), scores.clone().softmax(-1)
    return held.peak


@contextlib.contextmanager
def _beside(resident: Sequence[Tensor]) -> Iterator[Held]:
    held = Held()
    held.hold(resident)
    context: AbstractContextManager[None] = shapes()
    with context, held:
        yield held
