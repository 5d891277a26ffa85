"""LightningModules, one algorithm a file, and what they share."""

from lightning_vlmq.modules.base import AgentModule
from lightning_vlmq.modules.vlmq import VLMQ

__all__ = ["VLMQ", "AgentModule"]
