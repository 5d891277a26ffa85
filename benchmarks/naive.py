"""AFSFT as the paper's text reads, without anything that saves: what our losses are held against.

Both passes run the whole VLM, vision tower included; both heads and the target critic give all of the vocabulary at all
positions, of which the reply's are read behind that. The losses are those of :class:`~lightning_vlmq.VLMQ` with the
paper's options (``PAPER``), and a test compares them.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lightning_vlmq import VLMQ
from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.losses import afsft_loss, last_token, td_loss
from lightning_vlmq.turns import Turn
from lightning_vlmq.vlm import VLM

__all__ = ["PAPER", "naive_loss", "pixels"]

PAPER: dict[str, Any] = {"critic_states": "adapted", "critic_inputs": "raw", "trace": 0.0, "top_k": None}
"""Options of ``VLMQ`` that are the paper's: one-step targets, expectations over the vocabulary."""


def pixels(vlm: VLM, turns: Sequence[Turn]) -> Mapping[str, Tensor]:
    """Pictures of turns as the vision tower takes them."""
    images = [[_opened(image) for image in turn.observation.images] for turn in turns]
    return vlm.processor.image_processor(images=images, return_tensors="pt")  # type: ignore[no-any-return]


def naive_loss(
    module: VLMQ, batch: TokenBatch, shown: Mapping[str, Tensor], next_shown: Mapping[str, Tensor]
) -> Tensor:
    """Joint loss (eq. 7).

    Args:
        module: Holds the VLM, the critic and the filter's threshold.
        batch: Turns whose next ones are all read apart; its image features are not looked at.
        shown: Pictures of the turns.
        next_shown: Pictures of the next turns.
    """
    vlm, critic, allowed = module.vlm, module.critic, module.allowed_tokens
    hidden = _hidden(vlm, batch.inputs, shown)
    logits, q = vlm.logits(hidden).float(), critic.q_normalised(hidden)  # [B, S, V]
    log_pi = logits.log_softmax(-1)
    with torch.no_grad():
        with vlm.inference():
            next_hidden = _hidden(vlm, batch.next_inputs, next_shown)
            next_pi = vlm.logits(next_hidden).float().masked_fill(~allowed, -torch.inf).softmax(-1)
        pi = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
        next_value = (next_pi * critic.q_target(next_hidden)).sum(-1)
        target_value = (pi * critic.q_target(hidden)).sum(-1)
        value = (pi * critic.popart.denormalise(q)).sum(-1)

    def of_reply(per_token: Tensor) -> Tensor:  # [B, S, V] to [B, T]
        return batch.predicting(per_token).gather(-1, batch.reply_ids.unsqueeze(-1)).squeeze(-1)

    prediction = of_reply(q)
    with torch.no_grad():
        advantage = critic.popart.denormalise(prediction) - value.gather(1, batch.positions)
        accepted = (advantage >= module.threshold).float()
        inside = target_value.gather(1, batch.positions).roll(-1, dims=1)  # of h^{i+1}
        following = torch.zeros_like(inside[:, 0])
        following[batch.has_next] = next_value.gather(1, batch.next_positions.unsqueeze(1)).squeeze(1)
        r_t, discount_t = module.td.rewards_and_discounts(batch)
        behind = torch.where(last_token(batch.mask), following.unsqueeze(1), inside)
        targets = torch.where(batch.mask, r_t + discount_t * behind, 0.0)
    critic.observe(batch.predicting(hidden).detach(), targets, batch.mask, batch.weight)
    actor = afsft_loss(of_reply(log_pi), accepted, batch.mask, batch.weight)
    return actor + td_loss(prediction, critic.popart.normalise(targets), batch.mask, batch.weight)


def _hidden(vlm: VLM, inputs: Mapping[str, Tensor], shown: Mapping[str, Tensor]) -> Tensor:
    output = vlm.hf.base_model(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False, **shown
    )
    return output.last_hidden_state  # type: ignore[no-any-return]


def _opened(image: bytes) -> Any:
    return Image.open(io.BytesIO(image)).convert("RGB")
