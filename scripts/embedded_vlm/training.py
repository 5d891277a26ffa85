"""What the training stages share: optimisers, averaged weights, and a state on disk from which a stage goes on."""

import math
from collections.abc import Mapping
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

__all__ = ["Average", "Trained", "worker_random"]

SAVE_EVERY = 250
"""Steps between two states on disk."""


def worker_random(seed: int) -> tuple[Random, int, int]:
    """Source of randomness of a process that loads data, its number and how many there are; the caller's own is 0 of 1.

    Args:
        seed: Seed of all of them; the first one draws from ``Random(seed)``.
    """
    worker = get_worker_info()
    index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
    return Random(seed + 1_000_003 * index), index, workers  # stages space their seeds by thousands


class Average:
    """Exponential moving average of a module's parameters, with a short memory at the start.

    Args:
        module: The module that trains.
        decay: Final decay a step.
    """

    def __init__(self, module: nn.Module, decay: float = 0.998) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(list(self.values.values()), [parameters[n].detach() for n in self.values], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into a module of the same shape."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.values[name])


class Trained:
    """A module in training, its optimisers and its average; continues from the state on disk where there is one.

    Muon for the weight matrices of the layers, AdamW for everything else (embeddings, heads, norms, biases).

    Args:
        module: The module.
        path: File of the state.
        steps: Optimiser steps of the stage.
        rate: Peak learning rate of AdamW.
        muon_rate: Muon's rate over that of AdamW.
        clip: Largest norm of the gradient.
        warm_up: Steps until the peak rate.
        flat: Share of the steps at the peak rate, before it falls to 2 % of it.
        begin: Step at which the module's present weights count as trained, where there is no state on disk; the rate
            warms up and falls over the steps from there on.
        merges: After these steps the weights become the average of the averaged ones and those of an earlier step:
            number of that step, share of the earlier ones.

    Attributes:
        start: Steps already done.
        average: Averaged weights.
    """

    def __init__(
        self,
        module: nn.Module,
        path: Path,
        steps: int,
        rate: float,
        muon_rate: float = 4.0,
        clip: float = 1.0,
        warm_up: int = 100,
        flat: float = 0.0,
        begin: int = 0,
        merges: Mapping[int, tuple[int, float]] | None = None,
    ) -> None:
        self.module, self.path, self.steps, self.clip = module, path, steps, clip
        self.merges = dict(merges or {})
        self.warm_up, self.flat, self.begin, self.start = warm_up, flat, begin, begin
        self.average = Average(module)
        path.parent.mkdir(parents=True, exist_ok=True)
        matrices, others = [], []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (matrices if ".layers." in f".{name}" and parameter.ndim == 2 else others).append(parameter)
        self.optimizers: list[tuple[float, torch.optim.Optimizer]] = [
            (
                rate * muon_rate,
                torch.optim.Muon(matrices, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
            ),
            (rate, torch.optim.AdamW(others, weight_decay=0.05, betas=(0.9, 0.98), fused=True)),
        ]
        if path.is_file():
            state = torch.load(path, weights_only=True, map_location=next(module.parameters()).device)
            self.start = self.average.steps = state["step"]
            module.load_state_dict(state["model"])
            self.average.values = state["average"]
            for (_, optimizer), kept in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(kept)
        elif any(begin == earlier for earlier, _ in self.merges.values()):
            torch.save(self.average.values, self._kept(begin))

    def update(self, step: int, loss: Tensor) -> None:
        """Make one step down the gradient; the state is kept now and then, and at the end.

        Args:
            step: Number of the step, from 0.
            loss: Scalar with its graph.

        Raises:
            ValueError: If the loss is not finite.
        """
        if not torch.isfinite(loss):
            raise ValueError(f"loss is not finite in step {step} of {self.path.stem}: lower the stage's rate")
        factor = self._factor(step)
        for peak, optimizer in self.optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        for _, optimizer in self.optimizers:
            optimizer.step()
        self.average.update(self.module)
        if step + 1 in self.merges:
            self._merge(*self.merges[step + 1])
        if any(step + 1 == earlier for earlier, _ in self.merges.values()):
            torch.save(self.average.values, self._kept(step + 1))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == self.steps:
            self._save(step + 1)

    def _kept(self, step: int) -> Path:
        """File of the averaged weights of a step that is merged with later ones."""
        return self.path.with_name(f"{self.path.stem}_{step}.pt")

    def _merge(self, earlier: int, share: float) -> None:
        """Go on from between the averaged weights and an earlier step's: what was forgotten since comes back."""
        kept = torch.load(self._kept(earlier), weights_only=True, map_location=next(self.module.parameters()).device)
        for name, value in self.average.values.items():
            value.lerp_(kept[name], share)
        self.average.copy_to(self.module)

    def _factor(self, step: int) -> float:
        """Linear warm-up, the peak, then a cosine."""
        step, steps = step - self.begin, self.steps - self.begin
        start = max(self.warm_up, int(self.flat * steps))
        progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
        return min(1.0, (step + 1) / self.warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(progress * math.pi)))

    def _save(self, step: int) -> None:
        state = {"step": step, "model": self.module.state_dict(), "average": self.average.values}
        state["optimizers"] = [optimizer.state_dict() for _, optimizer in self.optimizers]
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)
