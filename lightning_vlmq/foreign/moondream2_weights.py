"""Published weights of MoonDream2 as a folder that ``VLM`` loads.

``python -m lightning_vlmq.foreign.moondream2_weights SOURCE TOKENIZER FOLDER`` reads the safetensors of a revision of
2025 and the tokenizer that the revision names. Not run with published weights.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaProcessor

from lightning_vlmq.foreign.body import SIGLIP, published
from lightning_vlmq.foreign.moondream2 import (
    Moondream2Config,
    Moondream2ForConditionalGeneration,
    Moondream2ImageProcessor,
    register,
)

__all__ = ["converted", "renamed"]

VISION = {**SIGLIP, "image_size": 378}
TEXT = {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32}
BEGIN, QUERY, ANSWER = 0, (1, 15381, 2), (3,)
"""Ids of the beginning (which also ends a reply), in front of a question, and behind it, since June 2025."""
OWN = ("<image>", "<pad>")
"""Tokens that the model itself needs none of: what shows a picture in a prompt, and what fills up a batch."""


def renamed(weights: Mapping[str, Tensor], patch: int) -> dict[str, Tensor]:
    """Published weights by the names that they have here; those of regions, tables and caches are left out.

    Raises:
        ValueError: A name is none of a published checkpoint's.
    """
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        name = re.sub(r"^(?:model\.)?", "", name.replace("._orig_mod", ""))
        if re.match(r"region\.|attn_mask$|text\.freqs_cis$|.*\.kv_cache\.", name):
            continue
        for old, new in _NAMES:
            if re.fullmatch(old, name):
                name = re.sub(old, new, name)
                break
        else:
            raise ValueError(f"{name!r} is no weight of MoonDream2 as it was published in 2025; take such a revision")
        if "{qkv}" in name:  # queries, keys and values, as many of each
            letters = zip("qkv", weight.chunk(3), strict=True)
            found |= {name.replace("{qkv}", f"{letter}_proj"): part.clone() for letter, part in letters}
        elif name.endswith("patch_embedding.weight"):
            found[name] = weight.view(len(weight), 3, patch, patch)
        else:
            found[name] = weight[0] if name.endswith("position_embedding.weight") else weight
    return found


_TOWER, _LAYER = r"model.tower.encoder.layers.\1", r"model.language_model.layers.\1"
_NAMES = [
    (r"vision\.patch_emb\.(\w+)", r"model.tower.embeddings.patch_embedding.\1"),
    (r"vision\.pos_emb", r"model.tower.embeddings.position_embedding.weight"),
    (r"vision\.post_ln\.(\w+)", r"model.tower.post_layernorm.\1"),
    (r"vision\.blocks\.(\d+)\.ln([12])\.(\w+)", _TOWER + r".layer_norm\2.\3"),
    (r"vision\.blocks\.(\d+)\.attn\.qkv\.(\w+)", _TOWER + r".self_attn.{qkv}.\2"),
    (r"vision\.blocks\.(\d+)\.attn\.proj\.(\w+)", _TOWER + r".self_attn.out_proj.\2"),
    (r"vision\.blocks\.(\d+)\.mlp\.(fc[12])\.(\w+)", _TOWER + r".mlp.\2.\3"),
    (r"vision\.proj_mlp\.(fc[12])\.(\w+)", r"model.projector.\1.\2"),
    (r"text\.wte", r"model.language_model.embed_tokens.weight"),
    (r"text\.post_ln\.(\w+)", r"model.language_model.final_layernorm.\1"),
    (r"text\.lm_head\.(\w+)", r"lm_head.\1"),
    (r"text\.blocks\.(\d+)\.ln\.(\w+)", _LAYER + r".input_layernorm.\2"),
    (r"text\.blocks\.(\d+)\.attn\.qkv\.(\w+)", _LAYER + r".self_attn.{qkv}.\2"),
    (r"text\.blocks\.(\d+)\.attn\.proj\.(\w+)", _LAYER + r".self_attn.dense.\2"),
    (r"text\.blocks\.(\d+)\.mlp\.(fc[12])\.(\w+)", _LAYER + r".mlp.\2.\3"),
]


def converted(
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    *,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    begin: int = BEGIN,
    query: Sequence[int] = QUERY,
    answer: Sequence[int] = ANSWER,
) -> tuple[Any, Any]:
    """Model and processor; ``save_pretrained`` of both makes a folder that ``VLM`` loads.

    Args:
        weights: As published.
        tokenizer: The model's, of transformers; it gets the tokens that the model has no need of (``OWN``).
        text: Shape of the language model where it is not the published one (names of ``PhiConfig``).
        vision: Shape of the tower, likewise (names of ``SiglipVisionConfig``).
        begin: Id that begins a prompt and ends a reply, from the published configuration.
        query: Ids in front of a question, likewise.
        answer: Ids behind it.

    Raises:
        ValueError: Weights are missing or unknown, or the tokenizer does not give the ids of a prompt back.
    """
    register()
    ends, *frame = (tokenizer.decode(list(ids)) for ids in ([begin], query, answer))
    for ids, words in zip(([begin], query, answer), (ends, *frame), strict=True):
        if tokenizer(words, add_special_tokens=False)["input_ids"] != list(ids):
            raise ValueError(f"the tokenizer does not know the ids {list(ids)} of a prompt; take the revision's own")
    tokenizer.add_special_tokens({"additional_special_tokens": list(OWN)}, replace_extra_special_tokens=False)
    tokenizer.bos_token = tokenizer.eos_token = ends
    tokenizer.pad_token = OWN[1]
    shape = {**VISION, **(vision or {})}
    known = renamed(weights, shape["patch_size"])
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"):
        if name not in known:
            raise ValueError(f"the checkpoint has no {name}; take a revision of MoonDream2 published in 2025")
        # rows of our own tokens, which are never read and never said
        missing = max(0, len(tokenizer) - len(known[name]))
        never = known[name].new_full((missing, *known[name].shape[1:]), -1e4 if name.endswith("bias") else 0.0)
        known[name] = torch.cat([known[name], never])
    inner = {name: len(weight) for name, weight in known.items() if name.endswith("fc1.bias")}
    config = Moondream2Config(
        text_config={
            **TEXT,
            "vocab_size": len(known["lm_head.bias"]),
            "intermediate_size": inner.get("model.language_model.layers.0.mlp.fc1.bias", 0),
            **{f"{role}_token_id": begin for role in ("bos", "eos")},
            "pad_token_id": tokenizer.pad_token_id,
            **(text or {}),
        },
        vision_config={**shape, "layer_norm_eps": 1e-5, "vision_use_head": False},
        image_token_id=tokenizer.convert_tokens_to_ids(OWN[0]),
        projector_size=inner.get("model.projector.fc1.bias", 0),
    )
    model: Any = Moondream2ForConditionalGeneration(config)
    try:
        model.load_state_dict(known)
    except RuntimeError as error:
        raise ValueError(f"the weights are not those of MoonDream2: {' '.join(str(error).split())[:200]}") from None
    side, patch = shape["image_size"], shape["patch_size"]
    made: Any = Moondream2ImageProcessor  # options of its own are no part of its base's signature
    pictures = made(size={"height": side, "width": side}, patch_size=patch)
    processor = LlavaProcessor(  # type: ignore[no-untyped-call]
        pictures,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="full",
        chat_template=_template(*frame),
    )
    return model.to(known["lm_head.bias"].dtype), processor


def _template(before: str, behind: str) -> str:
    """Pictures come first, whatever the order of the message; then each question in its frame."""
    return (
        "{{ bos_token }}{% for m in messages %}{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
        "{% endfor %}{% for m in messages %}{{ '' if m['role'] == 'assistant' else " + json.dumps(before) + " }}"
        "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
        "{{ eos_token if m['role'] == 'assistant' else " + json.dumps(behind) + " }}{% endfor %}"
    )


if __name__ == "__main__":
    source, words, target = sys.argv[1:]
    for part in converted(published(Path(source)), AutoTokenizer.from_pretrained(words)):
        part.save_pretrained(target)
