"""The agent plays while it learns: fresh turns at the start of each epoch."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_vlmq.callbacks.evaluation import environment_of
from lightning_vlmq.callbacks.interrupt import interrupted
from lightning_vlmq.callbacks.ranks import of_all_ranks
from lightning_vlmq.callbacks.schedules import apply_schedules
from lightning_vlmq.collection import online_seed
from lightning_vlmq.datamodules.offline_to_online import OfflineToOnline
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.evaluation import EpisodeScores
from lightning_vlmq.policy import Policy, RandomPolicy, VLMPolicy, log_prob_differences
from lightning_vlmq.rollout import Rollout
from lightning_vlmq.rows import from_text, to_text
from lightning_vlmq.turns import Episode

__all__ = ["OnlineCollector"]

TOLERANCE = 0.05
"""Mean difference of log-probabilities, far above that of bf16, at which rollout and training do not fit."""

_LOGGED = ("syntax_accuracy", "goal_reached", "return_above_0", "mean_return", "mean_shaped_return")


class OnlineCollector(L.Callback):
    """Plays with the current policy at the start of each epoch and appends what it plays to the experience.

    Needs :class:`~lightning_vlmq.datamodules.OfflineToOnline`. Each rank plays environments of its own, which go on
    where the epoch before left them; ranks wait for each other in no place of it. With probability ``epsilon`` a reply
    is explored, else it is the policy's own (eps-greedy in text). A run that goes on from a checkpoint has exactly the
    turns that the checkpoint knew, but for those evicted since; episodes that were open then are marked truncated.

    Args:
        environments: Environments a rank (paper: 6).
        steps: Replies in each environment and epoch (paper: 96 in Gym Cards, 150 in BabyAI).
        start_epoch: First epoch to collect in (paper: 50 in Gym Cards).
        temperature: Of the policy's replies (paper: .4).
        epsilon: Probability of an explored reply; a :class:`~lightning_vlmq.callbacks.Schedule` may move it.
        explore: Explored replies are ``"random"`` valid actions or the VLM's own after ``"minimum"``, the tag.
        time_limit: Seconds after which an epoch's play ends, looked at between turns; 0 for no limit. Where there is
            nothing else to train on, it ends with the first episode at the earliest.
        environment: What to play; the DataModule's environment if ``None``.

    Raises:
        ValueError: A number is out of range, or the DataModule keeps no experience.
    """

    collects = True
    """By this a schedule knows whose epsilon and temperature it sets."""

    def __init__(
        self,
        environments: int = 6,
        steps: int = 96,
        start_epoch: int = 0,
        temperature: float = 0.4,
        epsilon: float = 0.05,
        explore: Literal["random", "minimum"] = "random",
        time_limit: float = 0.0,
        environment: AgentEnv | None = None,
    ) -> None:
        if environments < 1 or steps < 1:
            raise ValueError(f"OnlineCollector: environments {environments} and steps {steps} must be at least 1")
        if not 0 <= epsilon <= 1:
            raise ValueError(f"OnlineCollector.epsilon must be a probability, not {epsilon}")
        if temperature < 0 or time_limit < 0:
            raise ValueError(
                f"OnlineCollector: temperature {temperature} and time_limit {time_limit} must not be below 0"
            )
        self.environments = environments
        self.steps = steps
        self.start_epoch = start_epoch
        self.temperature = temperature
        self.epsilon = epsilon
        self.explore = explore
        self.time_limit = time_limit
        self.environment = environment
        self._rollout: Rollout | None = None
        self._next_seed = 0
        self._filled = False
        self._played_epoch = -1
        self._data: OfflineToOnline
        self._resumed: dict[str, Any] | None = None

    # -- Lightning's hooks ----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Checks that there is something to play and a place for what is played."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, OfflineToOnline):
            raise ValueError("OnlineCollector needs the DataModule lightning_vlmq.OfflineToOnline for its turns")
        environment_of(trainer, self.environment)
        self._data = data
        self._resumed = None  # of another call of the trainer; that of this one is loaded later

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes back to the turns of the checkpoint; a run from its beginning sets aside what an earlier one played."""
        states: list[dict[str, Any]] = (self._resumed or {}).get("ranks", [])
        if not states and trainer.global_step:  # this process trains on
            return
        self._resumed = None
        experience, rank, ranks = self._data.experience, trainer.global_rank, trainer.world_size
        nothing: dict[str, Any] = {"store": {"shards": []}, "open": [], "filled": False}
        mine = states[rank] if rank < len(states) else nothing
        if states and len(states) != ranks:
            rank_zero_warn(f"the checkpoint is of {len(states)} ranks, this run has {ranks}: other turns are set aside")
        rows = experience.restore(mine["store"])
        if rows:
            rank_zero_info(f"{rows} rows that this run does not know are set aside in {experience.folder}/set_aside")
        for turns in mine["open"]:
            experience.append(Episode(tuple(from_text(turns))))
        self._filled = mine["filled"]
        # beyond all seeds that any rank has played, however many ranks there were
        self._next_seed = math.ceil(max((s["next_seed"] for s in states), default=0) * len(states) / ranks)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Plays."""
        self._collect(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Plays, where a run goes on from the last batch of an epoch: no epoch start comes then."""
        if batch_idx == 0 and self._played_epoch != trainer.current_epoch:
            self._collect(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stores open episodes as truncated ones."""
        self._finish()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stores open episodes as truncated ones, also on Ctrl-C."""
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        """What each rank has: its turns, by shard, its open episodes and its next seed."""
        if not hasattr(self, "_data"):
            return {}
        experience = self._data.experience
        experience.flush()
        going = [to_text(episode.turns) for episode in (self._rollout.open_episodes() if self._rollout else [])]
        mine = {"store": experience.state(), "open": going, "next_seed": self._next_seed, "filled": self._filled}
        return {"ranks": of_all_ranks(mine)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the stores are open."""
        self._resumed = state_dict

    # -- parts ----------------------------------------------------------------------------------------------

    def _collect(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The play of an epoch."""
        self._played_epoch = trainer.current_epoch
        if trainer.current_epoch < self.start_epoch:
            return
        apply_schedules(trainer, pl_module)
        with trainer.precision_plugin.forward_context():
            begin = time.monotonic()
            waited, failures = (self._rollout.waited, self._rollout.failures) if self._rollout else (0.0, 0)
            if self._rollout is None:
                environment = environment_of(trainer, self.environment)
                seed = self._seed(trainer) + trainer.current_epoch  # a resumed run does not draw the same again
                self._rollout = Rollout(environment, self._starts(trainer), self.environments, seed)
            played, ended = self._play(trainer)
            times = {"seconds": time.monotonic() - begin, "environment_seconds": self._rollout.waited - waited}
            self._log(
                trainer, pl_module, {"turns": played, "failures": self._rollout.failures - failures}, times, ended
            )

    def _play(self, trainer: L.Trainer) -> tuple[int, list[Episode]]:
        """An epoch's turns; returns their number and the episodes that ended."""
        assert self._rollout is not None
        store, begin = self._data.experience, time.monotonic()
        policies, shares = self._policies(trainer)
        # an episode counts when it has ended: there may be none of the first epoch, and nothing else to train on
        alone = int(not len(self._data.training_rows))
        needed = alone if self._filled else max(self._data.min_turns, alone)
        if len(store.samples) < needed:
            rank_zero_info(f"collecting until there are {needed} own turns")
        ended: list[Episode] = []
        played = 0
        for step in itertools.count(1):
            played += self._rollout.running
            for episode in self._rollout.turn(policies, shares):
                store.append(episode)
                ended.append(episode)
            if interrupted(trainer) or (step >= self.steps and len(store.samples) >= needed):
                break
            if self.time_limit and time.monotonic() - begin > self.time_limit and len(store.samples) >= alone:
                rank_zero_warn(f"OnlineCollector: {played} of {self.steps * self.environments} turns in time_limit")
                break
        self._filled = self._filled or len(store.samples) >= self._data.min_turns
        store.evict()
        return played, ended

    def _log(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        counted: dict[str, int],
        times: dict[str, float],
        ended: list[Episode],
    ) -> None:
        """Logs ``collect/...`` over all ranks, of which some may have no episode."""
        differences = self._differences(ended)
        mine = [
            *counted.values(),
            len(self._data.experience.samples),
            len(ended),
            float(differences.sum()),
            len(differences),
        ]
        total: torch.Tensor = trainer.strategy.reduce(torch.tensor(mine, device=pl_module.device), reduce_op="sum")
        *counts, stored, episodes, difference, tokens = total.tolist()
        logs = {**dict(zip(counted, counts, strict=True)), "stored": stored, "episodes": episodes, **times}
        logs |= {"epsilon": self.epsilon, "temperature": self.temperature}
        if episodes:  # on any rank, so all of them are here
            metric = EpisodeScores().to(pl_module.device)
            metric.update(ended)
            scores, _ = metric.compute()
            logs |= {name: scores[name] for name in _LOGGED}  # type: ignore[literal-required]
        if tokens:
            logs["log_prob_difference"] = difference / tokens
            if difference / tokens > TOLERANCE:
                rank_zero_warn(
                    f"rollout and training differ by {difference / tokens:.2g} in the log-probability of a token: "
                    f"they do not see the same prompt, picture or tokens; look at the prompt method and the processor"
                )
        pl_module.log_dict(
            {f"collect/{name}": float(value) for name, value in logs.items()}, on_step=False, on_epoch=True
        )

    def _differences(self, ended: list[Episode]) -> torch.Tensor:
        """Of log-probabilities, in the last turns of some episodes: these were played with the present weights."""
        pairs = [(episode.turns[-2], episode.turns[-1]) for episode in ended if episode.turns[-2].log_probs]
        return log_prob_differences(self._data.encoder, pairs[-16:]) if pairs else torch.zeros(0)

    def _policies(self, trainer: L.Trainer) -> tuple[list[Policy], list[float]]:
        seed = self._seed(trainer) + 1 + trainer.current_epoch
        own = VLMPolicy(self._data.encoder, temperature=self.temperature, seed=seed)
        explored: Policy = RandomPolicy()
        if self.explore == "minimum":
            explored = VLMPolicy(
                self._data.encoder, temperature=self.temperature, seed=seed, action_prompt="minimum", name="minimum"
            )
        return [own, explored], [1 - self.epsilon, self.epsilon]

    def _starts(self, trainer: L.Trainer) -> Iterator[tuple[int, Mapping[str, object]]]:
        while True:
            number = self._next_seed * trainer.world_size + trainer.global_rank
            self._next_seed += 1
            yield online_seed(self._data.run_seed, number), {}

    def _seed(self, trainer: L.Trainer) -> int:
        """Of draws, apart for each rank."""
        return online_seed(self._data.run_seed, 0) + 1_000_003 * trainer.global_rank

    def _finish(self) -> None:
        if self._rollout is not None:
            self._rollout.close()
            for episode in self._rollout.open_episodes():
                self._data.experience.append(episode)
            self._rollout = None
        if hasattr(self, "_data") and hasattr(self._data, "experience"):
            self._data.experience.flush()
