"""Plays episodes to see what an agent can do, during training and at its end."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from rich.progress import track

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs.agent import AgentEnv, EpisodeLostError
from lightning_vlmq.evaluation import EpisodeScores, Scores, print_scores, score_episodes
from lightning_vlmq.files import write_atomic
from lightning_vlmq.modules.sharding import whole
from lightning_vlmq.policy import VLMPolicy
from lightning_vlmq.rollout import play
from lightning_vlmq.scoreboards import Scoreboard
from lightning_vlmq.turns import Episode

__all__ = ["EpisodeEvaluation", "Report"]


class EpisodeEvaluation(L.Callback):
    """Plays episodes whenever the trainer validates or tests and logs their scores as ``eval/...``.

    Needs a DataModule with an ``encoder``, such as :class:`~lightning_vlmq.datamodules.Demonstrations`.

    The episodes' seeds lie apart from those of demonstrations, and nothing played here is stored. Ranks share the
    episodes. 95 % intervals are logged as ``eval/..._low`` and ``eval/..._high``; ``eval/episodes`` counts those with a
    turn, ``eval/failures`` the failures of environments among them: an episode that was lost counts as far as it came.

    Args:
        episodes: Episodes to play, on all ranks together.
        temperature: Of the replies; 0 is greedy.
        scoreboards: Exact scores of the greedy policy, logged as ``exact/...``.
        environment: Where to play; the DataModule's environment if ``None``.
        seed: First seed of the episodes.
    """

    def __init__(
        self,
        episodes: int = 64,
        temperature: float = 0.0,
        scoreboards: list[Scoreboard] | None = None,
        environment: AgentEnv | None = None,
        seed: int = 0,
    ) -> None:
        self.episodes = episodes
        self.scoreboards = scoreboards or []
        self.temperature = temperature
        self.environment = environment
        self.seed = seed

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Checks that there is something to play."""
        check_playable(trainer, self.environment)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Plays and logs."""
        if trainer.sanity_checking:
            return
        with whole(pl_module):
            self._play(trainer, pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Plays and logs."""
        with whole(pl_module):
            self._play(trainer, pl_module)

    def _play(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rank, ranks = trainer.global_rank, trainer.world_size
        seeds = range(self.seed + rank, self.seed + self.episodes, ranks)  # none, where there are more ranks
        metric, lost = EpisodeScores().to(pl_module.device), list[EpisodeLostError]()
        sampling = self.seed + 1_000_003 * rank
        metric.update(_episodes(trainer, self.environment, seeds, self.temperature, sampling=sampling, failures=lost))
        scores, intervals = metric.compute()
        logs: dict[str, float] = {k: float(v) for k, v in scores.items() if k != "turns"}  # type: ignore[arg-type]
        for name, (low, high) in intervals.items():
            logs |= {f"{name}_low": low, f"{name}_high": high}
        pl_module.log_dict({f"eval/{name}": value for name, value in logs.items()})
        pl_module.log("eval/failures", float(len(lost)), sync_dist=True, reduce_fx="sum")
        for board in self.scoreboards:
            encoder: TurnEncoder = trainer.datamodule.encoder  # type: ignore[attr-defined]
            for name, value in board(encoder, environment_of(trainer, self.environment)).items():
                pl_module.log(f"exact/{name}", float(value), sync_dist=True)


class Report(L.Callback):
    """Compares the data, what the agent played while training, the base VLM and the trained agent.

    A table, and ``results.json`` in the run's folder. Of its own play it counts what the first rank's store holds.

    ``base`` is sampled at temperature 1 (greedily it would say the same each time), ``trained`` is greedy. Needs a
    DataModule with ``encoder`` and ``store``.

    After ``vlmq test`` the file is ``results-test.json``; ``steps`` in it are those of the checkpoint.

    Args:
        episodes: Episodes to play for each row of the table.
        temperatures: The trained agent is also scored at these; a greedy score alone can hide a broken policy.
        variants: Further environments to score the trained agent in (greedy), by name.
        scoreboards: Exact scores of the greedy policy.
        environment: Where to play; the DataModule's environment if ``None``.
        seed: First seed of the episodes.
    """

    def __init__(
        self,
        episodes: int = 200,
        temperatures: list[float] | None = None,
        variants: dict[str, AgentEnv] | None = None,
        scoreboards: list[Scoreboard] | None = None,
        environment: AgentEnv | None = None,
        seed: int = 100_000,
    ) -> None:
        self.episodes = episodes
        self.temperatures = temperatures or []
        self.variants = variants or {}
        self.scoreboards = scoreboards or []
        self.environment = environment
        self.seed = seed
        self._loaded_step = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Checks that there is something to play."""
        check_playable(trainer, self.environment)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes where the checkpoint stands: a trainer that only tests counts no steps."""
        self._loaded_step = int(checkpoint["global_step"])

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Scores, prints and writes ``results.json``; not after an interrupted fit."""
        if not trainer.interrupted:
            self._report(trainer, pl_module, "results.json", trainer.global_step)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Scores, prints and writes ``results-test.json``."""
        self._report(trainer, pl_module, "results-test.json", self._loaded_step)

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule, file: str, step: int) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # which the ranks tell each other
        with whole(pl_module):
            if trainer.is_global_zero:
                self._write(trainer, folder / file, step)

    def _write(self, trainer: L.Trainer, path: Path, step: int) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        jobs: list[tuple[str, dict[str, Any]]] = [("base", {"base": True, "temperature": 1.0}), ("trained", {})]
        if not data.encoder.vlm.has_base:
            del jobs[0]  # what would be played in its name has been trained
        jobs += [(f"trained at {t:g}", {"temperature": t}) for t in self.temperatures]
        jobs += [(f"trained, {name}", {"environment": env}) for name, env in self.variants.items()]
        stores = {"data": data.store, "own play": getattr(data, "experience", ())}
        rows: dict[str, Scores] = {k: score_episodes(s.episodes()) for k, s in stores.items() if len(s)}
        for name, options in track(jobs, description="scoring"):
            environment = options.pop("environment", self.environment)
            rows[name] = _scores(trainer, environment, self.episodes, seed=self.seed, **options)
        print_scores(rows, f"{environment_of(trainer, self.environment).name}: {self.episodes} episodes an agent")
        results: dict[str, Any] = dict(rows)
        results["scoreboards"] = {}
        for board in self.scoreboards:
            found = board(data.encoder, environment_of(trainer, self.environment))
            results["scoreboards"][board.name] = found
            rank_zero_info(f"{board.name}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
        results["steps"] = step
        results["seed"] = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(results, indent=1).encode())
        rank_zero_info(f"results: {path}")
        for logger in trainer.loggers:
            metrics = {
                f"report/{name}/{key}": float(value)  # type: ignore[arg-type]
                for name, row in rows.items()
                for key, value in row.items()
            }
            logger.log_metrics(metrics, step=step)


