"""The agent plays while it learns: fresh turns at the start of each epoch."""

import math
import time
from functools import partial
from typing import Any, Literal

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_vlmq.callbacks.background import BackgroundPlayer
from lightning_vlmq.callbacks.checkpointed import CheckpointedStores
from lightning_vlmq.callbacks.collected import agreement_of, log_plays
from lightning_vlmq.callbacks.evaluation import environment_of
from lightning_vlmq.callbacks.interrupt import interrupted
from lightning_vlmq.callbacks.player import Order, Played, Player
from lightning_vlmq.callbacks.ranks import of_all_ranks
from lightning_vlmq.callbacks.schedules import apply_schedules
from lightning_vlmq.datamodules.offline_to_online import OfflineToOnline
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.modules.sharding import whole
from lightning_vlmq.rows import from_text, to_text
from lightning_vlmq.turns import Episode

__all__ = ["OnlineCollector"]


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
        asynchronous: True plays while the trainer trains: an epoch's turns were played during the epoch before, with
            the weights of its beginning (off-policy learning allows it), by a process that has a VLM of its own on the
            same device. The trainer waits for a play where it has none behind it, in the first epoch of a run and where
            one goes on from a checkpoint, and where turns are lacking.

    Raises:
        ValueError: A number is out of range, the DataModule keeps no experience, or ``asynchronous`` does not go with
            the trainer's strategy.
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
        asynchronous: bool = False,
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
        self.asynchronous = asynchronous
        self._player: Player | BackgroundPlayer | None = None
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
        if self.asynchronous and isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "OnlineCollector.asynchronous does not go with ModelParallelStrategy: the process that plays would "
                "need whole weights of its own; set asynchronous: false, or take ddp"
            )
        self._data = data
        self._resumed = None  # of another call of the trainer; that of this one is loaded later

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes back to the turns of the checkpoint; a run from its beginning sets aside what an earlier one played."""
        if not trainer.global_step or trainer.ckpt_path:  # else this trainer fits again
            self._restore(trainer)
        self._player = self._make_player(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Plays."""
        self._collect(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Plays, where a run goes on from the last batch of an epoch: no epoch start comes then."""
        if self._played_epoch == trainer.current_epoch:
            return
        if batch_idx == 0:
            self._collect(trainer, pl_module)
        else:  # it goes on in the midst of an epoch, which has its turns
            self._begin_next(trainer, self._order(trainer, pl_module))

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
        going = [to_text(episode.turns) for episode in (self._player.open_episodes() if self._player else [])]
        next_seed = self._player.next_seed if self._player else self._next_seed
        mine = {"store": experience.state(), "open": going, "next_seed": next_seed, "filled": self._filled}
        return {"ranks": of_all_ranks(mine)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the stores are open."""
        self._resumed = state_dict

    # -- parts ----------------------------------------------------------------------------------------------

    def _restore(self, trainer: L.Trainer) -> None:
        """Goes back to the turns of the checkpoint, if there is one."""
        states: list[dict[str, Any]] = (self._resumed or {}).get("ranks", [])
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

    def _collect(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The play of an epoch, and the beginning of the next one's where that is played meanwhile."""
        epoch, player = trainer.current_epoch, self._player
        assert player is not None
        order = self._order(trainer, pl_module)
        if epoch < self.start_epoch:
            self._begin_next(trainer, order)
            return
        with trainer.precision_plugin.forward_context(), whole(pl_module):
            begin = time.monotonic()
            plays = self._fill(trainer, order)
            times = {"seconds": time.monotonic() - begin}
            if self.asynchronous:
                times = {"seconds": sum(play.seconds for play in plays), "waited_seconds": times["seconds"]}
            times["environment_seconds"] = sum(play.environment_seconds for play in plays)
            self._begin_next(trainer, order)
            with player.weights_of_play():
                agreement = agreement_of(self._data, [play for play in plays if play.order == plays[-1].order])
            log_plays(trainer, pl_module, plays, len(self._data.experience.samples), times, agreement)
        if self._data.capacity and (states := self._checkpointed(trainer)) is not None:
            self._data.experience.delete_evicted(states)

    def _order(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Order:
        """What is to be played in this epoch."""
        self._played_epoch = trainer.current_epoch
        apply_schedules(trainer, pl_module)
        return Order(trainer.current_epoch, self.steps, self.epsilon, self.temperature, self.time_limit)

    def _begin_next(self, trainer: L.Trainer, order: Order) -> None:
        """Has the next epoch's turns played meanwhile, if there is to be one and somebody who can."""
        following = trainer.current_epoch + 1
        if self.start_epoch <= following != trainer.max_epochs and not interrupted(trainer):
            assert self._player is not None
            self._player.begin(order)

    def _fill(self, trainer: L.Trainer, order: Order) -> list[Played]:
        """Plays, and again until every rank has the turns to train on."""
        store, player = self._data.experience, self._player
        assert player is not None
        # an episode counts when it has ended: there may be none of the first play, and nothing else to train on
        needed = max(0 if self._filled else self._data.min_turns, int(not len(self._data.training_rows)))
        lacking, plays = needed, []
        while True:
            plays.append(player.play(order, store.append, partial(interrupted, trainer)))
            lacking = min(lacking, max(0, needed - len(store.samples)))  # before the eviction: it has been reached once
            store.evict()
            lack, leave = zip(*of_all_ranks((lacking, interrupted(trainer))), strict=True)
            if any(leave) or not any(lack):
                break
            rank_zero_info(f"collecting until each rank has {needed} own turns: {max(lack)} to go")
        self._filled = not any(lack)
        return plays

    def _make_player(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Player | BackgroundPlayer:
        environment = environment_of(trainer, self.environment)
        options: dict[str, Any] = {
            "environments": self.environments,
            "explore": self.explore,
            "run_seed": self._data.run_seed,
            "rank": trainer.global_rank,
            "ranks": trainer.world_size,
            "next_seed": self._next_seed,
        }
        if not self.asynchronous:
            return Player(environment, self._data.encoder, **options)
        vlm: Any = pl_module.vlm
        make_encoder, precision = self._data.encoder_recipe(), trainer.precision_plugin
        return BackgroundPlayer(environment, vlm, make_encoder, precision=precision, device=pl_module.device, **options)

    def _finish(self) -> None:
        if self._player is not None:
            self._player.close()
            for episode in self._player.open_episodes():
                self._data.experience.append(episode)
            self._next_seed = self._player.next_seed
            self._player = None
        if hasattr(self, "_data") and hasattr(self._data, "experience"):
            self._data.experience.flush()
