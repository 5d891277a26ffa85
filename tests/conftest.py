"""Fixtures shared by all tests: a VLM of a few thousand parameters and turns of a real environment."""

import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torchvision_for_tests  # noqa: F401

# isort: split
import pytest
import torch
from transformers import AutoProcessor, Idefics3Config, Idefics3ForConditionalGeneration

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs import AgentEnv, NumberLine
from lightning_vlmq.policy import RandomPolicy, VLMPolicy
from lightning_vlmq.rollout import play
from lightning_vlmq.turns import Episode, Turn
from lightning_vlmq.vlm import EMBEDDED, VLM

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Idefics3 of 60 thousand parameters with the embedded VLM's tokenizer and processor."""
    folder = tmp_path_factory.mktemp("tiny")
    processor = AutoProcessor.from_pretrained(EMBEDDED)
    tokenizer = processor.tokenizer
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = Idefics3Config(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 256,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            **ids,
        },
        scale_factor=2,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=True,
        **ids,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # the default scale makes all hidden states alike
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def vlm(tiny_folder: Path) -> VLM:
    """The tiny VLM with a LoRA adapter whose second matrices are not zero, so that it matters."""
    torch.manual_seed(1)
    model = VLM(str(tiny_folder), lora_rank=4, lora_alpha=8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


@pytest.fixture
def encoder(vlm: VLM) -> TurnEncoder:
    """Encodes for the tiny VLM."""
    return TurnEncoder(vlm)


@pytest.fixture
def env() -> AgentEnv:
    """NumberLine with the paper's penalties."""
    return AgentEnv(NumberLine())


@pytest.fixture
def episodes(encoder: TurnEncoder, env: AgentEnv) -> list[Episode]:
    """A dozen episodes of random valid actions mixed with the tiny VLM's nonsense."""
    policies = [RandomPolicy(), VLMPolicy(encoder, temperature=1.0)]
    return list(play(env, policies, range(12), shares=[0.7, 0.3]))


@pytest.fixture
def pairs(episodes: list[Episode]) -> list[tuple[Turn, Turn]]:
    """Turns with their successors."""
    return [(e.turns[i], e.turns[i + 1]) for e in episodes for i in range(len(e))]
