"""Scripts that read out a trained agent."""

import numpy as np
import torch

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs import AgentEnv, Blackjack
from lightning_vlmq.envs.blackjack import BlackjackState
from lightning_vlmq.envs.exact_blackjack import state_means
from lightning_vlmq.vlm import VLM
from scripts.blackjack_critic import Shown, fork


def test_hit_and_stand_part_behind_the_tag(vlm: VLM) -> None:
    low, high = BlackjackState(5, False, 4), BlackjackState(20, False, 4)
    shown: Shown = [(low, {"player": ["2", "3"], "dealer": "4"}), (high, {"player": ["K", "Q"], "dealer": "4"})]
    hidden, tokens = fork(vlm, shown, 0)
    assert [vlm.tokenizer.decode([token]) for token in tokens.tolist()] == [" hit", " stand"]
    # the state that predicts the action's token, from the prompt and the tag alone
    encoder, env = TurnEncoder(vlm), AgentEnv(Blackjack())
    for row, (_, hand) in enumerate(shown):
        inputs = encoder.prompts([env.reset(seed=row, options={**hand})], prefix="[action]")
        torch.testing.assert_close(hidden[row], vlm.hidden(inputs)[0, -1].detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(hidden[0], hidden[1])


def test_values_of_a_state_are_averaged_over_its_hands() -> None:
    one, other = BlackjackState(12, False, 3), BlackjackState(13, True, 3)
    hand = {"player": ["2", "K"], "dealer": "3"}
    shown: Shown = [(one, hand), (other, hand), (one, hand)]  # type: ignore[list-item]
    assert state_means(shown, np.array([1.0, 5.0, 2.0])) == {one: 1.5, other: 5.0}
