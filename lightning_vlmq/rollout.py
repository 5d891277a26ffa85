"""Environments + policies -> episodes."""

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lightning_vlmq.envs.agent import AgentEnv, Outcome
from lightning_vlmq.policy import Policy, Reply
from lightning_vlmq.turns import Episode, Observation, Turn

__all__ = ["Rollout", "play"]


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
    starts = zip(seeds, options or [{}] * len(seeds), strict=True)
    rollout = Rollout(env, starts, min(parallel, len(seeds)), seed)
    try:
        while rollout.running:
            yield from rollout.turn(policies, shares)
    finally:
        rollout.close()


class Rollout:
    """Environments that play on turn by turn, whoever replies; a new episode begins where one ended.

    Args:
        env: The environment; copies of it play in parallel.
        starts: Seed and reset options of each episode; may never end.
        parallel: Episodes played at once.
        seed: Of the draw between policies.

    Attributes:
        waited: Seconds spent in environments so far.
    """

    def __init__(
        self, env: AgentEnv, starts: Iterable[tuple[int, Mapping[str, object]]], parallel: int, seed: int = 0
    ) -> None:
        self.waited = 0.0
        self._rng = np.random.default_rng(seed)
        self._starts = iter(starts)
        self._running = [_Running(copy.deepcopy(env)) for _ in range(parallel)]
        self._running = [slot for slot in self._running if self._begin(slot)]

    @property
    def running(self) -> int:
        """Number of environments with an open episode."""
        return len(self._running)

    def turn(self, policies: Sequence[Policy], shares: Sequence[float] | None = None) -> list[Episode]:
        """Plays one reply in each environment.

        Args:
            policies: Who replies; with several, each environment draws one of them.
            shares: Probability of each policy, equal if ``None``.

        Returns:
            The episodes that ended.

        Raises:
            ValueError: ``shares`` do not fit ``policies`` or do not sum to one.
        """
        weights = np.full(len(policies), 1 / len(policies)) if shares is None else np.asarray(shares, dtype=float)
        if len(weights) != len(policies) or (weights < 0).any() or not np.isclose(weights.sum(), 1):
            raise ValueError(
                f"shares of policies must be {len(policies)} numbers >= 0 that sum to 1, not {weights.tolist()}"
            )
        chosen = self._rng.choice(len(policies), size=len(self._running), p=weights)
        replies: dict[int, Reply] = {}
        for index, policy in enumerate(policies):
            where = np.flatnonzero(chosen == index).tolist()
            if where:
                slots = [self._running[i] for i in where]
                said = policy.reply([slot.env for slot in slots], [slot.observation for slot in slots])
                replies.update(zip(where, said, strict=True))
        ended, going, begin = [], [], time.monotonic()
        for i, slot in enumerate(self._running):
            if slot.step(replies[i], policies[chosen[i]].name):
                ended.append(slot.episode())
                if not self._begin(slot):
                    continue
            going.append(slot)
        self._running = going
        self.waited += time.monotonic() - begin
        return ended

    def open_episodes(self) -> list[Episode]:
        """Episodes so far of the environments that have played a reply, marked as truncated."""
        return [slot.episode(cut=True) for slot in self._running if slot.turns]

    def close(self) -> None:
        """Closes the environments."""
        for slot in self._running:
            slot.env.close()
        self._running = []

    def _begin(self, slot: "_Running") -> bool:
        """Begins the next episode; without one the environment is closed."""
        start = next(self._starts, None)
        if start is None:
            slot.env.close()
            return False
        slot.begin(*start)
        return True


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
                log_probs=reply.log_probs,
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

    def episode(self, cut: bool = False) -> Episode:
        turns = self.turns if not cut else [*self.turns[:-1], replace(self.turns[-1], truncated=True)]
        last = Turn(
            env=self.env.name,
            episode=self._name,
            index=len(self.turns),
            observation=self.observation,
            seed=self.seed,
        )
        return Episode((*turns, last))
