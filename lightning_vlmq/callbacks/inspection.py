"""Pictures in TensorBoard: what the agent plays, and what the critic thinks of each token."""

import itertools
import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.callbacks.evaluation import check_playable, environment_of
from lightning_vlmq.callbacks.records import (
    QAndReturn,
    Said,
    TurnValues,
    film_strips,
    q_and_returns,
    replies,
    turn_values,
    whole_replies,
)
from lightning_vlmq.datamodules.demonstrations import spread
from lightning_vlmq.drawing import draw_film, draw_plane, draw_tokens
from lightning_vlmq.envs.agent import AgentEnv
from lightning_vlmq.modules.base import AgentModule
from lightning_vlmq.modules.judgement import Judgement
from lightning_vlmq.modules.sharding import whole
from lightning_vlmq.policy import VLMPolicy
from lightning_vlmq.rollout import play
from lightning_vlmq.scoreboards import QBoard
from lightning_vlmq.turns import Episode, Turn

__all__ = ["Inspection"]

_BATCH = 32
"""Turns judged at once where nobody looks at the filter."""


class Inspection(L.Callback):
    """Shows at the end of every ``every_n_epochs``-th epoch what the agent does and what the critic thinks of it.

    Pictures and histograms for each logger that takes them, such as TensorBoard's: played episodes as film strips;
    replies token by token, those of held-out turns of the data and those just played, coloured by advantage, with Q, V,
    probability, the filter's word and the likeliest alternatives; the critic's Q against what really came, and against
    the exact values of the current policy where these can be known. With ``td_weight`` 0 there is no critic to show.

    Training goes on as it would without it: generators, modes and the order of the data are left as they were, and it
    encodes pictures for itself. It runs on the first rank alone, which therefore must have the whole module (as with
    DDP, not with sharded weights); the others wait for it in the next step. ``inspect/seconds`` is what it took.

    Args:
        every_n_epochs: How often.
        episodes: Film strips.
        turns: Turns shown token by token, of the data and of the film strips each.
        temperature: Of the replies. 1 plays the policy whose values Q and V are (that of ``policy_temperature``), 0 the
            greedy one that an evaluation plays, whose returns are not what Q predicts.
        return_episodes: Episodes whose returns are compared with Q, those of the film strips among them; 0 leaves the
            comparison out.
        exact: Knows the environment's exact values.
        environment: Where to play; the DataModule's environment if ``None``.
        seed: First seed of the episodes, by default apart from those of evaluation, report and demonstrations.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        every_n_epochs: int = 2,
        episodes: int = 4,
        turns: int = 6,
        temperature: float = 1.0,
        return_episodes: int = 16,
        exact: QBoard | None = None,
        environment: AgentEnv | None = None,
        seed: int = 200_000,
    ) -> None:
        if every_n_epochs < 1 or episodes < 1 or turns < 1:
            raise ValueError(
                f"Inspection: every_n_epochs {every_n_epochs}, episodes {episodes} and turns {turns} must be at least 1"
            )
        if return_episodes < 0 or temperature < 0:
            raise ValueError(
                f"Inspection: return_episodes {return_episodes} and temperature {temperature} must not be below 0"
            )
        self.every_n_epochs = every_n_epochs
        self.episodes = episodes
        self.turns = turns
        self.temperature = temperature
        self.return_episodes = return_episodes
        self.exact = exact
        self.environment = environment
        self.seed = seed
        self._writers: list[Any] = []
        self._encoder: TurnEncoder

    # -- Lightning's hooks ----------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Checks that there is something to play, to judge it, and that ``exact`` knows the environment."""
        check_playable(trainer, self.environment)
        if not isinstance(pl_module, AgentModule):
            raise ValueError(f"Inspection needs an AgentModule, such as VLMQ, not {type(pl_module).__name__}")
        if self.exact is not None:
            self.exact.check(environment_of(trainer, self.environment))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks for loggers that take pictures."""
        self._writers = []
        if not trainer.is_global_zero:
            return
        writers = [getattr(logger, "experiment", None) for logger in trainer.loggers]
        self._writers = [writer for writer in writers if hasattr(writer, "add_image")]
        if not self._writers:
            rank_zero_warn("Inspection shows nothing: no logger takes pictures; give the trainer a TensorBoardLogger")
            return
        with isolate_rng():
            # Of its own: encoded here first, among others, a picture would differ in its last digits for training.
            shared: TurnEncoder = trainer.datamodule.encoder  # type: ignore[attr-defined]
            self._encoder = TurnEncoder(shared.vlm, shared.prompt, max_reply_tokens=shared.max_reply_tokens)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Plays, judges, draws and logs."""
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        with whole(pl_module):
            if self._writers:
                self._inspect(trainer, pl_module)

    def _inspect(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, AgentModule)
        begin, step = time.monotonic(), trainer.global_step
        with isolate_rng(), trainer.precision_plugin.forward_context():
            pictures, compared, scores = self._look(trainer, pl_module)
        histograms = {"q": [pair.q for pair in compared], "return": [pair.realised for pair in compared]}
        for writer in self._writers:
            for name, picture in pictures.items():
                writer.add_image(f"inspect/{name}", np.asarray(picture), global_step=step, dataformats="HWC")
            for name, values in histograms.items():
                if values and hasattr(writer, "add_histogram"):
                    writer.add_histogram(f"inspect/{name}", np.array(values), global_step=step)
        for logger in trainer.loggers:
            logger.log_metrics(scores | {"inspect/seconds": time.monotonic() - begin}, step=step)

    # -- parts ----------------------------------------------------------------------------------------------

    def _look(
        self, trainer: L.Trainer, module: AgentModule
    ) -> tuple[dict[str, Image.Image], list[QAndReturn], dict[str, float]]:
        """The pictures by name, Q beside returns, and how far Q is from the exact values."""
        environment = environment_of(trainer, self.environment)
        step = f"step {trainer.global_step}"
        how = "greedily" if self.temperature == 0 else f"at temperature {self.temperature:g}"
        policy = VLMPolicy(self._encoder, temperature=self.temperature, seed=self.seed)
        seeds = range(self.seed, self.seed + max(self.episodes, self.return_episodes))
        episodes = sorted(play(environment, [policy], seeds), key=lambda episode: episode.turns[0].seed)
        played = episodes[: self.episodes]
        title = f"{environment.name}, {step}: played {how}; rewards with penalties (the environment's own)"
        film = draw_film(film_strips(played, self._encoder.prompt), title)
        pictures = {"film": film}
        turns = _pairs(played)
        chosen = [turns[place] for place in spread(len(turns), self.turns).tolist()]
        shown = {"played": (f"turns played {how}", chosen)}
        data = trainer.datamodule  # type: ignore[attr-defined]
        if hasattr(data, "held_out") and (held_out := data.held_out(self.turns)):
            shown["data"] = "held-out turns of the data", held_out
        for name, (whose, pairs) in shown.items():
            ids, judged = self._judge(module, pairs, alternatives=3)
            rows = replies([turn for turn, _ in pairs], ids, judged, self._encoder)
            pictures[f"tokens_{name}"] = draw_tokens(rows, f"{environment.name}, {step}: {whose}{_filter_in(judged)}")
        compared, scores = [], {}
        if judged.critic is not None:
            compared = self._compare(module, episodes[: self.return_episodes])
        if compared:
            title = f"{environment.name}, {step}: {len(compared)} turns played {how}"
            pictures["q_and_return"] = _draw_compared(compared, title)
        if judged.critic is not None and self.exact is not None:
            q, exact = self._beside_exact(module, environment, self.exact)
            scores = _distances(q, exact)
            title = f"{environment.name}, {step}: {' and '.join(self.exact.actions)} in {len(q)} states"
            pictures["q_and_exact"] = _draw_beside_exact(q, exact, title, scores)
        return pictures, compared, scores

    def _compare(self, module: AgentModule, episodes: Sequence[Episode]) -> list[QAndReturn]:
        """Q and returns; of episodes that the environment cut, the return is not known."""
        ended = [episode for episode in episodes if episode.turns[-2].terminated]
        pairs = _pairs(ended)
        values: list[TurnValues] = []
        for start in range(0, len(pairs), _BATCH):
            ids, judged = self._judge(module, pairs[start : start + _BATCH], alternatives=1)
            values += turn_values(ids, judged)
        ends = np.cumsum([len(episode) for episode in ended]).tolist()
        return [pair for a, b in itertools.pairwise([0, *ends]) for pair in q_and_returns(values[a:b])]

    def _beside_exact(
        self, module: AgentModule, env: AgentEnv, board: QBoard
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Q and exact values ``[states, 2]`` of the current policy.

        That is the policy of the critic's expectations, of the two replies alone: other ones it is taken never to give.
        """
        seen, said = board.states(env), [env.parser.format(action) for action in board.actions]
        turns = [Turn(env.name, str(n), 0, observation, reply=r) for n, observation in enumerate(seen) for r in said]
        found: list[Said] = []
        for start in range(0, len(turns), _BATCH):
            some = turns[start : start + _BATCH]
            found += whole_replies(*self._judge(module, list(zip(some, some, strict=True)), alternatives=1))
        shares = np.array([reply.share for reply in found]).reshape(-1, 2)
        both = shares.sum(1)
        first = np.where(both > 0, shares[:, 0] / np.where(both > 0, both, 1), 0.5)
        q = np.array([reply.q for reply in found]).reshape(-1, 2)
        # where the two replies have unequally many tokens, as if each turn were the mean of both
        return q, np.array(board.q(env, first.tolist(), float(np.mean([reply.discount for reply in found]))))

    def _judge(
        self, module: AgentModule, pairs: Sequence[tuple[Turn, Turn]], alternatives: int
    ) -> tuple[list[list[int]], Judgement]:
        """Tokens of each turn's reply, and what the module makes of them, on the CPU."""
        batch = move_data_to_device(self._encoder.batch(*zip(*pairs, strict=True)), module.device)
        judged: Judgement = move_data_to_device(module.judge(batch, alternatives), torch.device("cpu"))
        return [self._encoder.reply_ids(turn) for turn, _ in pairs], judged


def _pairs(episodes: Sequence[Episode]) -> list[tuple[Turn, Turn]]:
    """All turns with the rows after them."""
    return [(e.turns[i], e.turns[i + 1]) for e in episodes for i in range(len(e))]


def _filter_in(judged: Judgement) -> str:
    """What a title says of the filter."""
    if judged.critic is None or judged.critic.weight is None:
        return ""
    if judged.critic.threshold is None:
        return "; nothing is filtered yet"
    return f"; threshold {judged.critic.threshold:g}" + (", lowered by the guard" if judged.critic.guarded else "")


def _draw_compared(compared: Sequence[QAndReturn], title: str) -> Image.Image:
    q, realised = zip(*compared, strict=True)
    off = sum(q) / len(q) - sum(realised) / len(q)
    note = f"mean Q {sum(q) / len(q):.2f}, mean return {sum(realised) / len(q):.2f}: "
    note += f"Q is {abs(off):.2f} too {'high' if off > 0 else 'low'}"
    return draw_plane(q, realised, ("Q of the turn's first token", "discounted return from there"), title, [note])


def _distances(q: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> dict[str, float]:
    better = np.argmax(q, axis=1) == np.argmax(exact, axis=1)
    return {
        "exact/q_error": float(np.abs(q - exact).mean()),
        "exact/q_bias": float((q - exact).mean()),
        "exact/q_prefers_better": float(better.mean()),
    }


def _draw_beside_exact(
    q: np.ndarray[Any, Any], exact: np.ndarray[Any, Any], title: str, scores: dict[str, float]
) -> Image.Image:
    note = f"mean distance {scores['exact/q_error']:.2f}; "
    note += f"the better action has the higher Q in {scores['exact/q_prefers_better']:.0%} of states"
    names = ("Q of the whole reply", "exact value under the current policy")
    return draw_plane(q.ravel().tolist(), exact.ravel().tolist(), names, title, [note])
