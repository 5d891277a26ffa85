"""Token sequences for the language stage: one picture, many turns, each turn blind to the others."""

import itertools
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from scripts.embedded_vlm.alignment import Facts, number_question, short_question, suits_alignment
from scripts.embedded_vlm.conversations import FORBIDDEN, dress, filler, make_turn, random_string
from scripts.embedded_vlm.knowledge import name_thing
from scripts.embedded_vlm.model import IMAGE_TOKENS
from scripts.embedded_vlm.questions import describe
from scripts.embedded_vlm.training import worker_random
from scripts.embedded_vlm.world_questions import short_world_question

__all__ = ["LESSONS", "STATE", "Batch", "Lesson", "Sequences", "collate", "turn_tokens"]

STATE = -200
"""Label of positions without a wanted token, whose hidden state has to know the picture (``knowledge.py``)."""


class Lesson(NamedTuple):
    """What a part of the language stage practises.

    Attributes:
        end: Step at which it ends.
        pictured: Share of sequences with a picture.
        short: Share of questions that are short ones about labelled numbers and cards.
        simple: Share of these in the fewest forms.
        describing: Share of questions that ask for everything in the picture.
        copying: Share of turns that copy, alone or in the same reply as an answer.
        wordy: Share of turns with sentences around the question.
        numbers: Share of turns without picture that are about numbers given in words.
        cards: Share of pictures that are drawn from tables with cards only.
        batch: Sequences a step.
        labels: Share of pictures that are drawn from those of labelled numbers only.
        found: Share of the simple questions about these that ask for the number behind a label.
        unasked: Share of turns about a picture that ask nothing.
        merge: At its end its weights are averaged with those of an earlier step: the step, their share.
        worlds: Share of pictures that are drawn from grid worlds only.
    """

    end: int
    pictured: float
    short: float
    simple: float
    describing: float
    copying: float
    wordy: float
    numbers: float
    cards: float = 0.0
    batch: int = 16
    labels: float = 0.0
    found: float = 0.2
    unasked: float = 0.0
    merge: tuple[int, float] | None = None
    worlds: float = 0.0


