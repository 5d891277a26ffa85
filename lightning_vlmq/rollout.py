"""Environments + policies -> episodes."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lightning_vlmq.envs.agent import AgentEnv, Outcome
from lightning_vlmq.policy import Policy, Reply
from lightning_vlmq.turns import Episode, Observation, Turn

__all__ = ["play"]


def play(
    env: AgentEnv,
    policies: Sequence[Policy],
    seeds: Sequence[int],
    *,
    shares: Sequence[float] | None = None,
    parallel: int = 128,
    seed: int = 0,
    options: Sequence[Mapping[str, object]] | None = None,
) -> Iterator[Episode]:
    """Plays one episode a seed, many at once, and yields each as it ends.

    Args:
        env: The environment; copies of it play in parallel.
        policies: Who replies; with several, each turn draws one of them.
        seeds: Seeds of the episodes; an episode's identifier is made from its seed.
        shares: Probability of each policy, equal if ``None``.
        parallel: Episodes played at once.
        seed: Of the draw between policies.
        options: Reset options of each episode, for chosen start states.

    Raises:
        ValueError: ``shares`` do not fit ``policies`` or do not sum to one.
    """
    weights = np.full(len(policies), 1 / len(policies)) if shares is None else np.asarray(shares, dtype=float)
    if len(weights) != len(policies) or (weights < 0).any() or not np.isclose(weights.sum(), 1):
        raise ValueError(f"shares of policies must be {len(policies)} numbers >= 0 that sum to 1, not {list(weights)}")
    rng = np.random.default_rng(seed)
    waiting = list(zip(seeds, options or [{}] * len(seeds), strict=True))[::-1]
    running = [_Running(copy.deepcopy(env)) for _ in range(min(parallel, len(waiting)))]
    for slot in running:
        slot.begin(*waiting.pop())
    try:
        while running:
            chosen = rng.choice(len(policies), size=len(running), p=weights)
            replies: dict[int, Reply] = {}
            for index, policy in enumerate(policies):
                where = [i for i in range(len(running)) if chosen[i] == index]
                if where:
                    said = policy.reply([running[i].env for i in where], [running[i].observation for i in where])
                    replies.update(zip(where, said, strict=True))
            done: list[_Running] = []
            for i, slot in enumerate(running):
                if slot.step(replies[i], policies[chosen[i]].name):
                    yield slot.episode()
                    if waiting:
                        slot.begin(*waiting.pop())
                    else:
                        done.append(slot)
            for slot in done:
                slot.env.close()
                running.remove(slot)
    finally:
        for slot in running:
            slot.env.close()


class _Running:
    """One environment and the rows of its open episode."""

    def __init__(self, env: AgentEnv) -> None:
        self.env = env
        self.turns: list[Turn] = []
        self.observation = Observation()
        self.seed = 0

    def begin(self, seed: int, options: Mapping[str, object]) -> None:
        self.seed = seed
        self.turns = []
        self.observation = self.env.reset(seed=seed, options=dict(options) or None)

    def step(self, reply: Reply, policy: str) -> bool:
        """Plays a reply; True when the episode ended."""
        outcome: Outcome = self.env.step(reply.text)
        self.turns.append(
            Turn(
                env=self.env.name,
                episode=self._name,
                index=len(self.turns),
                observation=self.observation,
                reply=reply.text,
                reply_ids=reply.ids,
                tokenizer=reply.tokenizer,
                cut=reply.cut,
                forced=reply.forced,
                action=outcome.action,
                valid=outcome.valid,
                reward=outcome.reward,
                env_reward=outcome.env_reward,
                terminated=outcome.terminated,
                truncated=outcome.truncated,
                goal=outcome.goal,
                policy=policy,
                seed=self.seed,
            )
        )
        self.observation = outcome.observation
        return outcome.terminated or outcome.truncated

    @property
    def _name(self) -> str:
        return f"{self.env.name}-{self.seed}"

    def episode(self) -> Episode:
        last = Turn(
            env=self.env.name,
            episode=self._name,
            index=len(self.turns),
            observation=self.observation,
            seed=self.seed,
        )
        return Episode((*self.turns, last))
