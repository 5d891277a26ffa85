"""A next turn that the batch holds is read off the same forward pass: the same losses, fewer prompts read."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.turns import Episode

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def rows(episodes: list[Episode]) -> list[Any]:
    """Rows of three windows: one in the midst of an episode, one whose last turn was truncated, one that ends."""
    longest, *others = sorted(episodes, key=len, reverse=True)
    ended = next(episode for episode in others if episode.turns[-2].terminated)
    cut = dataclasses.replace(longest.turns[-2], terminated=False, truncated=True)
    return [longest.turns[:4], (*longest.turns[-4:-2], cut, longest.turns[-1]), ended.turns[-3:]]


def encoded(encoder: TurnEncoder, rows: list[Any], *, together: bool) -> TokenBatch:
    """The windows as one batch; all their next turns read apart unless they are to be read together."""
    turns = [turn for window in rows for turn in window[:-1]]
    after = [turn if turn is window[-1] or not together else None for window in rows for turn in window[1:]]
    return encoder.batch(turns, after)


def agent(vlm: VLM, **options: Any) -> VLMQ:
    torch.manual_seed(0)
    module = VLMQ(vlm, **{"threshold": 0.0, "gamma": 0.9, "min_probability": 0.0, **options})
    with torch.no_grad():
        for part in (module.critic.online, module.critic.target):
            for parameter in part.parameters():
                parameter.normal_(std=0.1)
    return module.train()


def step(module: VLMQ, batch: TokenBatch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What is logged and gradients; the critic's statistics move, as behind an optimiser step."""
    torch.manual_seed(5)
    module.zero_grad()
    loss, logs = module.losses(batch)
    loss.backward()
    module.critic.commit()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **logs}, gradients


@pytest.mark.parametrize(
    "options",
    [
        {"critic_states": "adapted", "critic_inputs": "raw"},
        {"critic_states": "detached"},
        {"critic_states": "base"},
        {"critic_states": "base", "critic_replay": 2},
        {"critic_states": "adapted", "top_k": None},
        {"critic_states": "base", "top_k": None, "top_p": 0.7, "critic": "embeddings"},
        {"critic_states": "adapted", "popart_init": None, "actor": "max_q"},
        {"td_weight": 0.0},
    ],
    ids=str,
)
def test_windows_have_the_losses_and_gradients_of_turns_read_apart(
    vlm: VLM, encoder: TurnEncoder, rows: list[Any], options: dict[str, Any]
) -> None:
    apart, together = (encoded(encoder, rows, together=whether) for whether in (False, True))
    assert together.next_in_batch.tolist() == [True, True, False, True, True, False, True, False]
    assert together.has_next.tolist() == apart.has_next.tolist() == [True] * 7 + [False]
    assert len(apart.next_inputs["input_ids"]) == 7
    assert len(together.next_inputs["input_ids"]) == 2
    one, other = agent(vlm, **options), agent(vlm, **options)
    for _ in range(3 if options.get("critic_replay") else 2):  # PopArt's statistics count from the second on
        for found, wanted in zip(step(other, together), step(one, apart), strict=True):
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                torch.testing.assert_close(
                    found[name], value, **CLOSE, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
                )
    for (name, value), (_, wanted) in zip(other.critic.named_buffers(), one.critic.named_buffers(), strict=True):
        torch.testing.assert_close(value, wanted, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


def test_so_have_they_with_a_tower_that_is_trained(tiny_folder: Path, rows: list[Any]) -> None:
    vlm = VLM(str(tiny_folder), lora_rank=2, train_vision_tower=True)
    encoder = TurnEncoder(vlm)
    apart, together = (encoded(encoder, rows, together=whether) for whether in (False, True))
    assert len(together.next_inputs["live_pixel_values"]) < len(apart.next_inputs["live_pixel_values"])
    one, other = (step(agent(vlm, critic_states="adapted"), batch) for batch in (apart, together))
    assert any("vision_model" in name for name in one[1])
    torch.testing.assert_close(other, one, **CLOSE, equal_nan=True)


def test_only_the_last_turn_of_a_window_has_its_next_one_read(
    vlm: VLM, encoder: TurnEncoder, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    hidden = vlm.hidden
    monkeypatch.setattr(vlm, "hidden", lambda inputs: read.append(len(inputs["input_ids"])) or hidden(inputs))
    for together in (False, True):
        agent(vlm, critic_states="adapted").losses(encoded(encoder, rows, together=together))
    agent(vlm, critic_states="adapted").losses(encoded(encoder, rows[2:], together=True))  # none is left to read
    assert read == [8, 7, 8, 2, 2]


@pytest.mark.parametrize("of_model", [False, True])
def test_where_training_drops_out_next_turns_are_read_without(
    tiny_folder: Any, rows: list[Any], of_model: bool
) -> None:
    torch.manual_seed(1)
    vlm = VLM(str(tiny_folder), lora_rank=4, lora_dropout=0.0 if of_model else 0.3)
    if of_model:
        vlm.hf.get_decoder().layers[1].self_attn.attention_dropout = 0.3
    with torch.no_grad():
        for name, parameter in vlm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    encoder = TurnEncoder(vlm)
    assert encoder.reads_next_apart
    apart, together = (encoded(encoder, rows, together=whether) for whether in (False, True))
    assert not together.next_in_batch.any()
    module = agent(vlm, critic_states="adapted")
    (logs, _), (again, _), (wanted, _) = (step(agent(vlm), batch) for batch in (together, together, apart))
    assert logs["loss"] == again["loss"] == wanted["loss"]
    torch.manual_seed(6)
    assert module.losses(together)[0] != module.losses(together)[0]  # it does drop out