LESSONS = (
    # end, pictured, short, simple, describing, copying, wordy, numbers, cards, batch, labels, found, unasked, merge,
    # worlds
    # Text alone first: copying is learned in minutes where every token of a batch practises it.
    Lesson(450, 0.0, 0.0, 0.0, 0.0, 0.6, 0.0, 0.1),
    # Comparing and adding numbers in words: not learned from pictures alone in thousands of steps.
    Lesson(800, 0.0, 0.0, 0.0, 0.0, 0.2, 0.0, 0.8),
    # The fewest questions about pictures, their tiles named meanwhile: what tiles show becomes words.
    Lesson(1900, 0.9, 1.0, 1.0, 0.03, 0.1, 0.0, 0.6),
    Lesson(4000, 0.7, 1.0, 1.0, 0.03, 0.1, 0.0, 0.85),
    # The same in many forms and among sentences, then everything.
    Lesson(5500, 0.75, 1.0, 0.6, 0.04, 0.3, 0.2, 0.85),
    Lesson(7000, 0.85, 0.75, 0.2, 0.04, 0.35, 0.4, 0.5),
    Lesson(9000, 0.85, 0.8, 0.45, 0.04, 0.35, 0.35, 0.5),
    # Order, totals and labels once more, in few forms; labels and totals are learned in words here, then in pictures.
    Lesson(10500, 0.6, 0.95, 0.7, 0.03, 0.2, 0.2, 0.85),
    Lesson(11750, 0.7, 1.0, 0.7, 0.03, 0.2, 0.2, 0.85),
    Lesson(12500, 0.75, 1.0, 0.9, 0.02, 0.15, 0.15, 0.9, 0.75),
    Lesson(13500, 0.8, 0.9, 0.7, 0.03, 0.2, 0.25, 0.85, 0.35),
    # Order again, in all kinds of prompts and behind copied strings: agents learn from what lies ready there.
    Lesson(14700, 0.85, 1.0, 0.65, 0.03, 0.35, 0.5, 0.8, 0.25),
    # Totals of three and more cards need many tables, not many looks at few; then order again.
    Lesson(16700, 0.85, 1.0, 0.75, 0.02, 0.2, 0.25, 0.8, 0.7),
    Lesson(17700, 0.85, 1.0, 0.65, 0.03, 0.35, 0.5, 0.8, 0.35),
    # The same once more, mostly about the longer row of a table, and aces that count 11.
    Lesson(19700, 0.85, 1.0, 0.75, 0.02, 0.2, 0.25, 0.8, 0.75),
    Lesson(20700, 0.85, 1.0, 0.65, 0.03, 0.35, 0.5, 0.8, 0.4),
    # Everything at once, as much as a GPU can practise in minutes: all questions, all pictures, all prompts.
    Lesson(23500, 0.85, 0.45, 0.4, 0.05, 0.3, 0.35, 0.6, 0.25, 128),
    Lesson(26100, 0.88, 0.45, 0.5, 0.04, 0.35, 0.45, 0.6, 0.3, 128),
    # Which number belongs to which label, in two forms, and half-way back; then everything once more.
    Lesson(26900, 0.95, 1.0, 0.9, 0.02, 0.1, 0.1, 0.6, 0.0, 16, 0.85, 0.7, 0.0, (26100, 0.55)),
    Lesson(27650, 0.9, 0.55, 0.5, 0.05, 0.3, 0.35, 0.5, 0.2, 16, 0.2, 0.4),
    Lesson(28750, 0.92, 0.55, 0.5, 0.05, 0.3, 0.3, 0.5, 0.25, 16, 0.15, 0.5),
    # What the picture shows has to be known behind any prompt: agents learn from the states behind theirs.
    Lesson(31750, 0.95, 0.55, 0.5, 0.05, 0.3, 0.3, 0.5, 0.4, 16, 0.12, 0.5, 0.4, (28750, 0.3)),
    Lesson(34750, 0.95, 0.55, 0.5, 0.05, 0.25, 0.3, 0.5, 0.45, 16, 0.12, 0.5, 0.55),
    Lesson(36750, 0.95, 0.5, 0.5, 0.05, 0.3, 0.3, 0.5, 0.38, 16, 0.12, 0.5, 0.4, (28750, 0.3)),
    # Points of a row as one more fact, and the aces among low cards that it needs.
    Lesson(40250, 0.95, 0.5, 0.5, 0.05, 0.25, 0.3, 0.5, 0.5, 16, 0.12, 0.5, 0.5, (36750, 0.3)),
    # Agents' views and where a named thing is as seen from the agent, in few forms first; then everything once more.
    Lesson(41400, 0.97, 0.8, 0.85, 0.03, 0.15, 0.15, 0.5, 0.15, 16, 0.08, 0.5, 0.5, None, 0.65),
    Lesson(42200, 0.95, 0.6, 0.6, 0.05, 0.25, 0.3, 0.5, 0.3, 16, 0.12, 0.5, 0.5, (40250, 0.3), 0.4),
    # What stands ahead of an agent and beside it, and of which kind; each time everything once more.
    Lesson(42950, 0.97, 0.7, 0.75, 0.03, 0.2, 0.2, 0.5, 0.2, 16, 0.1, 0.5, 0.5, None, 0.55),
    Lesson(43500, 0.95, 0.6, 0.6, 0.05, 0.25, 0.3, 0.5, 0.3, 16, 0.12, 0.5, 0.5, None, 0.4),
    Lesson(44050, 0.97, 0.7, 0.75, 0.03, 0.2, 0.2, 0.5, 0.15, 16, 0.1, 0.5, 0.5, None, 0.6),
    Lesson(44500, 0.95, 0.6, 0.6, 0.05, 0.25, 0.3, 0.5, 0.3, 16, 0.12, 0.5, 0.5, None, 0.4),
    Lesson(45200, 0.97, 0.85, 0.9, 0.03, 0.1, 0.1, 0.5, 0.08, 16, 0.05, 0.5, 0.5, None, 0.75),
    Lesson(45600, 0.95, 0.6, 0.6, 0.05, 0.25, 0.3, 0.5, 0.3, 16, 0.12, 0.5, 0.5, None, 0.4),
    Lesson(46100, 0.95, 0.45, 0.5, 0.07, 0.25, 0.35, 0.5, 0.25, 16, 0.1, 0.5, 0.4, (42200, 0.15), 0.2),
)


