"""The agent plays while it learns: fresh turns at the start of each epoch."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_vlmq.agreement import Agreement, compare
from lightning_vlmq.callbacks.checkpointed import CheckpointedStores
from lightning_vlmq.callbacks.evaluation import environment_of
from lightning_vlmq.callbacks.interrupt import interrupted
from lightning_vlmq.callbacks.ranks import of_all_ranks
from lightning_vlmq.callbacks.schedules import apply_schedules
from lightning_vlmq.collection import online_seed
from lightning_vlmq.datamodules.offline_to_online import OfflineToOnline
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.evaluation import EpisodeScores
from lightning_vlmq.modules.sharding import whole
from lightning_vlmq.policy import Policy, RandomPolicy, VLMPolicy
from lightning_vlmq.rollout import Rollout
from lightning_vlmq.rows import from_text, to_text
from lightning_vlmq.turns import Episode, Observation, Turn

__all__ = ["OnlineCollector"]

_COMPARED = 16
"""Turns of an epoch, on each rank, in which training is compared with the rollout."""

_LOGGED = ("syntax_accuracy", "goal_reached", "return_above_0", "mean_return", "mean_shaped_return")


class OnlineCollector(L.Callback):
    """Plays with the current policy at the start of each epoch and appends what it plays to the experience.

    Needs :class:`~lightning_vlmq.datamodules.OfflineToOnline`. Each rank plays environments of its own, which go on
    where the epoch before left them. No rank waits for another while it plays; behind its play it does, where all
    learn whether each has the turns to train on, and otherwise play again. With probability ``epsilon`` a reply is
    explored, else it is the policy's own (eps-greedy in text). A run that goes on from a checkpoint has exactly the
    turns that the checkpoint names; episodes that were open then are marked truncated. With one that names none, such
    as that of an offline run, it begins with no own turns.

    Each epoch some turns are read back as training reads them and compared with what was played; a warning names what
    differs (:mod:`lightning_vlmq.agreement`), and ``collect/log_prob_difference`` is logged.

    Args:
        environments: Environments a rank (paper: 6).
        steps: Replies in each environment and epoch (paper: 96 in Gym Cards, 150 in BabyAI).
        start_epoch: First epoch to collect in (paper: 50 in Gym Cards).
        temperature: Of the policy's replies (paper: .4).
        epsilon: Probability of an explored reply; a :class:`~lightning_vlmq.callbacks.Schedule` may move it.
        explore: Explored replies are ``"random"`` valid actions or the VLM's own after ``"minimum"``, the tag.
        time_limit: Seconds after which a play ends, looked at between turns, with fewer than ``steps`` replies; 0 for
            no limit. The other ranks wait no longer than that, so it belongs below the process group's timeout
            (30 minutes unless told) by what a turn may take. Where turns are lacking another play follows.
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
        time_limit: float = 1200.0,
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
        self._checkpointed = CheckpointedStores(self.state_key)
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
        if trainer.global_step and not trainer.ckpt_path:  # this trainer fits again
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
        with trainer.precision_plugin.forward_context(), whole(pl_module):
            begin = time.monotonic()
            waited, failures = (self._rollout.waited, len(self._rollout.failures)) if self._rollout else (0.0, 0)
            if self._rollout is None:
                environment = environment_of(trainer, self.environment)
                seed = self._seed(trainer) + trainer.current_epoch  # a resumed run does not draw the same again
                self._rollout = Rollout(environment, self._starts(trainer), self.environments, seed)
            prompts: dict[Observation, bytes] = {}
            counted, ended = self._fill(trainer, *self._policies(trainer, prompts))
            counted["failures"] = len(self._rollout.failures) - failures
            times = {"seconds": time.monotonic() - begin, "environment_seconds": self._rollout.waited - waited}
            self._log(trainer, pl_module, counted, times, ended, self._agreement(ended, prompts))
        if self._data.capacity and (states := self._checkpointed(trainer)) is not None:
            self._data.experience.delete_evicted(states)

    def _fill(
        self, trainer: L.Trainer, policies: list[Policy], shares: list[float]
    ) -> tuple[dict[str, int], list[Episode]]:
        """Plays, and again until every rank has the turns to train on; returns what was played and what ended."""
        store = self._data.experience
        # an episode counts when it has ended: there may be none of the first play, and nothing else to train on
        needed = max(0 if self._filled else self._data.min_turns, int(not len(self._data.training_rows)))
        lacking = needed
        counted, ended = {"turns": 0, "cut_plays": 0}, []
        while True:
            turns, over, cut = self._play(trainer, policies, shares)
            counted["turns"] += turns
            counted["cut_plays"] += cut
            ended += over
            lacking = min(lacking, max(0, needed - len(store.samples)))  # before the eviction: it has been reached once
            store.evict()
            lack, leave = zip(*of_all_ranks((lacking, interrupted(trainer))), strict=True)
            if any(leave) or not any(lack):
                break
            rank_zero_info(f"collecting until each rank has {needed} own turns: {max(lack)} to go")
        self._filled = not any(lack)
        return counted, ended

    def _play(self, trainer: L.Trainer, policies: list[Policy], shares: list[float]) -> tuple[int, list[Episode], bool]:
        """``steps`` replies in each environment; returns their number, what ended, whether ``time_limit`` cut it."""
        assert self._rollout is not None
        begin, played = time.monotonic(), 0
        ended: list[Episode] = []
        for _ in range(self.steps):
            if self.time_limit and played and time.monotonic() - begin > self.time_limit:
                return played, ended, True
            played += self._rollout.running
            for episode in self._rollout.turn(policies, shares):
                self._data.experience.append(episode)
                ended.append(episode)
            if interrupted(trainer):
                break
        return played, ended, False

    def _log(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        counted: dict[str, int],
        times: dict[str, float],
        ended: list[Episode],
        agreement: Agreement,
    ) -> None:
        """Logs ``collect/...`` over all ranks, of which some may have no episode."""
        mine = [*counted.values(), len(self._data.experience.samples), len(ended), *agreement]
        total: torch.Tensor = trainer.strategy.reduce(torch.tensor(mine, device=pl_module.device), reduce_op="sum")
        names = [*counted, "stored", "episodes"]
        logs = {**dict(zip(names, total.tolist(), strict=False)), **times}
        logs |= {"epsilon": self.epsilon, "temperature": self.temperature}
        if logs["episodes"]:  # on any rank, so all of them are here
            metric = EpisodeScores().to(pl_module.device)
            metric.update(ended)
            scores, _ = metric.compute()
            logs |= {name: scores[name] for name in _LOGGED}  # type: ignore[literal-required]
        if logs["cut_plays"]:
            rank_zero_warn(f"OnlineCollector: time_limit {self.time_limit:g} s ended {logs['cut_plays']:.0f} plays")
        agreement = Agreement(*total.tolist()[len(names) :])
        if agreement.tokens:
            logs["log_prob_difference"] = agreement.mean
        if agreement.fault:
            rank_zero_warn(agreement.fault)
        pl_module.log_dict(
            {f"collect/{name}": float(value) for name, value in logs.items()}, on_step=False, on_epoch=True
        )

    def _agreement(self, ended: list[Episode], prompts: dict[Observation, bytes]) -> Agreement:
        """Of the last turns of some episodes, which the present weights played, as training reads them from disk."""
        store = self._data.experience
        played: list[Turn] = []
        read: list[tuple[Turn, Turn]] = []
        row = len(store)  # what ended are the last rows, in order
        for episode in reversed(ended):
            last, row = row - 1, row - len(episode.turns)
            if row < 0 or len(played) == _COMPARED:
                break
            turn = episode.turns[-2]
            if turn.log_probs and turn.observation in prompts:  # not where the reply to the last one was lost
                played.append(turn)
                read.append((store[last - 1], store[last]))
        return compare(self._data.encoder, played, read, prompts)

    def _policies(self, trainer: L.Trainer, prompts: dict[Observation, bytes]) -> tuple[list[Policy], list[float]]:
        """Who replies, and with what probability; notes its prompts."""
        options: dict[str, Any] = {
            "temperature": self.temperature,
            "seed": self._seed(trainer) + 1 + trainer.current_epoch,
            "prompts": prompts,
        }
        own = VLMPolicy(self._data.encoder, **options)
        explored: Policy = RandomPolicy()
        if self.explore == "minimum":
            explored = VLMPolicy(self._data.encoder, **options, action_prompt="minimum", name="minimum")
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
