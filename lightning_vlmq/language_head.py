"""What a family makes of the language head's output: nothing, a scale, a soft cap.

A configuration may name a cap that the family's model for pictures does not apply (Gemma 3), so that the model itself
is asked: its forward runs once behind a body that returns known hidden states.
"""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_vlmq.shapes import without_numbers

__all__ = ["HeadOutput", "learn_head_output"]


class HeadOutput(NamedTuple):
    """From the head's output to logits.

    Attributes:
        scale: Factor of the output.
        cap: Bound that the scaled output approaches softly.
    """

    scale: float = 1.0
    cap: float | None = None

    def logits(self, output: Tensor) -> Tensor:
        """Logits of the head's output, both ``[..., V]``."""
        if self.scale != 1.0:
            output = output * self.scale
        return output if self.cap is None else self.cap * torch.tanh(output / self.cap)


@torch.no_grad()
def learn_head_output(hf: Any) -> HeadOutput:
    """The transformation that gives the model's own logits.

    Raises:
        ValueError: None of those that configurations can name does.
    """
    config = hf.config.get_text_config()
    multiplied, divided, cap = (
        getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping")
    )
    if without_numbers(hf.get_output_embeddings().weight):  # nothing to compare: the most that it may do
        return HeadOutput(multiplied or (1 / divided if divided else 1.0), cap)
    scales = [1.0, *([multiplied] if multiplied else []), *([1 / divided] if divided else [])]
    hidden = torch.ones(1, 1, config.hidden_size, dtype=hf.dtype, device=hf.device)
    hidden[..., ::2] = -0.5
    head = hf.get_output_embeddings()
    # large enough for a cap to bend
    hidden *= 2 * (cap or 10.0) / min(scales) / head(hidden).float().abs().max()
    output, own = head(hidden).float(), _own_logits(hf, hidden).float()
    for scale, bound in itertools.product(scales, (None, cap)):
        found = HeadOutput(scale, bound)
        if torch.allclose(found.logits(output), own, atol=1e-2 * float(own.abs().max()), rtol=1e-2):
            return found
    raise ValueError("its logits are not those of its language head, scaled or softly capped")


class _Body(tuple[Tensor]):
    """The output of a model's body that holds nothing but hidden states."""

    def __getattr__(self, name: str) -> Tensor | None:
        return self[0] if name == "last_hidden_state" else None


def _own_logits(hf: Any, hidden: Tensor) -> Tensor:
    body = hf.base_model
    body.forward = lambda *arguments, **options: _Body((hidden,))
    try:
        logits: Tensor = hf(input_ids=torch.zeros(1, 1, dtype=torch.long, device=hf.device)).logits
    finally:
        del body.forward
    return logits
