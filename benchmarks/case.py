"""What benchmarks run on: a VLM of a published shape with random weights, and turns of a fixed number of tokens.

Nothing is downloaded: the tokenizer is the embedded VLM's, filled up to the shape's vocabulary with words that no text
contains, and pictures are random blocks.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers as hf
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from benchmarks.step_memory import smolvlm_256m
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.turns import Observation, Turn
from lightning_vlmq.vlm import EMBEDDED

__all__ = ["CASES", "MEASURED", "PROMPT", "Case", "make_folder", "make_turns"]

MEASURED = "smolvlm-256m"
"""The case that figures are demanded for."""

PROMPT = PromptMethod(template="{text}")
"""The turns' text alone: its length is set to the token."""

_TEMPLATE_TOKENS = 3
"""Tokens of the chat template around a prompt's text; they count among the prompt's."""


class Case(NamedTuple):
    """A shape of a VLM and of turns.

    Attributes:
        config: Makes the family's own configuration.
        edge: Of a picture, which is one tile, in pixels.
        picture: Tokens of a picture.
        prompt: Tokens of a prompt beside those of its picture and what frames it.
        reply: Tokens of a reply, stop token included.
    """

    config: Callable[[], Any]
    edge: int
    picture: int
    prompt: int
    reply: int

    def __str__(self) -> str:
        return f"one {self.edge} px image, {self.prompt} prompt and {self.reply} reply tokens"


def _tiny() -> Any:
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 3100}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "model_type": "llama", "tie_word_embeddings": False}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 16}
    return hf.Idefics3Config(
        text_config={**text, **heads}, vision_config=vision, scale_factor=2, tie_word_embeddings=False
    )


def _sixth() -> Any:
    config = smolvlm_256m()
    for part in (config.text_config, config.vision_config):
        part.num_hidden_layers //= 6
    return config


CASES = {
    MEASURED: Case(smolvlm_256m, edge=512, picture=64, prompt=120, reply=12),
    # a sixth of the layers of tower and language model: to try things out; heads weigh more in it
    "smolvlm-sixth": Case(_sixth, edge=512, picture=64, prompt=120, reply=12),
    "tiny": Case(_tiny, edge=64, picture=4, prompt=20, reply=5),
}


def make_folder(case: Case, folder: Path) -> Path:
    """Writes a model of the shape with random weights, and its processor; always the same ones."""
    processor: Any = AutoProcessor.from_pretrained(EMBEDDED)  # type: ignore[no-untyped-call]
    tokenizer = processor.tokenizer
    config = case.config()
    config.image_token_id = processor.image_token_id
    for part in (config, config.text_config):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(part, name, getattr(tokenizer, name))
    torch.manual_seed(0)
    model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    processor.image_seq_len = case.picture
    processor.image_processor.size = processor.image_processor.max_image_size = {"longest_edge": case.edge}
    processor.save_pretrained(folder)
    words = json.loads((folder / "tokenizer.json").read_text())
    known = words["model"]["vocab"]
    known |= {f"word{number}": number for number in range(len(known), config.text_config.vocab_size)}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return folder


def make_turns(case: Case, count: int, seed: int = 0) -> list[Turn]:
    """Consecutive turns of an episode that goes on, all of other pictures, text and replies; each digit is a token."""
    rng = np.random.default_rng(seed)
    turns = []
    for index in range(count):
        text, reply = rng.integers(10, size=case.prompt - _TEMPLATE_TOKENS), rng.integers(10, size=case.reply - 1)
        turns.append(
            Turn(
                env="benchmark",
                episode=str(seed),
                index=index,
                observation=Observation(text=_digits(text), images=(_picture(case.edge, rng),)),
                reply=_digits(reply),
                valid=True,
                reward=float(rng.integers(-1, 2)),
            )
        )
    return turns


def _digits(numbers: Any) -> str:
    return "".join(f" {number}" for number in numbers)


def _picture(edge: int, rng: np.random.Generator) -> bytes:
    blocks = rng.integers(256, size=(edge // 32, edge // 32, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(np.kron(blocks, np.ones((32, 32, 1), np.uint8))).save(data, format="PNG")
    return data.getvalue()
