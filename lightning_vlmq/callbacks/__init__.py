"""Lightning callbacks: target critic, schedules, evaluation, exact resume."""

from lightning_vlmq.callbacks.evaluation import EpisodeEvaluation, Report
from lightning_vlmq.callbacks.resume import RandomState
from lightning_vlmq.callbacks.schedules import ThresholdSchedule
from lightning_vlmq.callbacks.target_ema import TargetCriticEMA

__all__ = ["EpisodeEvaluation", "RandomState", "Report", "TargetCriticEMA", "ThresholdSchedule"]
