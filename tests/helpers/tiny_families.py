"""Tiny random models of many families, each from its own configuration class and with its own processor.

What a checkpoint of the family has on the hub stands here in small: the tokenizer's kind and special tokens, the chat
template, how pictures are cut. Heads are tied or not, and vocabularies padded, as the family does it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
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

SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
}

CHATML = (
    "{{% for m in messages %}}<|im_start|>{{{{ m['role'] }}}}\n{{% for c in m['content'] %}}"
    "{{% if c['type'] == 'image' %}}{image}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}<|im_end|>\n"
    "{{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)


class Family(NamedTuple):
    """A family of models, and what a test must know of it beforehand.

    Attributes:
        make: Builds model and processor.
        targets: Linear layers of the language model that ``all-linear`` adapts, all layers together.
        torchvision: Its processor needs it.
        shows_none: Its own processor takes prompts without pictures.
    """

    make: Callable[[], tuple[Any, Any]]
    targets: int
    torchvision: bool = False
    shows_none: bool = True


def build(family: Family, folder: Path) -> Path:
    """Writes a tiny model of the family, always the same one."""
    torch.manual_seed(0)
    model, processor = family.make()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(3)  # the default scale makes all hidden states alike
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# -- tokenizers ---------------------------------------------------------------------------------------------------


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
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
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


# -- families -----------------------------------------------------------------------------------------------------

IDEFICS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
IDEFICS_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
CUT = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": True}
"""Pictures larger than a tile of 32 pixels are cut into tiles and shown as a whole besides."""


def idefics3() -> tuple[Any, Any]:
    tokenizer = byte_level("<end_of_utterance>", IDEFICS, bos="<|im_start|>", others=TILES)
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessorPil(**CUT), tokenizer, image_seq_len=4, chat_template=IDEFICS_TEMPLATE
    )
    config = hf.Idefics3Config(
        vision_config=SIGLIP,
        text_config={"model_type": "llama", **TEXT, **ends(tokenizer), "tie_word_embeddings": True},
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    tokenizer = byte_level("<end_of_utterance>", IDEFICS, bos="<|im_start|>", others=TILES)
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**CUT),
        tokenizer,
        hf.SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32}),
        image_seq_len=4,
        chat_template=IDEFICS_TEMPLATE,
    )
    config = hf.SmolVLMConfig(
        vision_config=SIGLIP,
        text_config={"model_type": "llama", **TEXT, **ends(tokenizer)},
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def _paligemma(text: dict[str, Any]) -> tuple[Any, Any]:
    tokenizer = sentence_piece("<eos>", {"image_token": "<image>"}, bos="<bos>", leading_space=False, begins=False)
    pictures = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pictures.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(pictures, tokenizer)
    config = hf.PaliGemmaConfig(
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "projection_dim": D},
        text_config={**text, **HEADS_OF_16, **ends(tokenizer, padded=6)},
        image_token_index=tokenizer.image_token_id,
        projection_dim=D,
        hidden_size=D,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    return _paligemma({"model_type": "gemma"})


def paligemma2() -> tuple[Any, Any]:
    capped = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0, "sliding_window": 16}
    return _paligemma({"model_type": "gemma2", "query_pre_attn_scalar": 16, **capped})


QWEN = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
QWEN_OTHERS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
QWEN_TEMPLATE = CHATML.format(image="<|vision_start|><|image_pad|><|vision_end|>")


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}


def _qwen_pictures(patch: int) -> dict[str, Any]:
    edge = 2 * patch
    return {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 4 * edge**2, "longest_edge": 12 * edge**2},
    }


def qwen2_5_vl() -> tuple[Any, Any]:
    tokenizer = byte_level("<|im_end|>", QWEN, others=QWEN_OTHERS)
    processor = hf.Qwen2_5_VLProcessor(
        hf.Qwen2VLImageProcessorPil(**_qwen_pictures(14)),
        tokenizer,
        hf.Qwen2VLVideoProcessor(**_qwen_pictures(14)),
        chat_template=QWEN_TEMPLATE,
    )
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 14,
            "window_size": 56,
            "out_hidden_size": D,
            "fullatt_block_indexes": [1],
        },
        text_config={
            **TEXT,
            **ends(tokenizer, padded=10),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        tie_word_embeddings=False,
        **_qwen_ids(tokenizer),
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    tokenizer = byte_level("<|im_end|>", QWEN, others=QWEN_OTHERS)
    processor = hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessorPil(**_qwen_pictures(16)),
        tokenizer,
        hf.Qwen3VLVideoProcessor(**_qwen_pictures(16)),
        chat_template=QWEN_TEMPLATE,
    )
    config = hf.Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": 16,
            "out_hidden_size": D,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config={
            **HEADS_OF_16,
            **ends(tokenizer, padded=10),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
            },
        },
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )
    return hf.Qwen3VLForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    grid = [[32, 32], [32, 64], [64, 32], [64, 64]]
    tokenizer = byte_level(
        "<|im_end|>",
        {"image_token": "<image>", "video_token": "<video>"},
        others=["<|im_start|>", "<|im_end|>"],
    )
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=grid),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        chat_template=CHATML.format(image="<image>\n"),
    )
    config = hf.LlavaOnevisionConfig(
        vision_config={**SIGLIP, "model_type": "siglip_vision_model"},
        text_config={"model_type": "qwen2", **TEXT, **ends(tokenizer, padded=4), "tie_word_embeddings": True},
        image_grid_pinpoints=grid,
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        vision_aspect_ratio="anyres_max_4",
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    tokenizer = byte_level(
        "<|im_end|>",
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        others=["<|im_start|>", "<|im_end|>"],
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer,
        hf.InternVLVideoProcessor(size={"height": 32, "width": 32}),
        image_seq_length=4,
        chat_template=CHATML.format(image="<IMG_CONTEXT>\n"),
    )
    config = hf.InternVLConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        text_config={"model_type": "qwen2", **TEXT, **ends(tokenizer), "tie_word_embeddings": False},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    tokenizer = sentence_piece(
        "<eos>",
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        bos="<bos>",
        leading_space=False,
        begins=True,
        others=["<start_of_turn>", "<end_of_turn>"],
    )
    template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}"
        "\n{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] | trim }}"
        "{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        chat_template=template,
        image_seq_length=4,
    )
    config = hf.Gemma3Config(
        vision_config={**SIGLIP, "model_type": "siglip_vision_model"},
        text_config={
            **HEADS_OF_16,
            **ends(tokenizer, padded=6),
            "query_pre_attn_scalar": 16,
            "sliding_window": 16,
            "sliding_window_pattern": 2,
            "final_logit_softcapping": 3.0,
        },
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def lfm2_vl() -> tuple[Any, Any]:
    names = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = byte_level(
        "<|im_end|>", names, bos="<|startoftext|>", others=["<|im_start|>", "<|im_end|>", *tiles]
    )
    processor = hf.Lfm2VlProcessor(
        hf.Lfm2VlImageProcessor(
            downsample_factor=2,
            do_image_splitting=True,
            min_tiles=2,
            max_tiles=4,
            use_thumbnail=True,
            min_image_tokens=4,
            max_image_tokens=9,
            encoder_patch_size=8,
            tile_size=48,
            max_pixels_tolerance=2.0,
            max_num_patches=36,
        ),
        tokenizer,
        chat_template="{{ bos_token }}" + CHATML.format(image="<image>"),
    )
    vision = {k: v for k, v in SIGLIP.items() if k != "image_size"}
    config = hf.Lfm2VlConfig(
        vision_config={**vision, "model_type": "siglip2_vision_model", "num_patches": 16},
        text_config={
            "model_type": "lfm2",
            **TEXT,
            **ends(tokenizer),
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=32,
        downsample_factor=2,
    )
    return hf.Lfm2VlForConditionalGeneration(config), processor


def llava() -> tuple[Any, Any]:
    tokenizer = sentence_piece("</s>", {"image_token": "<image>"}, bos="<s>", leading_space=True, begins=True)
    template = (
        "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] if c['type'] == 'image' %}<image>\n"
        "{% endfor %}{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }} {% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    vision = {k: v for k, v in SIGLIP.items() if k != "vision_use_head"}
    config = hf.LlavaConfig(
        vision_config={**vision, "model_type": "clip_vision_model", "projection_dim": 16},
        text_config={"model_type": "llama", **TEXT, **ends(tokenizer, padded=5)},
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-2,
        image_seq_length=16,
        tie_word_embeddings=False,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def aya_vision() -> tuple[Any, Any]:
    tokens = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL"]
    tokens += [f"TILE_{i}" for i in range(1, 13)]
    turns = ["<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"]
    tokenizer = byte_level(
        "<|END_OF_TURN_TOKEN|>", {"image_token": "<image>"}, bos="<BOS_TOKEN>", others=tokens + turns
    )
    template = (
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
        "{{ '<|USER_TOKEN|>' if m['role'] == 'user' else '<|CHATBOT_TOKEN|>' }}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|END_OF_TURN_TOKEN|>"
        "{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}"
    )
    processor = hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer,
        patch_size=8,
        img_size=32,
        downsample_factor=2,
        chat_template=template,
    )
    config = hf.AyaVisionConfig(
        vision_config={**SIGLIP, "model_type": "siglip_vision_model"},
        text_config={
            "model_type": "cohere2",
            **HEADS_OF_16,
            **ends(tokenizer),
            "sliding_window": 16,
            "logit_scale": 0.25,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    return hf.AyaVisionForConditionalGeneration(config), processor


ATTENTION_AND_MLP = LAYERS * 7

FAMILIES = {
    "idefics3": Family(idefics3, ATTENTION_AND_MLP),
    "smolvlm": Family(smolvlm, ATTENTION_AND_MLP, torchvision=True),
    "paligemma": Family(paligemma, ATTENTION_AND_MLP, shows_none=False),
    "paligemma2": Family(paligemma2, ATTENTION_AND_MLP, shows_none=False),
    "qwen2_5_vl": Family(qwen2_5_vl, ATTENTION_AND_MLP, torchvision=True),
    "qwen3_vl": Family(qwen3_vl, ATTENTION_AND_MLP, torchvision=True),
    "llava_onevision": Family(llava_onevision, ATTENTION_AND_MLP, torchvision=True),
    "internvl": Family(internvl, ATTENTION_AND_MLP, torchvision=True),
    "gemma3": Family(gemma3, ATTENTION_AND_MLP),
    # a convolution (in_proj, out_proj) in one layer, attention (q, k, v, out_proj) in the other, three of the MLP in both
    "lfm2_vl": Family(lfm2_vl, 2 + 4 + LAYERS * 3, torchvision=True),
    "llava": Family(llava, ATTENTION_AND_MLP),
    "aya_vision": Family(aya_vision, ATTENTION_AND_MLP),
}
