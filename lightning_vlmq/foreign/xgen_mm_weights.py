"""Published weights of xGen-MM v1.5 as a folder that ``VLM`` loads.

``python -m lightning_vlmq.foreign.xgen_mm_weights SOURCE FOLDER`` reads a folder from the hub: weights, configurations
of the model and of its pictures, tokenizer. Not run with published weights.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaNextImageProcessorPil, SiglipVisionConfig

from lightning_vlmq.foreign.body import SIGLIP, published
from lightning_vlmq.foreign.xgen_mm import (
    XGenMMConfig,
    XGenMMForConditionalGeneration,
    XGenMMProcessor,
    grids,
    register,
)

__all__ = ["converted", "renamed"]

VISION = {**SIGLIP, "image_size": 384}
OWN = ("<image>", "<image placeholder>", "<|endofchunk|>")
"""Tokens behind those of the language model, in this order."""
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEMPLATE = (
    "{{ " + json.dumps(f"<|system|>\n{SYSTEM}<|end|>\n") + " }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' }}{% for c in m['content'] %}"
    "{{ '<image>\n' if c['type'] == 'image' else c['text'] }}{% endfor %}{{ '<|end|>\n' }}{% endfor %}"
    "{{ '<|assistant|>\n' if add_generation_prompt else '' }}"
)


def renamed(weights: Mapping[str, Tensor], known: int) -> dict[str, Tensor]:
    """Published weights by the names that they have here; the tower's pooling head is left out.

    Args:
        weights: As published.
        known: Tokens of the language model that count (``initial_tokenizer_len``); those behind are kept apart.
    """
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if ".additional_" in name or name.startswith("vlm.vision_encoder.head."):
            continue
        new = re.sub(r"^vlm\.vision_encoder\.", "model.tower.", name)
        new = re.sub(r"^vlm\.vision_tokenizer\.", "model.resampler.", new)
        new = re.sub(r"^vlm\.lang_model\.(?=lm_head\.)", "", new)
        new = re.sub(r"^vlm\.lang_model\.model\.", "model.language_model.", new)
        apart = re.sub(r"embed_tokens\.", "embed_tokens.additional_embedding.", name)
        apart = re.sub(r"lm_head\.", "lm_head.additional_fc.", apart)
        beside = weights.get(apart) if apart != name else None
        found[new] = weight if beside is None else torch.cat([weight[:known], beside])
    head = found.get("lm_head.weight")
    if head is not None and "lm_head.bias" not in found:
        found["lm_head.bias"] = head.new_zeros(len(head))
    return found


def converted(
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    text: Mapping[str, Any],
    *,
    vision: Mapping[str, Any] | None = None,
    resampler: Mapping[str, int] | None = None,
    mean: float = 0.5,
    std: float = 0.5,
) -> tuple[Any, Any]:
    """Model and processor; ``save_pretrained`` of both makes a folder that ``VLM`` loads.

    Args:
        weights: As published.
        tokenizer: The model's, of transformers.
        text: ``text_config`` of the published configuration.
        vision: Shape of the tower where it is not the published one (names of ``SiglipVisionConfig``).
        resampler: Of the resampler, likewise (names of ``XGenMMConfig``).
        mean: Of pixels, from the published ``preprocessor_config.json``; the same of each colour, or one of each.
        std: Likewise.

    Raises:
        ValueError: Weights are missing or unknown, or the tokenizer is another model's.
    """
    register()
    known = int(text["initial_tokenizer_len"])
    tokenizer.add_special_tokens({"additional_special_tokens": list(OWN)}, replace_extra_special_tokens=False)
    if tokenizer.convert_tokens_to_ids(list(OWN)) != [known, known + 1, known + 2]:
        raise ValueError(f"the tokenizer does not have {known} tokens, as the model has; take the model's own")
    shape = {**VISION, **(vision or {})}
    left_out = ("_attn_implementation", "initial_tokenizer_len", "torch_dtype", "auto_map", "architectures")
    config = XGenMMConfig(
        text_config={k: v for k, v in text.items() if k not in left_out} | {"vocab_size": known + len(OWN)},
        vision_config=SiglipVisionConfig(**shape, vision_use_head=False),
        image_token_id=known,
        **(resampler or {}),
    )
    model: Any = XGenMMForConditionalGeneration(config)
    try:
        model.load_state_dict(renamed(weights, known))
    except RuntimeError as error:
        raise ValueError(f"the weights are not those of xGen-MM v1.5: {' '.join(str(error).split())[:200]}") from None
    side = shape["image_size"]
    pictures = LlavaNextImageProcessorPil(
        size={"height": side, "width": side},
        crop_size={"height": side, "width": side},
        image_grid_pinpoints=grids(side),
        image_mean=mean,
        image_std=std,
    )
    processor = XGenMMProcessor(pictures, tokenizer, TEMPLATE, latents=config.latents)
    return model.to(next(iter(weights.values())).dtype), processor


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    words = json.loads((source / "config.json").read_text())["text_config"]
    seen = json.loads((source / "preprocessor_config.json").read_text())
    options = {"mean": seen["image_mean"], "std": seen["image_std"]}
    for part in converted(published(source), AutoTokenizer.from_pretrained(source), words, **options):
        part.save_pretrained(target)
