"""Environments + policies -> episodes."""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_vlmq.envs.agent import AgentEnv, EpisodeLostError, Outcome
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
    failures: list[EpisodeLostError] | None = None,
) -> Iterator[Episode]:
    """Plays one episode a seed, many at once, and yields each as it ends.

    Args:
        env: The environment; copies of it play in parallel.
        policies: Who replies; with several, each turn draws one of them.
        seeds: Seeds of the episodes; an episode's identifier is made from its seed.
        shares: Probability of each policy, equal if ``None``.
        parallel: Episodes played at once, or as many as the environment has workers.
        seed: Of the draw between policies.
        options: Reset options of each episode, for chosen start states.
        failures: A list to which failures of the environments are added as they happen.

    Raises:
        ValueError: ``shares`` do not fit ``policies`` or do not sum to one.
        RuntimeError: All episodes were lost before their first turn.
    """
    starts = zip(seeds, options or [{}] * len(seeds), strict=True)
    rollout, played = Rollout(env, starts, min(parallel, len(seeds), env.workers or parallel), seed), 0
    try:
        while rollout.running:
            for episode in rollout.turn(policies, shares):
                played += 1
                yield episode
    finally:
        rollout.close()
        if failures is not None:
            failures += rollout.failures
    if rollout.failures and not played:
        raise RuntimeError(f"no episode could be played: {rollout.failures[-1]}")


class Rollout:
    """Environments that play on turn by turn, whoever replies; a new episode begins where one ended.

    Those with processes of their own step at once. An episode whose environment fails ends truncated where it stood.

    Args:
        env: The environment; copies of it play in parallel.
        starts: Seed and reset options of each episode; may never end.
        parallel: Episodes played at once.
        seed: Of the draw between policies.

    Attributes:
        waited: Seconds spent in environments so far.
        failures: Failures of environments so far.
    """

    def __init__(
        self, env: AgentEnv, starts: Iterable[tuple[int, Mapping[str, object]]], parallel: int, seed: int = 0
    ) -> None:
        self.waited = 0.0
        self.failures: list[EpisodeLostError] = []
        self._rng = np.random.default_rng(seed)
        self._starts = iter(starts)
        self._pool = ThreadPoolExecutor(max(1, parallel)) if env.workers else None
        self._running = [_Running(copy.deepcopy(env)) for _ in range(parallel)]
        self._ended: list[Episode] = []  # safe here until they are handed over
        try:
            begun = self._begin(self._running)
        except BaseException:
            self.close()
            raise
        self._running = [slot for slot in self._running if slot in begun]

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
        begin = time.monotonic()
        names = [policies[index].name for index in chosen]
        over = self._each(_Running.step, self._running, [replies[i] for i in range(len(names))], names)
        ended = [slot for slot, is_over in zip(self._running, over, strict=True) if is_over]
        self._count([slot for slot in ended if slot.lost is not None])
        for slot in ended:
            self._ended += [slot.episode()] if slot.turns else []
            slot.turns = []
        begun = self._begin(ended)
        self._running = [slot for slot in self._running if slot not in ended or slot in begun]
        self.waited += time.monotonic() - begin
        episodes, self._ended = self._ended, []
        return episodes

    def open_episodes(self) -> list[Episode]:
        """Episodes that were not handed over: those open after a reply, marked as truncated. Best once it is closed."""
        return [*self._ended, *(slot.episode(cut=True) for slot in self._running if slot.turns)]

    def close(self) -> None:
        """Closes the environments; open episodes stay."""
        if self._pool is None:
            for slot in self._running:
                slot.close()
            return
        with ThreadPoolExecutor(max(1, len(self._running))) as pool:  # the other one's threads may be waiting
            list(pool.map(_Running.close, self._running))
        self._pool.shutdown(cancel_futures=True)

    def _begin(self, slots: "Sequence[_Running]") -> "list[_Running]":
        """Begins the next episodes; returns the slots that have one, the others' environments are closed."""
        begun: list[_Running] = []
        while slots:
            starts = list(itertools.islice(self._starts, len(slots)))
            for slot in slots[len(starts) :]:
                slot.close()
            slots = slots[: len(starts)]
            self._each(_Running.begin, slots, *zip(*starts, strict=True))
            begun += [slot for slot in slots if slot.lost is None]
            slots = [slot for slot in slots if slot.lost is not None]  # take the next start
            self._count(slots)
        return begun

    def _count(self, lost: "Sequence[_Running]") -> None:
        self.failures += [slot.lost for slot in lost if slot.lost is not None]

    def _each(self, method: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
        """A method's results, at once where environments have processes of their own."""
        run = map if self._pool is None else self._pool.map
        return list(run(method, *arguments))


class _Running:
    """One environment and the rows of its open episode."""

    def __init__(self, env: AgentEnv) -> None:
        self.env = env
        self.turns: list[Turn] = []
        self.observation = Observation()
        self.seed = 0
        self.lost: EpisodeLostError | None = None
        self._closed = False

    def begin(self, seed: int, options: Mapping[str, object]) -> None:
        """Begins an episode, or notes that the environment was lost."""
        self.seed = seed
        self.lost = None
        try:
            self.observation = self.env.reset(seed=seed, options=dict(options) or None)
        except EpisodeLostError as error:
            self.lost = error

    def step(self, reply: Reply, policy: str) -> bool:
        """Plays a reply; True when the episode ended, or the environment was lost: then without the reply."""
        try:
            outcome: Outcome = self.env.step(reply.text)
        except EpisodeLostError as error:
            self.lost = error
            return True
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

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.env.close()

    def episode(self, cut: bool = False) -> Episode:
        """The episode so far, truncated where it is open or was lost."""
        turns = list(self.turns)
        if (cut or self.lost is not None) and not turns[-1].terminated:
            turns[-1] = replace(turns[-1], truncated=True)
        last = Turn(
            env=self.env.name,
            episode=self._name,
            index=len(self.turns),
            observation=self.observation,
            seed=self.seed,
        )
        return Episode((*turns, last))