class Row(NamedTuple):
    """A sequence before it is padded: see :class:`Batch`."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    labels: list[int]
    named: list[tuple[int, int]]
    picture: int
    kinds: list[str]


class Batch(NamedTuple):
    """A batch of packed sequences.

    Attributes:
        ids: Tokens ``[B, T]``, padded on the right.
        positions: Rotary positions ``[B, T]``; every turn continues behind the shared prefix.
        segments: 0 for the shared prefix, 1.. for turns, -1 for padding ``[B, T]``.
        labels: Next token where it belongs to an answer, else :data:`STATE` or -100 ``[B, T]``.
        pictures: Index of the picture in the pool, -1 for none ``[B]``.
        named: Where labels are :data:`STATE`, classes of the thing that the message names (``knowledge.NAMED``), -1 for
            none ``[B, T, 2]``.
        kinds: Kind of each turn with an answer, by row.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    labels: Tensor
    pictures: Tensor
    named: Tensor
    kinds: list[list[str]]


def turn_tokens(rng: Random, tokenizer: Any, facts: Facts | None, lesson: Lesson) -> tuple[list[int], list[int], str]:
    """Make a turn as tokens: message, reply with stop token, kind.

    Some turns copy raw token ids, so that every token of the vocabulary is practised as output, also those that no
    text is split into.
    """
    if rng.random() < 0.2 * lesson.copying:
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
    kind = "plain" if facts is None else facts[0]
    asked = None
    if facts and suits_alignment(facts) and rng.random() < lesson.short:
        asked, kind = short_question(rng, facts, lesson.simple, lesson.found), f"short {kind}"
    elif facts and kind == "grid" and lesson.worlds and rng.random() < lesson.short:
        asked, kind = short_world_question(rng, facts[1]), "short grid"
    question, text, copies = make_turn(rng, facts, lesson.copying, 0.0, asked)
    if copies:
        kind = "copy" if text == copies[0] else f"copy+{kind}"
    if rng.random() < lesson.wordy:
        question = dress(rng, question)
    return tokenizer.encode(question), [*tokenizer.encode(text), tokenizer.eos_token_id], kind


def _unasked(
    rng: Random, tokenizer: Any, facts: Facts, lesson: Lesson
) -> tuple[list[int], list[int], bool, tuple[int, int]]:
    """A message that asks nothing, a reply, whether the reply is to be learned, classes of the thing that is named.

    Half of them say what the picture shows. The others hold any string, as the prompt of an agent does whose task
    nobody has explained: there the states count.
    """
    sentences = [filler(rng) for _ in range(rng.randint(1, 6))]
    simple = rng.random() < lesson.simple
    named = name_thing(rng, facts, simple) if rng.random() < 0.8 else None
    if named and simple:
        sentences = [named[0], *sentences[: rng.randint(0, 1)]]
    elif named:
        sentences.insert(rng.randrange(len(sentences)), named[0])
    classes = named[1] if named else (-1, -1)
    message = tokenizer.encode(rng.choice([" ", " ", "\n"]).join(sentences))
    if rng.random() < 0.5:
        return message, [*tokenizer.encode(describe(rng, *facts)[1]), tokenizer.eos_token_id], True, classes
    reply = FORBIDDEN
    while FORBIDDEN in reply.replace(" ", ""):
        reply = " ".join(random_string(rng) for _ in range(rng.randint(1, 2)))
    return message, tokenizer.encode(reply)[:10], False, classes


def _drill(rng: Random, tokenizer: Any) -> tuple[list[int], list[int], str]:
    """Copy a long string of random tokens: the quickest way to heads that find a token's last occurrence."""
    while True:
        ids = [rng.randrange(8, len(tokenizer)) for _ in range(rng.randint(4, 24))]
        if FORBIDDEN not in tokenizer.decode(ids):
            before = rng.choice(["Say ", "Write ", "Repeat: ", "Copy: "])
            return [*tokenizer.encode(before), *ids], [*ids, tokenizer.eos_token_id], "drill"


