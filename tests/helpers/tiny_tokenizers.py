"""Tokenizers and the common part of configurations of tiny models of many families."""

from typing import Any

import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lightning_vlmq.vlm import EMBEDDED

D, LAYERS = 32, 2

TEXT = {
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
HEADS_OF_16 = {**TEXT, "head_dim": 16}

TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP = {**TOWER, "vision_use_head": False}

CHATML = (
    "{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{{% for c in m['content'] %}}"
    "{{% if c['type'] == 'image' %}}{image}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}<|im_end|>\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)


def byte_level(eos: str, extra: dict[str, str], *, others: list[str] | None = None, bos: str | None = None) -> Any:
    """Tokenizer of the GPT-2 kind: the embedded VLM's words with a family's special tokens."""
    core = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=eos,
        bos_token=bos,
        pad_token="<pad>",
        extra_special_tokens=extra,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": others or []}, replace_extra_special_tokens=False)
    return tokenizer


def sentence_piece(
    eos: str, extra: dict[str, str], *, bos: str, leading_space: bool, begins: bool, others: list[str] | None = None
) -> Any:
    """Tokenizer of the Llama and Gemma kind: spaces are letters, line ends merge, bytes stand in for the rest.

    Args:
        eos: Stop token.
        extra: Named special tokens.
        bos: Token of the beginning.
        leading_space: A text begins with a space that nobody wrote (Llama).
        begins: The tokenizer writes ``bos`` by itself.
        others: Further special tokens.
    """
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if leading_space:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
    strip = [decoders.Strip(" ", 1, 0)] if leading_space else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    special = ["<pad>", "<unk>", bos, eos, *extra.values(), *(others or [])]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    words = ["Make Current equal to Target.\n\n\nActions: + -\n\nReply like: [action] +\n\nStep 2 of 10.\n"] * 3
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special + bytes_, show_progress=False)
    core.train_from_iterator(words, trainer)
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    if begins:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=eos,
        bos_token=bos,
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=extra,
        clean_up_tokenization_spaces=False,
    )


def ends(tokenizer: Any, *, padded: int = 0) -> dict[str, int]:
    """The tokenizer's part of a text configuration."""
    return {
        "vocab_size": len(tokenizer) + padded,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
