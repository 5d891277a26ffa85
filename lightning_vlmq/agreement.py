"""Whether training reads what the VLM read and said while it played: pictures, prompts, tokens, log-probabilities."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.chunks import in_chunks
from lightning_vlmq.losses import token_log_probs
from lightning_vlmq.turns import Observation, Turn

__all__ = ["TOLERANCE", "Agreement", "compare", "prompt_mark"]

TOLERANCE = 0.05
"""Mean difference of log-probabilities, far above that of bf16, at which rollout and training do not fit."""


def prompt_mark(ids: Sequence[int]) -> bytes:
    """A short hash of a prompt's ids."""
    return hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=8).digest()


class Agreement(NamedTuple):
    """What was compared, in numbers that add up over ranks.

    Attributes:
        turns: Turns compared.
        pictures: Turns whose pictures differ.
        prompts: Turns whose prompts differ.
        replies: Turns whose replies' tokens differ.
        difference: Sum of the absolute differences of log-probabilities, where the reply's tokens are the same.
        tokens: Number of these.
    """

    turns: float = 0
    pictures: float = 0
    prompts: float = 0
    replies: float = 0
    difference: float = 0.0
    tokens: float = 0

    @property
    def mean(self) -> float:
        """Mean difference of a token's log-probability; 0 where there is none."""
        return self.difference / self.tokens if self.tokens else 0.0

    @property
    def fault(self) -> str:
        """One line that names what does not fit; empty where all does."""
        parts = {"the picture": self.pictures, "the prompt": self.prompts, "the reply's tokens": self.replies}
        found = [f"{name} in {count:.0f}" for name, count in parts.items() if count]
        if found:
            return (
                f"rollout and training differ: {', '.join(found)} of {self.turns:.0f} turns that were looked at; what "
                f"is learned is not what was played: look at the turns in the store, the prompt and the tokenizer"
            )
        if self.mean > TOLERANCE:
            return (
                f"rollout and training differ by {self.mean:.2g} in the log-probability of a token, with the same "
                f"picture, prompt and tokens: look at the weights and the precision"
            )
        return ""


@torch.no_grad()
def compare(
    encoder: TurnEncoder,
    played: Sequence[Turn],
    read: Sequence[tuple[Turn, Turn]],
    prompts: Mapping[Observation, bytes],
) -> Agreement:
    """Compares turns as they were played with the same turns as training reads them, for the same weights.

    Args:
        encoder: Training's; holds the VLM.
        played: Turns of a VLM as they were in the rollout.
        read: The same turns out of the store, and the rows after them.
        prompts: Mark of the prompt that the VLM read, by what was observed (:class:`~lightning_vlmq.policy.VLMPolicy`).
    """
    turns = [turn for turn, _ in read]
    pairs = list(zip(played, turns, strict=True))
    pictures = sum(a.observation.images != b.observation.images for a, b in pairs)
    others = sum(prompts[a.observation] != prompt_mark(encoder.prompt_ids(b.observation)[0]) for a, b in pairs)
    same = [_same_reply(encoder, a, b) for a, b in pairs]
    comparable = [(a, *after) for a, after, is_same in zip(played, read, same, strict=True) if is_same]
    apart = _differences(encoder, comparable) if comparable else torch.zeros(0)
    return Agreement(len(played), pictures, others, same.count(False), float(apart.sum()), len(apart))


def _same_reply(encoder: TurnEncoder, played: Turn, read: Turn) -> bool:
    try:
        return encoder.reply_ids(read) == list(played.reply_ids)
    except ValueError:  # training will say why it cannot be encoded
        return False


def _differences(encoder: TurnEncoder, rows: Sequence[tuple[Turn, Turn, Turn]]) -> Tensor:
    """Of the log-probabilities of sampled tokens ``[tokens]``, absolute; of turns as played, as read, and after."""
    played, turns, successors = zip(*rows, strict=True)
    vlm, batch = encoder.vlm, encoder.batch(turns, successors)
    with vlm.inference():
        hidden = vlm.hidden({k: v.to(vlm.device) for k, v in batch.inputs.items()}).cpu()
        said = batch.predicting(hidden)[batch.mask].to(vlm.device), batch.reply_ids[batch.mask].to(vlm.device)
        found = in_chunks(lambda h, ids: token_log_probs(vlm.logits(h), ids), *said, width=vlm.vocab_size).cpu()
    tokens = zip(torch.split(found, batch.mask.sum(1).tolist()), played, strict=True)
    noted = [(each, torch.tensor(turn.log_probs)) for each, turn in tokens]
    return torch.cat([(each[-len(before) :] - before).abs() for each, before in noted])
