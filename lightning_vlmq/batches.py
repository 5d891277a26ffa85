"""Turns to tokens: the only place where a turn becomes the input of a model.

``T`` is the longest reply of a batch, ``S`` the longest prompt with its reply, ``B`` the number of turns and
``B'`` those among them whose next turn has to be read apart: the episode went on, and the batch does not hold it.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_vlmq.features import FeatureCache
from lightning_vlmq.pictures import EncodedImage
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.turns import Observation, Turn
from lightning_vlmq.vlm import VLM

__all__ = ["TokenBatch", "TurnEncoder"]

_LONG = 2_000
"""Characters of a prompt whose tokens are not kept: long ones seldom repeat, and many of them would fill the memory."""


class TokenBatch(NamedTuple):
    """A batch of turns as tokens; every mask is boolean.

    Attributes:
        inputs: Model inputs of prompt + reply, padded on the right: ``input_ids``, ``attention_mask``
            ``[B, S]``, ``image_features`` ``[sum N, W]`` or what a trained tower takes, and what the family takes
            beside them.
        next_inputs: The same of the next turns' prompts ``[B', S']``.
        positions: Where the hidden state that predicts reply token i stands ``[B, T]``.
        reply_ids: The reply's tokens ``[B, T]``, the last one normally a stop token; 0 where masked.
        mask: True at tokens of the reply ``[B, T]``.
        next_positions: Position of the next prompt's last token ``[B']``.
        has_next: True where the episode went on ``[B]``.
        next_in_batch: True where the next turn is the row behind this one, so that its first state is the one that
            predicts its reply's first token ``[B]``; ``next_inputs`` are those of the other turns that went on.
        reward: Reward with penalties ``[B]``.
        terminated: True where the episode ended for good ``[B]``.
        imitate: True where the language loss may use the turn ``[B]``.
        td: True where the critic may learn from the turn ``[B]``.
        weight: Weight in both losses ``[B]``.
        valid: True where the reply was a valid action ``[B]`` (only logged).
        cut: True where the reply has no stop token because it was cut ``[B]``.
        prompt_cut: True where the prompt was cut to its longest ``[B]`` (only logged).
    """

    inputs: dict[str, Tensor]
    next_inputs: dict[str, Tensor]
    positions: Tensor
    reply_ids: Tensor
    mask: Tensor
    next_positions: Tensor
    has_next: Tensor
    next_in_batch: Tensor
    reward: Tensor
    terminated: Tensor
    imitate: Tensor
    td: Tensor
    weight: Tensor
    valid: Tensor
    cut: Tensor
    prompt_cut: Tensor

    def predicting(self, hidden: Tensor) -> Tensor:
        """Hidden states ``[B, T, D]`` that predict the reply's tokens, out of all ``[B, S, D]``."""
        return hidden.gather(1, self.positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


class _Prompt(NamedTuple):
    """A prompt as tokens, where in it its pictures begin, the pictures (encoded, PNG), whether its text was cut."""

    ids: list[int]
    starts: list[int]
    pictures: list[EncodedImage]
    images: tuple[bytes, ...]
    cut: bool


class TurnEncoder:
    """Renders prompts and encodes replies with the student's own template, processor and tokenizer.

    Args:
        vlm: The model that will read the tokens.
        prompt: How observations become chat messages.
        features: Cache of image features; made in memory if ``None``.
        max_reply_tokens: Longest reply in tokens, stop token included.

    Attributes:
        reads_next_apart: Whether next turns are read by a pass of their own also where the batch holds them: where
            the VLM drops out in training, the pass that trains has other states than one without dropout.
    """

    def __init__(
        self,
        vlm: VLM,
        prompt: PromptMethod | None = None,
        *,
        features: FeatureCache | None = None,
        max_reply_tokens: int = 24,
    ) -> None:
        self.vlm = vlm
        self.prompt = prompt or PromptMethod()
        self.features = features or FeatureCache(vlm)
        self.max_reply_tokens = max_reply_tokens
        self.reads_next_apart = vlm.drops_out
        self.tokenizer_fingerprint = vlm.tokenizer_fingerprint
        # the text of a prompt repeats (few distinct observations, many turns), its encoding need not
        self._known_segments = lru_cache(maxsize=50_000)(vlm.pictures.split)
        self._said_cut = False

    # -- prompts --------------------------------------------------------------------------------------------

    def prompt_ids(self, observation: Observation) -> tuple[list[int], list[EncodedImage]]:
        """Ids of the prompt up to where the reply begins and its pictures, in order."""
        (prompt,) = self._encode_prompts([observation])
        return prompt.ids, prompt.pictures

    def prompts(self, observations: Sequence[Observation], prefix: str = "") -> dict[str, Tensor]:
        """Left-padded inputs for generation.

        Args:
            observations: One a row.
            prefix: Text that every reply begins with (action prompts), encoded after the prompt.
        """
        forced = self.encode_text(prefix) if prefix else []
        prompts = self._encode_prompts(observations)
        return self._pad(prompts, [forced] * len(prompts), left=True)

    def _encode_prompts(self, observations: Sequence[Observation]) -> list[_Prompt]:
        shown = [self.prompt.images(observation) for observation in observations]
        crowd = [len(images) > 1 for images in shown for _ in images]
        encoded = iter(self.features([image for images in shown for image in images], crowd))
        prompts = []
        for observation, images in zip(observations, shown, strict=True):
            pictures = [next(encoded) for _ in images]
            read = self.prompt.fitted(observation, partial(self._length, pictures))
            if cut := read is not observation:
                self._say_cut()
            segments = self._segments(read)
            if len(segments) != len(pictures) + 1:
                raise ValueError(
                    f"the prompt shows {len(segments) - 1} of {len(pictures)} pictures; "
                    f"check the prompt's template and text for {self.vlm.pictures.placeholder!r}"
                )
            prompt = _Prompt(list(segments[0]), [], pictures, images, cut)
            for picture, segment in zip(pictures, segments[1:], strict=True):
                prompt.starts.append(len(prompt.ids))
                prompt.ids.extend((*picture.ids, *segment))
            prompts.append(prompt)
        return prompts

    def _segments(self, observation: Observation) -> list[list[int]]:
        """Ids of a prompt's text before, between and behind its pictures."""
        messages = self.prompt.messages(observation)
        text = str(self.vlm.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        return self._known_segments(text) if len(text) < _LONG else self.vlm.pictures.split(text)

    def _length(self, pictures: Sequence[EncodedImage], observation: Observation) -> int:
        """Tokens of a prompt."""
        return sum(len(picture.ids) for picture in pictures) + sum(len(ids) for ids in self._segments(observation))

    def _say_cut(self) -> None:
        if not self._said_cut:
            self._said_cut = True
            rank_zero_warn(
                f"prompt.max_tokens: {self.prompt.max_tokens} cuts what the environment says in some prompts; "
                f"prompts/cut in TensorBoard is their share (this is said once)"
            )

    def encode_text(self, text: str) -> list[int]:
        """Ids of text, nothing added."""
        return list(self.vlm.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens and spaces as they are."""
        return str(self.vlm.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    # -- replies --------------------------------------------------------------------------------------------

    def reply_ids(self, turn: Turn) -> list[int]:
        """The reply's tokens: those that were sampled if our tokenizer made them, else the text encoded anew.

        Raises:
            ValueError: The reply is longer than ``max_reply_tokens``, empty, or not representable.
        """
        assert turn.reply is not None, "the last row of an episode has no reply"
        where = f"turn {turn.index} of episode {turn.episode!r} ({turn.policy})"
        if turn.reply_ids and turn.tokenizer == self.tokenizer_fingerprint:
            ids = list(turn.reply_ids)
        else:
            ids = self._encoded_reply(turn.reply, where)
            if not turn.cut:
                ids.append(self.vlm.stop_ids[0])
        if not ids:
            raise ValueError(f"{where}: the reply has no tokens; set its td and imitate masks to false or drop it")
        if len(ids) > self.max_reply_tokens:
            raise ValueError(
                f"{where}: the reply has {len(ids)} tokens, the limit is {self.max_reply_tokens}; "
                f"raise max_reply_tokens or drop the turn"
            )
        return ids

    def _encoded_reply(self, reply: str, where: str) -> list[int]:
        ids = self.encode_text(reply)
        unknown = self.vlm.tokenizer.unk_token_id
        decoded = self.decode_text(ids)
        special = set(ids) & {*self.vlm.stop_ids, *self.vlm.forbidden_ids}
        if decoded != reply or special or (unknown is not None and unknown in ids):
            raise ValueError(
                f"{where}: this VLM's tokenizer cannot represent the reply {reply[:60]!r} "
                f"(it reads back as {decoded[:60]!r}); drop the turn or use another VLM"
            )
        return ids

    # -- batches --------------------------------------------------------------------------------------------

    def batch(self, turns: Sequence[Turn], successors: Sequence[Turn | None]) -> TokenBatch:
        """Turns and the rows after them as one batch.

        Args:
            turns: Turns with replies.
            successors: The next row of each, of which only the observation is read; ``None`` says that it is the turn
                behind it in ``turns``.
        """
        prompts = self._encode_prompts([turn.observation for turn in turns])
        replies = [self.reply_ids(turn) for turn in turns]
        longest = max(len(reply) for reply in replies)
        positions = torch.zeros(len(turns), longest, dtype=torch.long)
        reply_ids = torch.zeros(len(turns), longest, dtype=torch.long)
        mask = torch.zeros(len(turns), longest, dtype=torch.bool)
        for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            steps = len(reply)
            positions[row, :steps] = torch.arange(len(prompt.ids) - 1, len(prompt.ids) - 1 + steps)
            reply_ids[row, :steps] = torch.tensor(reply)
            mask[row, :steps] = True
        # the reply's last token is predicted, never read
        inputs = self._pad(prompts, [reply[:-1] for reply in replies], left=False)
        going_on = [not turn.terminated for turn in turns]
        inside = [
            more and after is None and not self.reads_next_apart
            for after, more in zip(successors, going_on, strict=True)
        ]
        following = [
            (successors[row] or turns[row + 1]).observation
            for row in range(len(turns))
            if going_on[row] and not inside[row]
        ]
        next_prompts = self._encode_prompts(following)
        return TokenBatch(
            inputs=inputs,
            next_inputs=self._pad(next_prompts, [[]] * len(next_prompts), left=False),
            positions=positions,
            reply_ids=reply_ids,
            mask=mask,
            next_positions=torch.tensor([len(prompt.ids) - 1 for prompt in next_prompts], dtype=torch.long),
            has_next=torch.tensor(going_on, dtype=torch.bool),
            next_in_batch=torch.tensor(inside, dtype=torch.bool),
            reward=torch.tensor([turn.reward for turn in turns], dtype=torch.float32),
            terminated=torch.tensor([turn.terminated for turn in turns], dtype=torch.bool),
            imitate=torch.tensor([turn.imitate for turn in turns], dtype=torch.bool),
            td=torch.tensor([turn.td for turn in turns], dtype=torch.bool),
            weight=torch.tensor([turn.weight for turn in turns], dtype=torch.float32),
            valid=torch.tensor([turn.valid for turn in turns], dtype=torch.bool),
            cut=torch.tensor([turn.cut for turn in turns], dtype=torch.bool),
            prompt_cut=torch.tensor([prompt.cut for prompt in prompts], dtype=torch.bool),
        )

    def _pad(self, prompts: list[_Prompt], replies: list[list[int]], *, left: bool) -> dict[str, Tensor]:
        rows = [prompt.ids + reply for prompt, reply in zip(prompts, replies, strict=True)]
        width = max((len(row) for row in rows), default=0)
        vision = self.vlm.pictures
        inputs = {
            "input_ids": torch.full((len(rows), width), self.vlm.tokenizer.pad_token_id, dtype=torch.long),
            "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
            **{name: torch.zeros(len(rows), width, dtype=torch.long) for name in vision.beside_tokens},
        }
        for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            start = width - len(row) if left else 0
            inputs["input_ids"][index, start : start + len(row)] = torch.tensor(row)
            inputs["attention_mask"][index, start : start + len(row)] = 1
            for name, in_reply in vision.beside_tokens.items():
                values = inputs[name][index, start : start + len(row)]
                values[len(prompt.ids) :] = in_reply
                for place, picture in zip(prompt.starts, prompt.pictures, strict=True):
                    values[place : place + len(picture.ids)] = picture.beside[name]
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        return inputs | self.features.inputs([prompt.images for prompt in prompts], pictures)
