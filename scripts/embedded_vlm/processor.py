"""Tokenizer and processor of the embedded model."""

import json
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Idefics3ImageProcessor, Idefics3Processor, PreTrainedTokenizerFast

from scripts.embedded_vlm.conversations import corpus
from scripts.embedded_vlm.model import CONTEXT, IMAGE_TOKENS

__all__ = ["CHAT_TEMPLATE", "EOS", "VOCABULARY", "make_processor"]

VOCABULARY = 3072
"""Number of tokens."""

EOS = "<end_of_utterance>"
"""Stop token."""

SPECIAL = [
    "<pad>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    EOS,
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
]

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '" + EOS + "' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
"""Every message is a role token, its content and the stop token; a reply begins right behind ``<|assistant|>``."""


def make_processor(seed: int = 7, lines: int = 12000) -> Idefics3Processor:
    """Train the tokenizer on generated text and wrap it with the image processor.

    Args:
        seed: Seed of the text.
        lines: Generated prompts.

    Returns:
        Processor: byte-level BPE with single digits and single signs, pictures resized to 256 x 256.
    """
    tokenizer = Tokenizer(models.BPE())
    # A digit or a sign, with the space before it, is a token of its own: "[word] 12" is [ word ] _1 2.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{N}| ?[^\s\p{L}\p{N}]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    tokenizer.train_from_iterator(corpus(Random(seed), lines), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token=EOS,
        bos_token="<|user|>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": EOS,
        },
    )
    side = {"longest_edge": 256}
    pictures = Idefics3ImageProcessor(size=side, max_image_size=side, do_image_splitting=False)
    return Idefics3Processor(
        image_processor=pictures, tokenizer=wrapped, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE
    )


def shrink(folder: Path) -> None:
    """Write the tokenizer's file without indentation, which is half its size."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False, separators=(",", ":")))
