"""VLM Q-Learning on PyTorch Lightning: vision-language agents by offline-to-online reinforcement learning."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_vlmq.augmentation import RandomZoomOut
    from lightning_vlmq.batches import TokenBatch, TurnEncoder
    from lightning_vlmq.callbacks import (
        EpisodeEvaluation,
        Inspection,
        InterruptCheckpoint,
        OnlineCollector,
        RandomState,
        Report,
        Schedule,
        TargetCriticEMA,
    )
    from lightning_vlmq.checkpoints import AtomicCheckpointIO
    from lightning_vlmq.collection import collect
    from lightning_vlmq.datamodules import Demonstrations, OfflineToOnline
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
    "AtomicCheckpointIO",
    "Demonstrations",
    "Episode",
    "EpisodeEvaluation",
    "Inspection",
    "InterruptCheckpoint",
    "Observation",
    "OfflineToOnline",
    "OnlineCollector",
    "PromptMethod",
    "RandomState",
    "RandomZoomOut",
    "Report",
    "Schedule",
    "TargetCriticEMA",
    "TokenBatch",
    "Turn",
    "TurnEncoder",
    "TurnStore",
    "collect",
]

_ROOMS = {
    "VLM": "vlm",
    "VLMQ": "modules",
    "AgentEnv": "envs",
    "AtomicCheckpointIO": "checkpoints",
    "Demonstrations": "datamodules",
    "Episode": "turns",
    "EpisodeEvaluation": "callbacks",
    "Inspection": "callbacks",
    "InterruptCheckpoint": "callbacks",
    "Observation": "turns",
    "OfflineToOnline": "datamodules",
    "OnlineCollector": "callbacks",
    "PromptMethod": "prompts",
    "RandomState": "callbacks",
    "RandomZoomOut": "augmentation",
    "Report": "callbacks",
    "Schedule": "callbacks",
    "TargetCriticEMA": "callbacks",
    "TokenBatch": "batches",
    "Turn": "turns",
    "TurnEncoder": "batches",
    "TurnStore": "store",
    "collect": "collection",
}


def __getattr__(name: str) -> Any:
    """Imports a name's room when it is first asked for: who reads a store need not wait for transformers."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
