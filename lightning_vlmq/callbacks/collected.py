"""What is said of an epoch's plays: numbers over all ranks, and whether training reads what was played."""

from collections.abc import Mapping, Sequence

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_vlmq.agreement import Agreement, compare
from lightning_vlmq.callbacks.player import Played
from lightning_vlmq.datamodules.offline_to_online import OfflineToOnline
from lightning_vlmq.evaluation import EpisodeScores
from lightning_vlmq.turns import Turn

__all__ = ["agreement_of", "log_plays"]

_COMPARED = 16
"""Turns of an epoch, on each rank, in which training is compared with the rollout."""

_COUNTED = {"turns": "turns", "cut_plays": "cut", "failures": "failures"}
"""Names that are logged, and what they are called in a play."""

_LOGGED = ("syntax_accuracy", "goal_reached", "return_above_0", "mean_return", "mean_shaped_return")


def log_plays(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    plays: Sequence[Played],
    stored: int,
    times: Mapping[str, float],
    agreement: Agreement,
) -> None:
    """Logs ``collect/...`` over all ranks, of which some may have no episode.

    Args:
        trainer: The trainer.
        pl_module: Its module.
        plays: At least one.
        stored: Turns that training sees.
        times: Seconds by name, of this rank.
        agreement: Of this rank.
    """
    ended = [episode for play in plays for episode in play.ended]
    mine = [sum(getattr(play, name) for play in plays) for name in _COUNTED.values()]
    mine += [stored, len(ended), *agreement]
    total: torch.Tensor = trainer.strategy.reduce(torch.tensor(mine, device=pl_module.device), reduce_op="sum")
    names = [*_COUNTED, "stored", "episodes"]
    last = plays[-1].order
    logs = {**dict(zip(names, total.tolist(), strict=False)), **times}
    logs |= {"epsilon": last.epsilon, "temperature": last.temperature}
    if logs["episodes"]:  # on any rank, so all of them are here
        metric = EpisodeScores().to(pl_module.device)
        metric.update(ended)
        scores, _ = metric.compute()
        logs |= {name: scores[name] for name in _LOGGED}  # type: ignore[literal-required]
    if logs["cut_plays"]:
        rank_zero_warn(f"OnlineCollector: time_limit {last.time_limit:g} s ended {logs['cut_plays']:.0f} plays")
    agreement = Agreement(*total.tolist()[len(names) :])
    if agreement.tokens:
        logs["log_prob_difference"] = agreement.mean
    if agreement.fault:
        rank_zero_warn(agreement.fault)
    pl_module.log_dict({f"collect/{name}": float(value) for name, value in logs.items()}, on_step=False, on_epoch=True)


def agreement_of(data: OfflineToOnline, plays: Sequence[Played]) -> Agreement:
    """Of the last turns of some episodes, which the VLM's present weights played, as training reads them from disk.

    Args:
        data: Its experience ends with the episodes of these plays.
        plays: The last ones.
    """
    store = data.experience
    prompts = {observation: mark for play in plays for observation, mark in play.prompts.items()}
    played: list[Turn] = []
    read: list[tuple[Turn, Turn]] = []
    row = len(store)  # what ended are the last rows, in order
    for episode in reversed([episode for play in plays for episode in play.ended]):
        last, row = row - 1, row - len(episode.turns)
        if row < 0 or len(played) == _COMPARED:
            break
        turn = episode.turns[-2]
        if turn.log_probs and turn.observation in prompts:  # not where the reply to the last one was lost
            played.append(turn)
            read.append((store[last - 1], store[last]))
    return compare(data.encoder, played, read, prompts)
