"""LightningDataModules over stores of turns."""

from lightning_vlmq.datamodules.demonstrations import Demonstrations
from lightning_vlmq.datamodules.offline_to_online import OfflineToOnline

__all__ = ["Demonstrations", "OfflineToOnline"]
