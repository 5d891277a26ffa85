"""Environments that speak text and pictures, and the one wrapper that serves them to an agent."""

from lightning_vlmq.envs.agent import AgentEnv, EpisodeLostError, Outcome
from lightning_vlmq.envs.babyai import BabyAI
from lightning_vlmq.envs.blackjack import Blackjack
from lightning_vlmq.envs.numberline import NumberLine
from lightning_vlmq.envs.points import EZPoints, Points24
from lightning_vlmq.envs.text import Limits, TextTask
from lightning_vlmq.envs.worker import WorkerEnv

__all__ = [
    "AgentEnv",
    "BabyAI",
    "Blackjack",
    "EZPoints",
    "EpisodeLostError",
    "Limits",
    "NumberLine",
    "Outcome",
    "Points24",
    "TextTask",
    "WorkerEnv",
]
