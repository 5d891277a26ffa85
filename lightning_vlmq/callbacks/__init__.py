"""Lightning callbacks: target critic, schedules, collection, evaluation, inspection, exact resume, Ctrl-C."""

from lightning_vlmq.callbacks.collector import OnlineCollector
from lightning_vlmq.callbacks.evaluation import EpisodeEvaluation, Report
from lightning_vlmq.callbacks.inspection import Inspection
from lightning_vlmq.callbacks.interrupt import InterruptCheckpoint
from lightning_vlmq.callbacks.resume import RandomState
from lightning_vlmq.callbacks.schedules import Schedule
from lightning_vlmq.callbacks.target_ema import TargetCriticEMA

__all__ = [
    "EpisodeEvaluation",
    "Inspection",
    "InterruptCheckpoint",
    "OnlineCollector",
    "RandomState",
    "Report",
    "Schedule",
    "TargetCriticEMA",
]
