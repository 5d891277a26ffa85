"""VLM Q-Learning on PyTorch Lightning: vision-language agents by offline-to-online reinforcement learning."""

from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.callbacks import EpisodeEvaluation, RandomState, Report, TargetCriticEMA, ThresholdSchedule
from lightning_vlmq.collect import collect
from lightning_vlmq.datamodules import Demonstrations
from lightning_vlmq.envs import AgentEnv
from lightning_vlmq.modules import VLMQ
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.store import TurnStore
from lightning_vlmq.turns import Episode, Observation, Turn
from lightning_vlmq.vlm import VLM

__all__ = [
    "VLM",
    "VLMQ",
    "AgentEnv",
    "Demonstrations",
    "Episode",
    "EpisodeEvaluation",
    "Observation",
    "PromptMethod",
    "RandomState",
    "Report",
    "TargetCriticEMA",
    "ThresholdSchedule",
    "TokenBatch",
    "Turn",
    "TurnEncoder",
    "TurnStore",
    "collect",
]
