"""VLM Q-Learning: advantage-filtered supervised fine-tuning of one VLM with two token heads."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.losses import afsft_loss, max_q_loss
from lightning_vlmq.modules.base import AgentModule
from lightning_vlmq.modules.diagnostics import diagnostics
from lightning_vlmq.modules.filtering import Verdict, filtered
from lightning_vlmq.modules.judgement import Judgement, critic_judgement
from lightning_vlmq.modules.optim import groups_of, make_optimizer
from lightning_vlmq.modules.options import check_callbacks, check_options
from lightning_vlmq.modules.reading import Appraisal, Reading, VocabularyReader
from lightning_vlmq.modules.replay import Apart, transitions
from lightning_vlmq.modules.td import TDLearning, make_critic
from lightning_vlmq.vlm import VLM

__all__ = ["VLMQ"]


class _Heads(NamedTuple):
    """What one forward returns, at reply positions only."""

    states: Tensor  # [B, T, D], what the critic reads
    reading: Reading  # of the vocabulary
    prediction: Tensor  # [B, T], normalised Q of the reply's tokens


class VLMQ(AgentModule):
    """VLM Q-Learning (Grigsby et al. 2025): a language head that imitates what a token critic approves of.

    Each step computes ``L = L_fsft + td_weight * L_td`` (eq. 7) for a batch of turns. Fitting needs a
    :class:`~lightning_vlmq.callbacks.TargetCriticEMA` callback and batches of
    :class:`~lightning_vlmq.batches.TokenBatch`.

    Args:
        vlm: The model with its adapter; its language head is the actor.
        actor: ``"afsft"`` imitates what the filter approves (eq. 4); ``"max_q"`` maximises the expected Q
            through pi, the baseline that the paper shows to fail (fig. 5), on turns the critic may learn from.
        threshold: Advantage, in units of reward, from which a token is imitated (beta of eq. 5);
            ``null`` imitates everything, which is SFT. A :class:`~lightning_vlmq.callbacks.Schedule` sets it.
        filter: ``"advantage"`` is eq. 5; ``"exponential"`` weighs tokens by exp(advantage / temperature), from when
            ``threshold`` is a number (whose value then does not matter): until then everything is imitated.
        filter_temperature: Of the exponential filter, in units of reward; a ``Schedule`` may lower it later on.
        filter_clip: Largest weight of the exponential filter.
        min_pass_rate: Guard: if fewer tokens of a batch pass, the batch's own quantile is the threshold.
        td_weight: lambda of eq. 7; 0 trains no critic and filters nothing: SFT (eq. 3) exactly.
        td_huber: Error of the critic, in PopArt's scale, beyond which it counts linearly (Huber), for rewards whose
            rare extremes would drown the rest; ``null`` squares all (the paper).
        critic: ``"mlp"`` is the paper's head; ``"embeddings"`` scores tokens by their frozen embeddings.
        critic_width: Hidden units of the critic.
        critic_inputs: ``"standardised"`` scales each dimension of the hidden states by running statistics (ours);
            ``"raw"`` hands them over as they are (the paper).
        critic_states: Whose hidden states the critic reads: ``"base"`` those of the frozen base, which stand still, for
            the price of a second forward pass from the first adapted layer on; ``"adapted"`` those of the language
            head, which then learn from the critic's loss, too (the paper); ``"detached"`` the same without that.
        critic_replay: So many of the last batches, drawn anew each step, count in the critic's loss beside the step's
            own: a larger batch of the critic for next to nothing, since its states stand still (``"base"`` only).
        critic_memory: Batches to draw from, the last ones; they are kept where the critic computes and in checkpoints:
            some turns x tokens x hidden size x 4 bytes a batch, with the policy's probabilities of their day.
        gamma: Discount from a turn's last token to the next turn.
        in_turn_discount: Discount per token inside a turn; ``null`` takes gamma.
        trace: lambda of the tree backup inside a turn; 0 is the paper's one-step target.
        top_k: Expectations under pi run over its ``top_k`` likeliest tokens; ``null`` takes the vocabulary.
        top_p: Expectations under pi run over the fewest likeliest tokens that reach this probability.
        min_probability: Tokens below this probability are left out of the expectation (with ``top_k`` or ``top_p``).
            Small values let tokens count that no data trains; the stop token can then be filtered out
            (docs/sketches.md).
        policy_temperature: Temperature of pi in expectations.
        popart_step: Step size of PopArt's statistics.
        popart_init: Initial second moment of PopArt; ``null`` switches normalisation off.
        lr: Learning rate of the VLM's adapter.
        vision_lr: Of the vision tower and the connector, where ``vlm.train_vision_tower``; ``null`` takes ``lr``, which
            for an adapter is mostly far too high for weights that were trained before.
        critic_lr: Learning rate of the critic.
        warmup_steps: Optimiser steps of linear warm-up of the adapter.
        critic_warmup_steps: The same of the critic.
        decay_steps: Optimiser steps over which both rates fall linearly to a tenth; 0 keeps them (the paper),
            ``null`` takes all steps of the fit.
        optimizer: ``"adamw"``, or ``"adamw8bit"`` of bitsandbytes.
        weight_decay: Of both groups.

    Raises:
        ValueError: An argument is out of range or no choice.
    """

    def __init__(
        self,
        vlm: VLM,
        *,
        actor: Literal["afsft", "max_q"] = "afsft",
        threshold: float | None = None,
        filter: Literal["advantage", "exponential"] = "advantage",
        filter_temperature: float = 1.0,
        filter_clip: float = 20.0,
        min_pass_rate: float = 0.0,
        td_weight: float = 1.0,
        td_huber: float | None = None,
        critic: Literal["mlp", "embeddings"] = "mlp",
        critic_width: int = 400,
        critic_inputs: Literal["standardised", "raw"] = "standardised",
        critic_states: Literal["adapted", "detached", "base"] = "base",
        critic_replay: int = 0,
        critic_memory: int = 256,
        gamma: float = 0.995,
        in_turn_discount: float | None = None,
        trace: float = 1.0,
        top_k: int | None = 8,
        top_p: float | None = None,
        min_probability: float = 0.1,
        policy_temperature: float = 1.0,
        popart_step: float = 5e-4,
        popart_init: float | None = 100.0,
        lr: float = 1e-4,
        vision_lr: float | None = None,
        critic_lr: float = 6e-4,
        warmup_steps: int = 250,
        critic_warmup_steps: int = 100,
        decay_steps: int | None = 0,
        optimizer: Literal["adamw", "adamw8bit"] = "adamw",
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(vlm)
        self.save_hyperparameters(ignore=["vlm"])
        check_options(self.hparams)
        if critic_states == "base" and td_weight > 0 and not vlm.has_base:
            raise ValueError(f"critic_states: base: vlm.{vlm.trains_base[0]} leaves no base; take adapted or detached")
        if vision_lr is not None and not vlm.trains_vision_tower:
            raise ValueError("vision_lr: nothing there is trained; set vlm.train_vision_tower: true, or leave it out")
        self.threshold = threshold
        self.filter_temperature = filter_temperature
        self.critic = make_critic(vlm, self.hparams)
        self.td = TDLearning(self.critic, self.hparams)
        self.reader = VocabularyReader(vlm, self.critic, self.hparams)
        if td_weight == 0:
            self.critic.requires_grad_(False)
        # what generation never samples has no weight in expectations either
        allowed = torch.ones(vlm.vocab_size, dtype=torch.bool)
        allowed[list(vlm.forbidden_ids)] = False
        self.allowed_tokens: Tensor
        self.register_buffer("allowed_tokens", allowed, persistent=False)
        self.seen_tokens: Tensor
        self.register_buffer("seen_tokens", torch.zeros(vlm.vocab_size, dtype=torch.bool))

    # -- the algorithm --------------------------------------------------------------------------------------

    def forward(self, batch: TokenBatch, alternatives: int = 0) -> _Heads:
        """Both heads on a batch's replies, and so many other tokens that the language head might have said."""
        hidden, states = self._hidden(batch.inputs)
        hidden, states = batch.predicting(hidden), batch.predicting(states)
        prediction = self.critic.q_normalised(states, batch.reply_ids.unsqueeze(-1)).squeeze(-1)
        seen = None if alternatives or not self.should_log() else self.seen_tokens
        reading = self.reader.replies(batch, hidden, states, self.allowed_tokens, seen=seen, alternatives=alternatives)
        return _Heads(states, reading, prediction)

    def _hidden(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states that the language head reads and those that the critic reads, ``[B, S, D]`` each."""
        if self.hparams["critic_states"] == "base" and self.hparams["td_weight"] > 0:
            return self.vlm.hidden_and_base(inputs)
        hidden = self.vlm.hidden(inputs)  # SFT: nobody reads the critic's
        return hidden, hidden.detach() if self.hparams["critic_states"] == "detached" else hidden

    def losses(self, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Joint loss (eq. 7) and the quantities to log."""
        hp = self.hparams
        heads = self(batch)
        log_pi, appraisal = heads.reading.log_pi, heads.reading.appraisal
        imitate_weight = batch.weight * batch.imitate
        shown = {"prompts/cut": batch.prompt_cut.float().mean()}
        if appraisal is None:  # a critic that nothing trains has no say
            loss = afsft_loss(log_pi, torch.ones_like(log_pi), batch.mask, imitate_weight)
            return loss, {"loss/actor": loss.detach(), "policy/log_prob": log_pi[batch.mask].mean().detach(), **shown}

        accepted, guarded = self._verdict(batch, appraisal)
        if heads.reading.expected_q is not None:
            actor = max_q_loss(heads.reading.expected_q, batch.mask, imitate_weight * batch.td)
        else:
            actor = afsft_loss(log_pi, accepted, batch.mask, imitate_weight)

        seen, backed = transitions(batch, heads.states, appraisal, self._apart(batch))
        targets = self.td.targets(seen, backed)
        if self.training:
            self.critic.observe(seen.states, targets, seen.mask, seen.weight)
        critic = self.td.loss(seen, heads.prediction, targets, replay=self.training)
        loss = actor + hp["td_weight"] * critic
        logs = {"loss/actor": actor.detach(), "loss/critic": critic.detach()}
        if heads.reading.entropy is not None:  # statistics were asked for
            logs |= shown
            logs |= diagnostics(batch, heads.reading, accepted, targets)
            logs["filter/guard_engaged"] = guarded.float()
            logs["popart/mean"] = self.critic.popart.mu.clone()
            logs["popart/scale"] = self.critic.popart.sigma
            if self.threshold is not None:
                logs["filter/threshold"] = loss.new_tensor(self.threshold)
        return loss, logs

    @torch.no_grad()
    def judge(self, batch: TokenBatch, alternatives: int = 3) -> Judgement:
        """What the heads and the filter make of each reply token, by the very lines that the losses take.

        The guard looks at this batch as it does at a micro-batch of training. With ``td_weight`` 0 there is no critic.
        """
        hp = self.hparams
        if hp["td_weight"] == 0:
            return super().judge(batch, alternatives)
        with self.vlm.inference():
            heads = self(batch, alternatives)
        (log_pi, _, appraisal, *_, others) = heads.reading
        assert appraisal is not None
        assert others is not None
        r_t, discount_t = self.td.rewards_and_discounts(batch)
        critic = critic_judgement(
            batch,
            appraisal,
            self._verdict(batch, appraisal),
            others,
            self.critic.q(heads.states, others.ids),
            imitates=hp["actor"] != "max_q",
            threshold=self.threshold,
            r_t=r_t,
            discount_t=discount_t,
        )
        return Judgement(log_pi, others.ids, others.log_pi, critic)

    def _verdict(self, batch: TokenBatch, appraisal: Appraisal) -> Verdict:
        """The filter's weights of the reply's tokens."""
        return filtered(batch, appraisal.adv, self.threshold, self.filter_temperature, self.hparams)

    @torch.no_grad()
    def _apart(self, batch: TokenBatch) -> Apart | None:
        """Next turns that the batch does not hold, from a pass in inference mode."""
        found = len(batch.next_positions)
        if not found and not self.in_shards:  # else a rank that needs none holds parts that others ask for
            return None
        with self.vlm.inference():
            hidden, read = self._hidden(batch.next_inputs if found else batch.inputs)
        rows = torch.arange(found, device=hidden.device), batch.next_positions
        return Apart(read[rows], *self.reader.first_states(hidden[rows], read[rows], self.allowed_tokens))

    # -- checkpoints ----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the filter's numbers, as ``vlmq test`` filters as the fit did, and what the critic replays."""
        super().on_save_checkpoint(checkpoint)
        checkpoint |= {"threshold": self.threshold, "filter_temperature": self.filter_temperature}
        checkpoint["critic_replay"] = self.td.replay.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the checkpoint, takes its filter and what the critic replays (on all ranks the first one's)."""
        super().on_load_checkpoint(checkpoint)
        self.threshold = checkpoint.get("threshold", self.threshold)
        self.filter_temperature = checkpoint.get("filter_temperature", self.filter_temperature)
        self.td.replay.load(checkpoint.get("critic_replay", []) if self.hparams["critic_replay"] else [])

    # -- steps ----------------------------------------------------------------------------------------------

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """One micro-batch."""
        self.seen_tokens[batch.reply_ids[batch.mask]] = True
        loss, logs = self.losses(batch)
        self.stop_if_not_finite("the loss", loss, logs, f"batch {batch_idx}; ")
        logs = self.over_ranks({"loss": loss.detach(), **logs})
        self.log("loss", logs.pop("loss"), prog_bar=True)
        self.log_dict(logs)
        return loss

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Losses and statistics on held-out turns."""
        loss, logs = self.losses(batch)
        logs = self.over_ranks({"loss": loss, **logs})
        self.log_dict({f"val/{name}": value for name, value in logs.items()}, batch_size=len(batch.reward))

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """As in validation."""
        self.validation_step(batch, batch_idx)

    def on_fit_start(self) -> None:
        """Refuses to train a critic whose target never moves, and warns of one that is never asked."""
        check_callbacks(self.hparams, self.threshold, self.trainer.callbacks)  # type: ignore[attr-defined]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Behind a step the critic's statistics take in its batches at once: 8 x 1 accumulated equals 1 x 8."""
        super().optimizer_step(*args, **kwargs)
        self.critic.commit()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimiser with a group each for what is trained alike, own rates and warm-ups, one decay."""
        hp = self.hparams
        decay = self.steps_of_fit("decay_steps: null") if hp["decay_steps"] is None else hp["decay_steps"]
        groups = groups_of(self.vlm, self.critic, hp)
        optimizer, schedule = make_optimizer(hp["optimizer"], groups, hp["weight_decay"], decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
