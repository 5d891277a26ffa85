"""Exact scores of a greedy policy, where an environment is small enough to be read out completely."""

from typing import Protocol

import numpy as np

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.envs.exact_blackjack import sample_every_state, score_blackjack, state_means
from lightning_vlmq.envs.exact_numberline import numberline_pairs
from lightning_vlmq.policy import VLMPolicy
from lightning_vlmq.rollout import play

__all__ = ["BlackjackScoreboard", "NumberLineScoreboard", "Scoreboard"]


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
        observations = []
        for number, (_, hand) in enumerate(shown):
            observations.append(env.reset(seed=self.seed + number, options={**hand}))
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
