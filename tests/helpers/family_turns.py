"""Turns for tiny models of many families: pictures of several sizes, some in a prompt, none; and steps on them."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vlmq import VLMQ, TargetCriticEMA
from lightning_vlmq.agreement import _differences
from lightning_vlmq.batches import TokenBatch, TurnEncoder
from lightning_vlmq.policy import Reply, VLMPolicy
from lightning_vlmq.turns import Observation, Turn
from lightning_vlmq.vlm import VLM

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def png(width: int, height: int) -> bytes:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


SMALL, SQUARE, WIDE, HIGH = png(24, 20), png(64, 64), png(90, 40), png(40, 100)
SHOWN = {"one": (SQUARE,), "wide": (WIDE,), "small": (SMALL,), "several": (HIGH, SQUARE, WIDE), "none": ()}
OBSERVATIONS = [
    Observation(text="\n" * index + f"Current is {index}.", images=images, objective="Make Current equal to Target.")
    for index, images in enumerate(SHOWN.values())
]
REPLIES = ["[action] +", "[action] -", "[action] up and down", "+", "no"]


def adapted(folder: Path, **options: Any) -> VLM:
    """The family's VLM with an adapter that matters."""
    torch.manual_seed(1)
    vlm = VLM(str(folder), **{"lora_rank": 2, "lora_alpha": 4, **options})
    for parameter_name, parameter in vlm.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.05)
    return vlm


def pairs(observations: Sequence[Observation] = OBSERVATIONS) -> tuple[list[Turn], list[Turn]]:
    turns = [
        Turn("env", "e", index, observation, reply=reply, reward=float(index))
        for index, (observation, reply) in enumerate(zip(observations, REPLIES, strict=True))
    ]
    return turns, [Turn("env", "e", 9, observation) for observation in reversed(observations)]


def live(encoder: TurnEncoder, observation: Observation) -> dict[str, Tensor]:
    """What the family's own processor makes of a prompt and its pictures."""
    processor = encoder.vlm.processor
    pictures = [Image.open(io.BytesIO(image)) for image in observation.images]
    if "PaliGemma" in type(processor).__name__:  # writes the prompt's frame by itself
        text = "<image>" * len(pictures) + encoder.prompt.text(observation)
        inputs = processor(text=[text], images=[pictures], return_tensors="pt")
    else:
        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        content.append({"type": "text", "text": encoder.prompt.text(observation)})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    return {key: value for key, value in inputs.items() if key not in ("labels", "num_patches")}


@torch.no_grad()
def hidden(vlm: VLM, inputs: dict[str, Tensor]) -> Tensor:
    return vlm.hidden(inputs)


def played_and_trained(
    encoder: TurnEncoder, observations: Sequence[Observation] = OBSERVATIONS, **options: Any
) -> tuple[list[Reply], Tensor]:
    """Replies, and how far training's log-probabilities are from those of the rollout."""
    turns, successors = pairs(observations)
    said = VLMPolicy(encoder, seed=3, **options).reply([], observations)
    replied = [
        dataclasses.replace(t, reply=r.text, reply_ids=r.ids, tokenizer=r.tokenizer, cut=r.cut, log_probs=r.log_probs)
        for t, r in zip(turns, said, strict=True)
    ]
    return said, _differences(encoder, list(zip(replied, replied, successors, strict=True)))


def fit(module: VLMQ, batch: TokenBatch, steps: int, checkpoint: Path | None = None) -> L.Trainer:
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TargetCriticEMA()],
    )
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None), ckpt_path=checkpoint, weights_only=True)
    return trainer
