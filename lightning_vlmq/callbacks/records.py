"""What inspection shows: episodes and judgements as the records that are drawn."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.drawing import Alternative, Cell, Frame, Reply, Strip, elide
from lightning_vlmq.losses import realised_returns
from lightning_vlmq.modules.judgement import Judgement
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.turns import Episode, Turn

__all__ = [
    "QAndReturn",
    "Said",
    "TurnValues",
    "film_strips",
    "q_and_returns",
    "replies",
    "turn_values",
    "whole_replies",
]

_FRAMES = (3, 3)
"""First and last frames of a long episode; the very last one shows how it ended."""
_TOKENS = (9, 18)
"""First and last tokens of a long reply: thoughts come first, the action last."""
_PROMPT_LINES = 3


class QAndReturn(NamedTuple):
    """The critic's word at a turn's first token and what really came from there.

    Attributes:
        q: Predicted value of the first token.
        realised: Discounted rewards with penalties, to the end of the episode.
    """

    q: float
    realised: float


class TurnValues(NamedTuple):
    """What the critic says at a turn's first token, and the turn's K transitions.

    Attributes:
        q: Value of the first token.
        r_t: Rewards ``[K]``.
        discount_t: Discounts ``[K]``.
    """

    q: float
    r_t: Tensor
    discount_t: Tensor


class Said(NamedTuple):
    """A reply as one action.

    Attributes:
        q: Its value: that of its last token.
        share: Its probability in the expectations that the critic's targets are.
        discount: Of the whole turn, where it does not end the episode.
    """

    q: float
    share: float
    discount: float


def film_strips(episodes: Sequence[Episode], prompt: PromptMethod) -> list[Strip]:
    """Episodes as film strips.

    Args:
        episodes: Complete ones, with a reply each.
        prompt: How observations become prompts.
    """
    texts = [prompt.text(turn.observation) for episode in episodes for turn in episode.turns[:-1]]
    said_always = set.intersection(*(set(text.split("\n")) for text in texts)) if texts else set()
    strips = []
    for episode in episodes:
        frames = [_frame(turn, prompt, said_always) for turn in episode.turns[:-1]]
        frames.append(_ending(episode, prompt))
        length = "1 turn" if len(episode) == 1 else f"{len(episode)} turns"
        title = f"{episode.turns[0].episode}: {length}, return {episode.shaped_return:.4g}"
        if episode.shaped_return != episode.env_return:
            title += f" ({episode.env_return:.4g})"
        strips.append(Strip(title, elide(frames, *_FRAMES)))
    return strips


def replies(
    turns: Sequence[Turn], ids: Sequence[Sequence[int]], judged: Judgement, encoder: TurnEncoder
) -> list[Reply]:
    """Turns' replies token by token.

    Args:
        turns: The turns, in the judgement's order.
        ids: Tokens of each turn's reply.
        judged: What the module makes of them, on the CPU.
        encoder: Holds the tokenizer and the prompt.
    """
    found, tokenizer = [], encoder.vlm.tokenizer
    for row, (turn, tokens) in enumerate(zip(turns, ids, strict=True)):
        cells = [_cell(judged, row, place, token, tokenizer) for place, token in enumerate(tokens)]
        masks = [name for name, used in (("imitate", turn.imitate), ("td", turn.td)) if not used]
        notes = [
            f"turn {turn.index} ({turn.policy})",
            f"{'valid' if turn.valid else 'not valid'}, reward {turn.reward:+.4g}",
            *(f"{name}: false" for name in masks),
        ]
        pictures = encoder.prompt.images(turn.observation)
        found.append(Reply(turn.episode, tuple(notes), pictures, elide(cells, *_TOKENS)))
    return found


def turn_values(ids: Sequence[Sequence[int]], judged: Judgement) -> list[TurnValues]:
    """What of a judgement a comparison with returns needs.

    Args:
        ids: Tokens of each turn's reply.
        judged: What the module makes of them, with a critic's part, on the CPU.
    """
    critic = judged.critic
    assert critic is not None, "without a critic there is no Q to compare"
    return [
        TurnValues(float(critic.q[row, 0]), critic.r_t[row, : len(tokens)], critic.discount_t[row, : len(tokens)])
        for row, tokens in enumerate(ids)
    ]


def whole_replies(ids: Sequence[Sequence[int]], judged: Judgement) -> list[Said]:
    """Replies as single actions; arguments as for :func:`turn_values`."""
    critic, found = judged.critic, []
    assert critic is not None, "without a critic there is no Q to compare"
    for row, length in enumerate(map(len, ids)):
        share, discount = (float(each[row, :length].prod()) for each in (critic.share, critic.discount_t))
        found.append(Said(float(critic.q[row, length - 1]), share, discount))
    return found


def q_and_returns(turns: Sequence[TurnValues]) -> list[QAndReturn]:
    """Each turn's predicted value beside what really came, for all turns of an episode that ended for good."""
    returns = realised_returns(torch.cat([turn.r_t for turn in turns]), torch.cat([turn.discount_t for turn in turns]))
    firsts = itertools.accumulate((len(turn.r_t) for turn in turns[:-1]), initial=0)
    return [QAndReturn(turn.q, float(returns[first])) for turn, first in zip(turns, firsts, strict=True)]


def _frame(turn: Turn, prompt: PromptMethod, said_always: set[str]) -> Frame:
    lines = prompt.text(turn.observation).split("\n")
    own = [line for line in lines if line not in said_always] or lines[-1:]
    return Frame(
        title=f"turn {turn.index} ({turn.policy})",
        pictures=prompt.images(turn.observation),
        prompt=tuple(own[-_PROMPT_LINES:]),
        reply=turn.reply,
        valid=turn.valid,
        reward=turn.reward,
        env_reward=turn.env_reward,
    )


def _ending(episode: Episode, prompt: PromptMethod) -> Frame:
    last, after = episode.turns[-2], episode.turns[-1]
    end = "goal reached" if episode.goal else "goal not reached"
    if last.truncated:
        end += ", cut by the environment"
    return Frame("the end", prompt.images(after.observation), outcome=end)


def _cell(judged: Judgement, row: int, place: int, token: int, tokenizer: Any) -> Cell:
    critic, at = judged.critic, (row, place)
    others = [
        Alternative(
            text=_text(tokenizer, other),
            pi=pi,
            q=None if critic is None else float(critic.q_alternatives[at][number]),
            counts=critic is None or bool(critic.share_alternatives[at][number] > 0),
        )
        for number, (other, pi) in enumerate(
            zip(judged.alternatives[at].tolist(), judged.log_pi_alternatives[at].exp().tolist(), strict=True)
        )
    ]
    cell = Cell(_text(tokenizer, token), float(judged.log_pi[at].exp()), alternatives=tuple(others))
    if critic is None:
        return cell
    return replace(
        cell,
        q=float(critic.q[at]),
        v=float(critic.v[at]),
        advantage=float(critic.advantage[at]),
        weight=None if critic.weight is None else float(critic.weight[at]),
    )


def _text(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