def check_playable(trainer: L.Trainer, environment: AgentEnv | None) -> None:
    """Says at the start, not after an epoch, what callbacks that play lack."""
    if not hasattr(trainer.datamodule, "encoder"):  # type: ignore[attr-defined]
        raise ValueError(
            "EpisodeEvaluation, Inspection and Report need a DataModule with an `encoder`, such as Demonstrations"
        )
    environment_of(trainer, environment)


def environment_of(trainer: L.Trainer, environment: AgentEnv | None) -> AgentEnv:
    """A callback's own environment, else the DataModule's; ``ValueError`` where there is neither."""
    found = environment or getattr(trainer.datamodule, "environment", None)  # type: ignore[attr-defined]
    if found is None:
        raise ValueError("nothing to play: give data.environment, or the callback's own environment")
    return found


def _scores(
    trainer: L.Trainer,
    environment: AgentEnv | None,
    episodes: int,
    temperature: float = 0.0,
    *,
    seed: int,
    base: bool = False,
) -> Scores:
    seeds = range(seed, seed + episodes)
    return score_episodes(_episodes(trainer, environment, seeds, temperature, sampling=seed, base=base))


def _episodes(
    trainer: L.Trainer,
    environment: AgentEnv | None,
    seeds: Sequence[int],
    temperature: float,
    *,
    sampling: int,
    base: bool = False,
    failures: list[EpisodeLostError] | None = None,
) -> Iterator[Episode]:
    encoder: TurnEncoder = trainer.datamodule.encoder  # type: ignore[attr-defined]
    policy = VLMPolicy(encoder, temperature=temperature, base=base, seed=sampling)
    return play(environment_of(trainer, environment), [policy], seeds, failures=failures)
