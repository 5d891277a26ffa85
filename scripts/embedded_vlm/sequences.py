"""Token sequences for the language stages: one picture, many turns, each turn blind to the others."""

import itertools
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from scripts.embedded_vlm.alignment import short_description, short_turn
from scripts.embedded_vlm.conversations import FORBIDDEN, filler, make_turn
from scripts.embedded_vlm.model import IMAGE_TOKENS
from scripts.embedded_vlm.questions import describe

__all__ = ["Batch", "Sequences", "collate", "turn_tokens"]

Facts = tuple[str, dict[str, Any]]


class Batch(NamedTuple):
    """A batch of packed sequences.

    Attributes:
        ids: Tokens ``[B, T]``, padded on the right.
        positions: Rotary positions ``[B, T]``; every turn continues behind the shared prefix.
        segments: 0 for the shared prefix, 1.. for turns, -1 for padding ``[B, T]``.
        labels: Next token where it belongs to an answer, else -100 ``[B, T]``.
        pictures: Index of the picture in the pool, -1 for none ``[B]``.
        kinds: Kind of each turn, by row.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    labels: Tensor
    pictures: Tensor
    kinds: list[list[str]]


def turn_tokens(
    rng: Random, tokenizer: Any, facts: Facts | None, copying: float, wordy: float
) -> tuple[list[int], list[int], str]:
    """Make a turn as tokens: message, reply with stop token, kind.

    Some turns copy raw token ids, so that every token of the vocabulary is practised as output, also those that no
    text is split into.
    """
    if rng.random() < 0.2 * copying:
        ids: list[int] = []
        while not ids or FORBIDDEN in tokenizer.decode(ids):
            ids = [rng.randrange(8, len(tokenizer)) for _ in range(rng.choice([1, 1, 2, 3, 4, 6]))]
        before, after = rng.choice([('Say "', '".'), ("Write ", ""), ("Repeat: ", ""), ("Copy: ", "")])
        message = [*tokenizer.encode(before), *ids, *tokenizer.encode(after)]
        answer: list[int] = []
        if facts and rng.random() < 0.5:
            question, text, _ = make_turn(rng, facts, 0.0, 0.0)
            message += tokenizer.encode(f", then answer: {question}")
            answer = tokenizer.encode(f" {text}")
        return message, [*ids, *answer, tokenizer.eos_token_id], "ids"
    question, text, copies = make_turn(rng, facts, copying, wordy)
    kind = "plain" if facts is None else facts[0]
    if copies:
        kind = "copy" if text == copies[0] else f"copy+{kind}"
    return tokenizer.encode(question), [*tokenizer.encode(text), tokenizer.eos_token_id], kind


def _drill(rng: Random, tokenizer: Any) -> tuple[list[int], list[int], str]:
    """Copy a long string of random tokens: the quickest way to heads that find a token's last occurrence."""
    while True:
        ids = [rng.randrange(8, len(tokenizer)) for _ in range(rng.randint(5, 16))]
        if FORBIDDEN not in tokenizer.decode(ids):
            before = rng.choice(["Say ", "Write ", "Repeat: ", "Copy: "])
            return [*tokenizer.encode(before), *ids], [*ids, tokenizer.eos_token_id], "drill"


