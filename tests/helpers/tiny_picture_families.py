"""Tiny models of families whose processors take pictures only."""

from typing import Any

import torch
import transformers as hf
from tiny_tokenizers import CHATML, HEADS_OF_16, SIGLIP, TEXT, TOWER, D, byte_level, ends, sentence_piece

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
    capped = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 5.0, "sliding_window": 16}
    return _paligemma({"model_type": "gemma2", "query_pre_attn_scalar": 16, **capped})


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
    model = hf.Gemma3ForConditionalGeneration(config)
    # it is born as zeros, with which no picture would say anything
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    return model, processor


def lfm2_vl() -> tuple[Any, Any]:
    names = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    tokenizer = byte_level("<|im_end|>", names, bos="<|startoftext|>", others=["<|im_start|>", "<|im_end|>", *tiles])
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
    config = hf.LlavaConfig(
        vision_config={**TOWER, "model_type": "clip_vision_model", "projection_dim": 16},
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
