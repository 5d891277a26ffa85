"""What ids of a model's vocabulary mean: which end a reply, which none may hold, and what tells vocabularies apart."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any

__all__ = ["forbidden_ids", "stop_ids", "vocabulary_fingerprint"]


def stop_ids(hf: Any, processor: Any) -> tuple[int, ...]:
    """Ids that end a reply, the chat template's own first."""
    eos = hf.generation_config.eos_token_id
    ids = [_turn_end(processor), processor.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def forbidden_ids(hf: Any, processor: Any, of_pictures: Iterable[int], stops: Iterable[int], size: int) -> list[int]:
    """Ids that a reply must never hold: of pictures, padding, other special tokens, none of the tokenizer's.

    Args:
        hf: The Hugging Face model.
        processor: Its processor.
        of_pictures: Ids that frame and fill a picture.
        stops: Ids that end a reply, which it may hold.
        size: Outputs of the language head, of which padded vocabularies have more than the tokenizer.
    """
    tokenizer = processor.tokenizer
    tokens = {
        hf.config.get_text_config().pad_token_id,
        tokenizer.pad_token_id,
        *of_pictures,
        *(token for token, added in tokenizer.added_tokens_decoder.items() if _is_control(added)),
    }
    names = ("image_token", "fake_image_token", "global_image_token", "boi_token", "eoi_token", "video_token")
    for name in names:
        token = getattr(processor, name, None) or getattr(tokenizer, name, None)
        if isinstance(token, str):
            tokens.add(tokenizer.convert_tokens_to_ids(token))
    tokens.update(range(len(tokenizer), size))
    return sorted({int(i) for i in tokens if i is not None}.difference(stops))


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """Short hash of a vocabulary."""
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(vocabulary.encode()).hexdigest()[:16]


def _turn_end(processor: Any) -> int | None:
    """Id of the special token with which the chat template ends a reply, if it ends it with one."""
    said = [("user", "Say it."), ("assistant", "It.")]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    behind = processor.apply_chat_template(messages, tokenize=False).rpartition("It.")[2].strip()
    ids = processor.tokenizer(behind, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if ids and ids[0] in processor.tokenizer.added_tokens_decoder else None


def _is_control(added: Any) -> bool:
    """Whether an added token is no text; bytes are, though some tokenizers call them special."""
    return bool(added.special) and re.fullmatch("<0x[0-9A-Fa-f]{2}>", str(added)) is None
