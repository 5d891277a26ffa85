"""Tiny models that transformers does not have: the small foreign VLM, MoonDream2, xGen-MM.

The latter two come from random weights under the names and in the shapes of published checkpoints.
"""

from typing import Any

import foreign_adapter
import foreign_vlm
import torch
from tiny_tokenizers import LAYERS, D, byte_level, sentence_piece
from torch import Tensor

from lightning_vlmq.foreign import moondream2_weights, xgen_mm_weights

SEEN = 16
"""Width of towers."""


def foreign() -> tuple[Any, Any]:
    """A network that is none of transformers, behind its adapter."""
    tokenizer = byte_level("<end_of_utterance>", {"image_token": "<image>"}, others=["<end_of_utterance>"])
    network = foreign_vlm.Network(len(tokenizer), width=D, depth=LAYERS)
    return foreign_adapter.adapted(network, tokenizer)


def random(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Small random weights; those of norms are near 1."""
    norms = ("ln.weight", "ln1.weight", "ln2.weight", "norm.weight", "norm1.weight", "norm2.weight")
    norms += ("norm_media.weight", "norm_latents.weight", "layernorm.weight", "1.0.weight")
    return {
        name: torch.randn(shape) * (0.1 if len(shape) > 1 else 0.2) + name.endswith(norms)
        for name, shape in shapes.items()
    }


def linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


MOONDREAM = {
    "text": {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 2},
    "vision": {
        "hidden_size": SEEN,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 4,
    },
}
"""12 x 12 patches, of which neighbouring tiles share eight."""


def moondream2_published(words: int) -> dict[str, Tensor]:
    """As a checkpoint of MoonDream2 holds them, some of regions and of tables among them."""
    shapes: dict[str, tuple[int, ...]] = {"vision.pos_emb": (1, 144, SEEN), "text.wte": (words, D)}
    shapes |= linear("vision.patch_emb", SEEN, 3 * 4 * 4) | norm("vision.post_ln", SEEN)
    shapes |= linear("vision.proj_mlp.fc1", 40, 2 * SEEN) | linear("vision.proj_mlp.fc2", D, 40)
    shapes |= norm("text.post_ln", D) | linear("text.lm_head", words, D)
    for part, width, inner, norms in (("vision", SEEN, 32, ("ln1", "ln2")), ("text", D, 48, ("ln",))):
        for block in (f"{part}.blocks.{i}" for i in range(2)):
            shapes |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
            shapes |= linear(f"{block}.mlp.fc1", inner, width) | linear(f"{block}.mlp.fc2", width, inner)
            for name in norms:
                shapes |= norm(f"{block}.{name}", width)
    shapes |= {"region.coord_encoder.bias": (D,), "text.freqs_cis": (8, 2, 2)}
    return {f"model.{name}": weight for name, weight in random(shapes).items()}


def moondream2(weights: dict[str, Tensor] | None = None) -> tuple[Any, Any]:
    """MoonDream2; its prompt in words as before June 2025, for our tokenizer has no tokens of its own for it."""
    tokenizer = byte_level("<end_of_utterance>", {}, others=["<end_of_utterance>"])
    begin = tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    ids = [tokenizer(text)["input_ids"] for text in ("\n\nQuestion: ", "\n\nAnswer:")]
    published = weights or moondream2_published(len(tokenizer))
    return moondream2_weights.converted(published, tokenizer, **MOONDREAM, begin=begin, query=ids[0], answer=ids[1])


XGEN_VISION = {**MOONDREAM["vision"], "image_size": 32, "patch_size": 8}
XGEN_RESAMPLER = {"latents": 4, "depth": 2, "heads": 2, "head_size": 8}


def xgen_mm_tokenizer() -> Any:
    turns = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    return sentence_piece("<|endoftext|>", {}, bos="<s>", leading_space=True, begins=True, others=turns)


def xgen_mm_published(words: int) -> dict[str, Tensor]:
    """As a checkpoint of xGen-MM v1.5 holds them: what counts of the head, tokens beside, the tower's unused end."""
    tower, resampler, text = "vlm.vision_encoder", "vlm.vision_tokenizer", "vlm.lang_model"
    shapes: dict[str, tuple[int, ...]] = {
        f"{tower}.embeddings.patch_embedding.weight": (SEEN, 3, 8, 8),
        f"{tower}.embeddings.patch_embedding.bias": (SEEN,),
        f"{tower}.embeddings.position_embedding.weight": (16, SEEN),
        f"{tower}.head.probe": (1, 1, SEEN),
        f"{resampler}.latents": (4, SEEN),
        f"{text}.model.embed_tokens.weight": (words + 5, D),
        f"{text}.model.embed_tokens.additional_embedding.weight": (3, D),
        f"{text}.model.norm.weight": (D,),
    }
    shapes |= norm(f"{tower}.post_layernorm", SEEN) | norm(f"{resampler}.norm", SEEN)
    shapes |= linear(f"{resampler}.projection", D, SEEN)
    shapes |= linear(f"{text}.lm_head", words + 5, D) | linear(f"{text}.lm_head.additional_fc", 3, D)
    for layer in (f"{tower}.encoder.layers.{i}" for i in range(2)):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{name}", SEEN, SEEN)
        shapes |= linear(f"{layer}.mlp.fc1", 32, SEEN) | linear(f"{layer}.mlp.fc2", SEEN, 32)
        shapes |= norm(f"{layer}.layer_norm1", SEEN) | norm(f"{layer}.layer_norm2", SEEN)
    for layer in (f"{resampler}.layers.{i}" for i in range(2)):
        shapes |= norm(f"{layer}.0.norm_media", SEEN) | norm(f"{layer}.0.norm_latents", SEEN)
        shapes |= norm(f"{layer}.1.0", SEEN)
        for name, outputs, inputs in (("to_q", 16, SEEN), ("to_kv", 32, SEEN), ("to_out", SEEN, 16)):
            shapes[f"{layer}.0.{name}.weight"] = (outputs, inputs)
        shapes |= {f"{layer}.1.1.weight": (4 * SEEN, SEEN), f"{layer}.1.3.weight": (SEEN, 4 * SEEN)}
    for layer in (f"{text}.model.layers.{i}" for i in range(LAYERS)):
        for name, outputs, inputs in (
            ("self_attn.qkv_proj", 64, D),
            ("self_attn.o_proj", D, D),
            ("mlp.gate_up_proj", 96, D),
            ("mlp.down_proj", D, 48),
        ):
            shapes[f"{layer}.{name}.weight"] = (outputs, inputs)
        shapes |= {f"{layer}.{name}.weight": (D,) for name in ("input_layernorm", "post_attention_layernorm")}
    return random(shapes)


def xgen_mm(weights: dict[str, Tensor] | None = None) -> tuple[Any, Any]:
    tokenizer = xgen_mm_tokenizer()
    text = {
        "initial_tokenizer_len": len(tokenizer),
        "model_type": "phi3",
        "vocab_size": len(tokenizer) + 5,
        "hidden_size": D,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    published = weights or xgen_mm_published(len(tokenizer))
    return xgen_mm_weights.converted(published, tokenizer, text, vision=XGEN_VISION, resampler=XGEN_RESAMPLER)
