"""How replies are drawn, and what a VLM sampled: tokens up to the stop, and how likely each was."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

__all__ = ["RawLogProbs", "Sampled", "drawn_with", "from_the_model_itself", "until_stop"]


class Sampled(NamedTuple):
    """Tokens that a VLM sampled and the log-probability of each, before temperature and masks."""

    ids: list[int]
    log_probs: list[float]


class RawLogProbs(LogitsProcessor):
    """Notes log-probabilities of sampled tokens as the model gives them, one step of ``[B, V]`` at a time."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Notes the token before, and what this one is drawn from."""
        if self._last is not None:
            self._note(input_ids[:, -1])
        self._last = scores.float().log_softmax(-1)
        return scores

    def until(self, last: Tensor) -> Tensor:
        """Log-probabilities ``[B, T]``, given the last tokens ``[B]``."""
        self._note(last)
        return torch.stack(self._steps, dim=1)

    def _note(self, tokens: Tensor) -> None:
        assert self._last is not None
        self._steps.append(self._last.gather(1, tokens.unsqueeze(1)).squeeze(1))


def until_stop(ids: list[int], stop_ids: tuple[int, ...]) -> list[int]:
    """``generate`` pads finished rows; a reply ends with its first stop token."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[: position + 1]
    return ids


def from_the_model_itself(temperature: float) -> dict[str, Any]:
    """Options of ``generate``: the likeliest token at 0, else drawn from all; a model's defaults may cut them."""
    if temperature <= 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}


@contextlib.contextmanager
def drawn_with(seed: int | None, device: torch.device) -> Iterator[None]:
    """Within this context draws are seeded; behind it the global generators are as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if seed is not None:
            torch.manual_seed(seed)
        yield
