"""Checks of a module's options and of what a trainer must have beside them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

__all__ = ["check_callbacks", "check_options"]


def check_options(hp: Mapping[str, Any]) -> None:
    """Refuses what would train something else than was asked for."""
    for name, choices in (
        ("actor", ("afsft", "max_q")),
        ("filter", ("advantage", "exponential")),
        ("critic", ("mlp", "embeddings")),
        ("critic_inputs", ("standardised", "raw")),
        ("critic_states", ("adapted", "detached", "base")),
    ):
        if hp[name] not in choices:
            raise ValueError(f"{name} must be {' or '.join(choices)}, not {hp[name]!r}")
    for name in ("trace", "gamma", "in_turn_discount", "min_pass_rate", "min_probability", "popart_step", "top_p"):
        if hp[name] is not None and not 0 <= hp[name] <= 1:
            raise ValueError(f"{name} must be in [0, 1], not {hp[name]}")
    for name in ("td_weight", "warmup_steps", "critic_warmup_steps", "decay_steps"):
        if hp[name] is not None and hp[name] < 0:
            raise ValueError(f"{name} must not be negative, not {hp[name]}")
    for name in (
        "popart_step",
        "popart_init",
        "top_k",
        "top_p",
        "policy_temperature",
        "filter_temperature",
        "td_huber",
    ):
        if hp[name] is not None and hp[name] <= 0:
            raise ValueError(f"{name} must be above 0, not {hp[name]}")
    for name, value in hp.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}; null means none where there is none")
    for name in ("critic_replay", "critic_memory"):
        if hp[name] < (name == "critic_memory"):
            raise ValueError(f"{name} {hp[name]}: give a number of batches, at least {int(name == 'critic_memory')}")
    if hp["critic_replay"] and hp["critic_states"] != "base":
        raise ValueError("critic_replay needs critic_states: base (others change with the adapter)")
    if hp["critic_replay"] and hp["top_k"] is None and (hp["top_p"] is None or hp["min_probability"] == 0):
        raise ValueError(
            "critic_replay needs top_k, or top_p with min_probability above 0: a vocabulary's probabilities a token "
            "are too much to keep"
        )
    for name in ("lr", "vision_lr", "critic_lr", "weight_decay"):
        if hp[name] is not None and hp[name] < 0:
            raise ValueError(f"{name} must not be negative, not {hp[name]}")
    for name in ("critic_width", "filter_clip"):
        if hp[name] <= 0:
            raise ValueError(f"{name} must be above 0, not {hp[name]}")
    if hp["actor"] == "max_q" and hp["td_weight"] == 0:
        raise ValueError("actor: max_q follows the critic; give td_weight above 0")


def check_callbacks(hp: Mapping[str, Any], threshold: float | None, callbacks: Sequence[Any]) -> None:
    """Refuses to train a critic whose target never moves, and warns of one that is never asked."""
    scheduled = any(getattr(c, "sets_threshold", False) for c in callbacks)
    if hp["td_weight"] > 0 and threshold is None and not scheduled:
        rank_zero_warn("everything is imitated (SFT): give VLMQ a threshold, or the trainer a Schedule of it")
    if hp["td_weight"] > 0 and not any(getattr(c, "moves_target_critic", False) for c in callbacks):
        raise ValueError(
            "VLMQ needs the callback lightning_vlmq.callbacks.TargetCriticEMA (the target critic would never "
            "move); add it to the trainer's callbacks, or set td_weight: 0 for SFT"
        )