class Sequences(IterableDataset[Any]):
    """Endless packed sequences about a pool of pictures.

    Args:
        tokenizer: The model's tokenizer.
        facts: Kind and facts of each picture of the pool.
        seed: Seed of the stream.
        copying: Share of turns that copy.
        drills: Batches without pictures at the start, counted over the whole stream.
        first: Batches that were drawn before.
        wordy: Share of turns with sentences around the question.
        turns: Turns a sequence.
        batch: Sequences a batch.
        short: Asks only the short questions of :mod:`~scripts.embedded_vlm.alignment`.
    """

    def __init__(
        self,
        tokenizer: Any,
        facts: list[Facts],
        seed: int,
        copying: float,
        wordy: float,
        turns: int = 8,
        batch: int = 16,
        drills: int = 0,
        first: int = 0,
        short: bool = False,
    ) -> None:
        self.tokenizer, self.facts, self.seed = tokenizer, facts, seed
        self.copying, self.wordy, self.turns, self.batch = copying, wordy, turns, batch
        self.turn, self.describe = (short_turn, short_description) if short else (turn_tokens, describe)
        self.drills, self.first, self.pictured, self.describing = drills, first, 0.0, 0.0

    def __iter__(self) -> Iterator[Batch]:
        """Draw batches for ever."""
        rng = Random(self.seed)
        for drawn in itertools.count(self.first):
            # Text alone first: copying is learned in minutes where every token of a batch practises it.
            self.pictured = 0.0 if drawn < self.drills else 0.85
            # Then whole pictures in words, which align the two; few of them once that is learned.
            self.describing = max(0.05, 0.5 - (drawn - self.drills) / 1000)
            yield collate([self._sequence(rng) for _ in range(self.batch)], self.tokenizer.pad_token_id)

    def _sequence(self, rng: Random) -> tuple[list[int], list[int], list[int], list[int], int, list[str]]:
        token = self.tokenizer.convert_tokens_to_ids
        user, assistant, eos = token("<|user|>"), token("<|assistant|>"), self.tokenizer.eos_token_id
        fake, image = token("<fake_token_around_image>"), token("<image>")
        block = [fake, token("<global-img>"), *[image] * IMAGE_TOKENS, fake]
        picture = rng.randrange(len(self.facts)) if rng.random() < self.pictured else -1
        facts = self.facts[picture] if picture >= 0 else None
        prefix: list[int] = []
        if rng.random() < 0.12:
            prefix = [token("<|system|>"), *self.tokenizer.encode(filler(rng)), eos]
        image_last = picture >= 0 and rng.random() < 0.08
        chained = rng.random() < 0.15  # a true conversation: turns see each other
        if picture >= 0 and not image_last:
            prefix = [*prefix, user, *block]
        count = 1 if image_last else self.turns
        ids, positions, segments, labels = (
            list(prefix),
            list(range(len(prefix))),
            [0] * len(prefix),
            [-100] * len(prefix),
        )
        kinds: list[str] = []
        for turn in range(1, count + 1):
            if picture < 0 and rng.random() < 0.6:
                message, reply, kind = _drill(rng, self.tokenizer)
            elif facts and rng.random() < self.describing:
                question, text = self.describe(rng, *facts)
                message, kind = self.tokenizer.encode(question), f"all {facts[0]}"
                reply = [*self.tokenizer.encode(text), eos]
            else:
                message, reply, kind = self.turn(rng, self.tokenizer, facts, self.copying, self.wordy)
            head = [] if picture >= 0 and not image_last and (turn == 1 or not chained) else [user]
            body = [*head, *message, *(block if image_last else []), eos, assistant]
            start = positions[-1] + 1 if chained and positions else len(prefix)
            labels += [-100] * (len(body) - 1) + reply + [-100]
            ids += body + reply
            positions += range(start, start + len(body) + len(reply))
            segments += [0 if chained else turn] * (len(body) + len(reply))
            kinds.append(kind)
        return ids, positions, segments, labels, picture, kinds


def collate(rows: list[tuple[list[int], list[int], list[int], list[int], int, list[str]]], pad: int) -> Batch:
    """Pad sequences to the longest one."""
    length = max(len(row[0]) for row in rows)

    def padded(column: int, value: int) -> Tensor:
        return torch.tensor([[*row[column], *[value] * (length - len(row[column]))] for row in rows])  # type: ignore[misc]

    return Batch(
        padded(0, pad),
        padded(1, 0),
        padded(2, -1),
        padded(3, -100),
        torch.tensor([row[4] for row in rows]),
        [row[5] for row in rows],
    )
