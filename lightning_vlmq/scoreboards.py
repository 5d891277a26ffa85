"""Exact scores and values of a policy, where an environment is small enough to be read out completely."""

import contextlib
import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.envs.blackjack import Blackjack, BlackjackState
from lightning_vlmq.envs.exact_blackjack import (
    HandOptions,
    blackjack_q,
    sample_every_state,
    score_blackjack,
    state_means,
)
from lightning_vlmq.envs.exact_numberline import numberline_pairs, numberline_q
from lightning_vlmq.envs.numberline import NumberLine
from lightning_vlmq.policy import VLMPolicy
from lightning_vlmq.rollout import play
from lightning_vlmq.turns import Observation

__all__ = [
    "BlackjackQ",
    "BlackjackScoreboard",
    "NumberLineQ",
    "NumberLineScoreboard",
    "QBoard",
    "Scoreboard",
    "first_seen",
]


class Scoreboard(Protocol):
    """Anything that scores the VLM of an encoder in an environment."""

    name: str

    def __call__(self, encoder: TurnEncoder, env: AgentEnv) -> dict[str, float]:
        """Named scores."""
        ...


class NumberLineScoreboard:
    """Plays each of NumberLine's 30 start pairs greedily.

    ``pairs_shortest`` counts those solved by the shortest way, ``pairs_reached`` those solved at all.
    """

    name = "NumberLine, every start pair, greedy"

    def __call__(self, encoder: TurnEncoder, env: AgentEnv) -> dict[str, float]:
        """Scores of the greedy policy."""
        pairs = list(numberline_pairs())
        options = [{"start": start, "target": target} for start, target in pairs]
        shortest = reached = 0
        seeds = range(len(pairs))
        for episode in play(env, [VLMPolicy(encoder)], seeds, options=options, parallel=len(pairs)):
            start, target = pairs[episode.turns[0].seed]
            reached += episode.goal
            shortest += episode.goal and len(episode) == abs(start - target)
        return {"pairs": len(pairs), "pairs_shortest": shortest, "pairs_reached": reached}


class BlackjackScoreboard:
    """Reads out the greedy policy over all Blackjack states and scores it by dynamic programming.

    A state (total, soft, dealer's card) can be held in many hands and the policy sees the hand, so several hands
    of each state are shown, and the policy of a state is the share of them that it hits. An invalid reply
    counts as standing here; ``valid`` is the share that was valid.

    Args:
        hands: Hands shown for each state.
        seed: Of the hands.
    """

    name = "Blackjack, every state, greedy, exact"

    def __init__(self, hands: int = 4, seed: int = 0) -> None:
        self.hands = hands
        self.seed = seed

    def __call__(self, encoder: TurnEncoder, env: AgentEnv) -> dict[str, float]:
        """Scores of the greedy policy."""
        rng = np.random.default_rng(self.seed)
        policy = VLMPolicy(encoder)
        shown = sample_every_state(rng, self.hands)
        observations = first_seen(env, (hand for _, hand in shown), self.seed)
        replies = policy.reply([env] * len(shown), observations)
        actions = [env.parser.parse(reply.text) for reply in replies]
        valid = sum(action in ("hit", "stand") for action in actions)
        score = score_blackjack(state_means(shown, (action == "hit" for action in actions)))
        return {
            "win": score.win,
            "lose": score.lose,
            "draw": score.draw,
            "mean_return": score.mean_return,
            "valid": valid / len(shown),
            "hands": len(shown),
        }


class QBoard(Protocol):
    """Anything that knows the exact values of a policy in an environment of two actions.

    Attributes:
        actions: Texts of the two.
    """

    actions: tuple[str, str]

    def check(self, env: AgentEnv) -> None:
        """Raises ``ValueError`` where the environment is not the one that it knows."""
        ...

    def states(self, env: AgentEnv) -> list[Observation]:
        """States as the agent sees them."""
        ...

    def q(self, env: AgentEnv, first: Sequence[float], discount: float) -> list[tuple[float, float]]:
        """Values of both actions in each of :meth:`states`.

        Args:
            env: Its penalties and limits count; replies are taken to be valid.
            first: The policy: probability of the first action in each of the states.
            discount: Of a whole turn.
        """
        ...


class NumberLineQ:
    """NumberLine's 30 start pairs; the policy of a pair is taken to be the same after any number of steps."""

    actions = ("+", "-")

    def check(self, env: AgentEnv) -> None:
        """NumberLine with a step limit of the wrapper's, and none of its own."""
        _check_known(self, env, NumberLine)
        if env.step_limit == 0 or getattr(env.env, "max_steps", None):
            raise ValueError("NumberLineQ needs environment.step_limit above 0, and NumberLine without max_steps")

    def states(self, env: AgentEnv) -> list[Observation]:
        """Each pair (current, target) at an episode's start."""
        return first_seen(env, ({"start": start, "target": target} for start, target in numberline_pairs()))

    def q(self, env: AgentEnv, first: Sequence[float], discount: float) -> list[tuple[float, float]]:
        """Values of ``+`` and ``-`` with all replies ahead."""
        plus, scale = dict(zip(numberline_pairs(), first, strict=True)), env.reward_scale
        values = numberline_q(lambda *pair: plus[pair], discount, env.step_limit, env.end_penalty / scale)
        return [(scale * values[*pair, 0]["+"], scale * values[*pair, 0]["-"]) for pair in plus]


class BlackjackQ:
    """Blackjack's 280 states in some hands each; the policy of a state is its mean over them.

    Args:
        hands: Hands shown for each state.
        seed: Of the hands.
    """

    actions = ("hit", "stand")

    def __init__(self, hands: int = 1, seed: int = 0) -> None:
        self.hands = hands
        self.seed = seed

    def check(self, env: AgentEnv) -> None:
        """Blackjack."""
        _check_known(self, env, Blackjack)

    def states(self, env: AgentEnv) -> list[Observation]:
        """Hands of each state."""
        return first_seen(env, (hand for _, hand in self._shown()), self.seed)

    def q(self, env: AgentEnv, first: Sequence[float], discount: float) -> list[tuple[float, float]]:
        """Values of ``hit`` and ``stand``; the limits do not matter."""
        shown, scale = self._shown(), env.reward_scale
        values = blackjack_q(state_means(shown, first), discount)
        return [(scale * values[state]["hit"], scale * values[state]["stand"]) for state, _ in shown]

    def _shown(self) -> list[tuple[BlackjackState, HandOptions]]:
        return sample_every_state(np.random.default_rng(self.seed), self.hands)


def first_seen(env: AgentEnv, starts: Iterable[Mapping[str, object]], seed: int = 0) -> list[Observation]:
    """Observations at the start of episodes with given reset options, in a copy that is closed again."""
    with contextlib.closing(copy.deepcopy(env)) as shower:
        return [shower.reset(seed=seed + number, options={**start}) for number, start in enumerate(starts)]


def _check_known(board: QBoard, env: AgentEnv, known: type) -> None:
    if not isinstance(env.env, known) or env.reward_scale == 0:
        raise ValueError(
            f"{type(board).__name__} knows {known.__name__} with a reward_scale other than 0, not this "
            f"{type(env.env).__name__}; leave `exact` out"
        )
