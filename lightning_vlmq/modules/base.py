"""What the LightningModules here share: a VLM with an adapter, small checkpoints, a stop at bad numbers."""

from collections.abc import Mapping
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.modules.judgement import Judgement, language_judgement
from lightning_vlmq.modules.optim import clip_groups
from lightning_vlmq.modules.reading import at_replies
from lightning_vlmq.modules.sharding import before_loading, check_shardable, shard
from lightning_vlmq.vlm import VLM

__all__ = ["AgentModule"]


class AgentModule(L.LightningModule):
    """A LightningModule around a VLM whose frozen base stays out of checkpoints.

    An algorithm adds ``training_step`` and ``configure_optimizers``, for which ``make_optimizer`` of
    ``lightning_vlmq.modules.optim`` helps, and calls ``super()`` where it overrides a hook of checkpoints. One with a
    critic overrides ``judge``, too.

    Args:
        vlm: The model with its adapter.
    """

    def __init__(self, vlm: VLM) -> None:
        super().__init__()
        self.vlm = vlm

    # -- training -------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Puts the weights into shards where the trainer's strategy is ``ModelParallelStrategy``."""
        if self._trainer is None or self.in_shards:
            return
        strategy = self.trainer.strategy
        check_shardable(strategy, self.vlm, self.hparams, str(self.trainer.precision))
        if isinstance(strategy, ModelParallelStrategy):
            shard(self, self.vlm)
            before_loading(strategy, self._check_checkpoint)

    @property
    def in_shards(self) -> bool:
        """Whether each rank holds its part of the weights alone: all of them must take part in every forward."""
        return isinstance(self, FSDPModule)

    def on_train_start(self) -> None:
        """Turns dropout on: ``from_pretrained`` hands models over in inference mode."""
        self.train()

    def steps_of_fit(self, wanted_by: str) -> int:
        """Optimiser steps of the whole fit.

        Raises:
            ValueError: The fit has no end; the message begins with ``wanted_by``.
        """
        steps = float(self.trainer.estimated_stepping_batches)
        if steps == float("inf") or steps < 0:  # Lightning's -1: neither steps nor a dataset's length are known
            raise ValueError(f"{wanted_by} needs an end of the fit; set trainer.max_steps")
        return int(steps)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips each group by itself: a batch with a reward of -200 must not starve the actor.

        Raises:
            ValueError: A gradient is not finite (fp16's scaler skips such a step by itself).
        """
        logs = clip_groups(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if self._trainer is None or getattr(self._trainer.precision_plugin, "scaler", None) is None:
            self.stop_if_not_finite("the gradient's norm", sum(logs.values(), torch.zeros(())), logs)
        self.log_dict(logs)

    def stop_if_not_finite(self, what: str, value: Tensor, parts: dict[str, Tensor], where: str = "") -> None:
        """Raises before anything of a bad step reaches the weights, so the last checkpoint stays a good one."""
        if not torch.isfinite(value):
            bad = [name for name, part in parts.items() if not torch.isfinite(part).all()]
            more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
            raise ValueError(
                f"{what} is {value.item()} at step {self.global_step} ({where}not finite: {', '.join(bad[:3])}{more}); "
                f"lower the learning rates, or look at the rewards; earlier checkpoints are untouched"
            )

    # -- to look at -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def judge(self, batch: TokenBatch, alternatives: int = 3) -> Judgement:
        """What the module makes of each reply token, without dropout: here the language head's part of it.

        Args:
            batch: The batch, on the module's device.
            alternatives: Other tokens to name at each place, the likeliest ones.
        """
        with self.vlm.inference():
            hidden = batch.predicting(self.vlm.hidden(batch.inputs))

        def of_chunk(hidden: Tensor, ids: Tensor) -> Judgement:
            return language_judgement(self.vlm.logits(hidden), ids, self.vlm.forbidden_ids, alternatives)

        return at_replies(of_chunk, batch.mask, hidden, batch.reply_ids, vlm=self.vlm)

    # -- checkpoints ----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the frozen base out: a checkpoint holds what was trained, and which base it belongs to."""
        kept = self._checkpoint_keys()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}
        checkpoint["vlm"] = {"name": self.vlm.name, "fingerprint": self.vlm.base_fingerprint}
        checkpoint["in_shards"] = self.in_shards

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another configuration.

        Raises:
            ValueError: Keys are missing, unknown, or of another shape; or another base VLM.
        """
        if not self.in_shards:  # else it was looked at before it was loaded
            self._check_checkpoint(checkpoint)

    def _check_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own, found = self.state_dict(), checkpoint["state_dict"]
        wanted = self._checkpoint_keys()
        missing = sorted(wanted - set(found))
        # what is frozen here must not be moved either: features of a tower may be known already
        unknown = sorted(set(found) - wanted)
        other = sorted(k for k in set(found) & set(own) if found[k].shape != own[k].shape)
        for what, keys in (("lacks", missing), ("has unknown", unknown), ("has other shapes of", other)):
            if keys:
                raise ValueError(
                    f"the checkpoint {what} {keys[0]} (and {len(keys) - 1} more); "
                    f"load it with the configuration it was made with"
                )
        base = checkpoint.get("vlm", {})
        if base.get("fingerprint", self.vlm.base_fingerprint) != self.vlm.base_fingerprint:
            raise ValueError(
                f"the checkpoint was made on other weights of {base['name']!r} than those of {self.vlm.name!r} here; "
                f"load it with the VLM (and the version of this package, if embedded) it was made with"
            )
        resumes = self._trainer is not None and self.trainer.training
        if resumes and checkpoint.get("in_shards", False) != self.in_shards:
            raise ValueError(  # an optimiser's states would be taken for those of other weights
                f"the checkpoint was made with{'out' if self.in_shards else ''} ModelParallelStrategy; "
                f"go on with the strategy it was made with"
            )

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in PyTorch; that the frozen base is not among the keys is no news.

        Raises:
            RuntimeError: ``strict``, and something trained is missing or a key is unknown.
        """
        keys = super().load_state_dict(state_dict, strict=False, assign=assign)
        own = self._checkpoint_keys()
        keys = keys._replace(missing_keys=[key for key in keys.missing_keys if key in own])
        if strict and any(keys):
            raise RuntimeError(f"missing keys: {keys.missing_keys}; unexpected keys: {keys.unexpected_keys}")
        return keys

    def _checkpoint_keys(self) -> set[str]:
        trained = {f"vlm.{name}" for name in self.vlm.trainable_names()}
        return trained | {key for key in self.state_dict() if not key.startswith("vlm.")}

    # -- to log ---------------------------------------------------------------------------------------------

    def over_ranks(self, logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over ranks of what each has under the same names; NaN says that a rank has none of it.

        Numbers that no rank has are left out. It is one collective, whatever there is to log.
        """
        values = torch.stack([value.detach().float() for value in logs.values()])
        if self._trainer is not None and self.trainer.world_size > 1:
            values = cast(Tensor, self.all_gather(values)).nanmean(0)
        known = (~values.isnan()).tolist()
        return {name: value for name, value, is_known in zip(logs, values, known, strict=True) if is_known}

    def should_log(self) -> bool:
        """Statistics cost a softmax over the vocabulary: they are made when the logger asks for them."""
        if self._trainer is None or not self.training:
            return True
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return (self.global_step + 1) % max(1, every) == 0
