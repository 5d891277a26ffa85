"""The critic and its loss: TD targets of token transitions and, beside those of the step, replayed ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.heads import Critic, EmbeddingCritic, MLPCritic
from lightning_vlmq.losses import (
    action_probability,
    expectation,
    last_token,
    td_loss,
    token_rewards_and_discounts,
    tree_backup,
)
from lightning_vlmq.modules.replay import Backed, CriticReplay, Transitions
from lightning_vlmq.normalisation import PopArt, Standardise
from lightning_vlmq.vlm import VLM

__all__ = ["TDLearning", "make_critic"]


def make_critic(vlm: VLM, options: Mapping[str, Any]) -> Critic:
    """The critic and its target.

    Args:
        vlm: Whose states it reads.
        options: Of :class:`~lightning_vlmq.modules.vlmq.VLMQ`: ``critic``, ``critic_width``, ``critic_inputs``,
            ``popart_step`` and ``popart_init``.
    """
    size, width, init = vlm.hidden_size, options["critic_width"], options["popart_init"]
    head: MLPCritic | EmbeddingCritic
    if options["critic"] == "mlp":
        head = MLPCritic(size, vlm.vocab_size, width=width)
    else:
        # the base's weights stand where an adapter is trained, not where all of the language model is
        embeddings = vlm.token_embeddings if vlm.has_base else vlm.token_embeddings().detach()
        head = EmbeddingCritic(size, embeddings, width=width)
    popart = PopArt(step=options["popart_step"], init=init or 1.0, enabled=init is not None)
    return Critic(head, popart, Standardise(size, enabled=options["critic_inputs"] == "standardised"))


class TDLearning:
    """How a critic learns from transitions, whoever the actor is.

    Args:
        critic: The critic and its target.
        options: Of :class:`~lightning_vlmq.modules.vlmq.VLMQ`: ``gamma``, ``in_turn_discount``, ``trace``,
            ``td_huber``, ``critic_replay`` and ``critic_memory``.
    """

    def __init__(self, critic: Critic, options: Mapping[str, Any]) -> None:
        self.critic = critic
        self.options = options
        self.replay = CriticReplay(options["critic_memory"])

    def loss(self, seen: Transitions, prediction: Tensor, targets: Tensor, *, replay: bool) -> Tensor:
        """Eq. 6 in PopArt's scale; with ``replay`` a mean over this batch and ``critic_replay`` earlier ones.

        Args:
            seen: The batch.
            prediction: Normalised Q of its replies' tokens ``[B, T]``.
            targets: Of :meth:`targets`.
            replay: Whether earlier batches count, and this one is kept.
        """
        own = self._loss(seen, prediction, targets)
        number: int = self.options["critic_replay"]
        if not (replay and number):
            return own
        if len(self.replay):
            old = self.replay.draw(number, seen.states.device)
            again = self.critic.q_normalised(old.states, old.reply_ids.unsqueeze(-1)).squeeze(-1)
            own = (own + number * self._loss(old, again, self.targets(old, self.backed(old)))) / (1 + number)
        self.replay.add(seen)
        return own

    def _loss(self, of: Transitions, prediction: Tensor, targets: Tensor) -> Tensor:
        normalised = self.critic.popart.normalise(targets)
        return td_loss(prediction, normalised, of.mask, of.weight, self.options["td_huber"])

    @torch.no_grad()
    def backed(self, of: Transitions) -> Backed:
        """What the target critic says now of earlier transitions, by the policy of their day."""
        assert of.support is not None
        assert of.next_support is not None
        return Backed(
            v=expectation(self.critic.q_target(of.states, of.support.ids), of.support),
            q_a=self.critic.q_target(of.states, of.reply_ids.unsqueeze(-1)).squeeze(-1),
            pi_a=action_probability(of.support, of.reply_ids),
            next_v=expectation(self.critic.q_target(of.next_states, of.next_support.ids), of.next_support),
        )

    @torch.no_grad()
    def targets(self, of: Transitions, by: Backed) -> Tensor:
        """TD targets ``[B, T]``: tree backup inside the turn, the next turn's value behind it (eq. 2)."""
        v_t, q_a_t, pi_a_t = (torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1) for x in by[:3])
        following = torch.zeros(len(of.reward), dtype=v_t.dtype, device=v_t.device)
        following[of.has_next] = by.next_v.to(v_t.dtype)
        v_t = torch.where(last_token(of.mask), following.unsqueeze(-1), v_t)
        r_t, discount_t = self.rewards_and_discounts(of)
        return tree_backup(r_t, discount_t, v_t, q_a_t, pi_a_t, of.mask, self.options["trace"])

    def rewards_and_discounts(self, of: TokenBatch | Transitions) -> tuple[Tensor, Tensor]:
        """Of each token transition ``[B, T]``."""
        gamma, inside = self.options["gamma"], self.options["in_turn_discount"]
        inside = gamma if inside is None else inside
        return token_rewards_and_discounts(of.reward, of.terminated, of.mask, gamma, inside)