class Sequences(IterableDataset[Any]):
    """Endless packed sequences about a pool of pictures.

    Args:
        tokenizer: The model's tokenizer.
        facts: Kind and facts of each picture of the pool.
        seed: Seed of the stream.
        lessons: What is practised when.
        first: Batches that were drawn before.
        general: Pictures that come first and are of all kinds; those behind them are drawn only where a lesson
            asks for cards or for labels.
        turns: Turns a sequence.
    """

    def __init__(
        self,
        tokenizer: Any,
        facts: list[Facts],
        seed: int,
        lessons: tuple[Lesson, ...] = LESSONS,
        first: int = 0,
        general: int | None = None,
        turns: int = 8,
    ) -> None:
        self.tokenizer, self.facts, self.seed, self.lessons, self.first = tokenizer, facts, seed, lessons, first
        self.turns = turns
        self.general = len(facts) if general is None else general
        self.aligned = [index for index in range(self.general) if suits_alignment(facts[index])]
        self.tables = [i for i, known in enumerate(facts) if known[0] == "cards" and suits_alignment(known)]
        self.labels = [i for i, known in enumerate(facts) if known[0] == "labels"]
        self.worlds = [i for i, known in enumerate(facts) if known[0] == "grid"]

    def __iter__(self) -> Iterator[Batch]:
        """Draw batches for ever."""
        rng, index, workers = worker_random(self.seed)
        for drawn in itertools.count(self.first + index, workers):
            lesson = next((entry for entry in self.lessons if drawn < entry.end), self.lessons[-1])
            yield collate([self._sequence(rng, lesson) for _ in range(lesson.batch)], self.tokenizer.pad_token_id)

    def _picture(self, rng: Random, lesson: Lesson) -> int:
        chance = rng.random()
        if chance < lesson.cards:
            return rng.choice(self.tables)
        if chance < lesson.cards + lesson.labels:
            return rng.choice(self.labels)
        if chance < lesson.cards + lesson.labels + lesson.worlds:
            return rng.choice(self.worlds)
        return rng.choice(self.aligned) if lesson.short == 1 else rng.randrange(self.general)

    def _sequence(self, rng: Random, lesson: Lesson) -> Row:
        token = self.tokenizer.convert_tokens_to_ids
        user, assistant, eos = token("<|user|>"), token("<|assistant|>"), self.tokenizer.eos_token_id
        fake, image = token("<fake_token_around_image>"), token("<image>")
        block = [fake, token("<global-img>"), *[image] * IMAGE_TOKENS, fake]
        picture = -1
        if rng.random() < lesson.pictured:
            picture = self._picture(rng, lesson)
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
        named = [(-1, -1)] * len(prefix)
        for turn in range(1, count + 1):
            spoken, classes = True, (-1, -1)
            if facts and rng.random() < lesson.unasked:
                message, reply, spoken, classes = _unasked(rng, self.tokenizer, facts, lesson)
                kind = f"unasked {facts[0]}"
            elif picture < 0 and rng.random() < lesson.numbers:
                question, text, kind = number_question(rng)
                message, reply = self.tokenizer.encode(question), [*self.tokenizer.encode(text), eos]
            elif picture < 0 and rng.random() < 0.6:
                message, reply, kind = _drill(rng, self.tokenizer)
            elif facts and rng.random() < lesson.describing:
                question, text = describe(rng, *facts)
                message, kind = self.tokenizer.encode(question), f"all {facts[0]}"
                reply = [*self.tokenizer.encode(text), eos]
            else:
                message, reply, kind = turn_tokens(rng, self.tokenizer, facts, lesson)
            head = [] if picture >= 0 and not image_last and (turn == 1 or not chained) else [user]
            body = [*head, *message, *(block if image_last else []), eos, assistant]
            start = positions[-1] + 1 if chained and positions else len(prefix)
            labels += [-100] * (len(body) - 1)
            labels += [*reply, -100] if spoken else [STATE] * (len(reply) + 1)
            named += [classes] * (len(body) + len(reply))
            ids += body + reply
            positions += range(start, start + len(body) + len(reply))
            segments += [0 if chained else turn] * (len(body) + len(reply))
            if spoken:
                kinds.append(kind)
        return Row(ids, positions, segments, labels, named, picture, kinds)


def collate(rows: list[Row], pad: int) -> Batch:
    """Pad sequences to the longest one."""
    length = max(len(row.ids) for row in rows)

    def padded(values: list[Any], fill: Any) -> list[Any]:
        return [*values, *[fill] * (length - len(values))]

    return Batch(
        torch.tensor([padded(row.ids, pad) for row in rows]),
        torch.tensor([padded(row.positions, 0) for row in rows]),
        torch.tensor([padded(row.segments, -1) for row in rows]),
        torch.tensor([padded(row.labels, -100) for row in rows]),
        torch.tensor([row.picture for row in rows]),
        torch.tensor([padded(row.named, (-1, -1)) for row in rows]),
        [row.kinds for row in rows],
    )
