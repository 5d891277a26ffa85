"""LightningDataModules over stores of turns."""

from lightning_vlmq.datamodules.demonstrations import Demonstrations

__all__ = ["Demonstrations"]
