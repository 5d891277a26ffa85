"""LightningModules, one algorithm a file."""

from lightning_vlmq.modules.vlmq import VLMQ

__all__ = ["VLMQ"]
