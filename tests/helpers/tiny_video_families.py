"""Tiny models of families whose processors take videos, too, for which they need torchvision."""

from typing import Any

import transformers as hf
from tiny_picture_families import CUT, IDEFICS, IDEFICS_TEMPLATE, TILES
from tiny_tokenizers import CHATML, HEADS_OF_16, SIGLIP, TEXT, TOWER, D, byte_level, ends


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


def _qwen_processor(processor: Any, video_processor: Any, tokenizer: Any, patch: int) -> Any:
    edge = 2 * patch
    pictures = {
        "patch_size": patch,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 4 * edge**2, "longest_edge": 12 * edge**2},
    }
    return processor(
        hf.Qwen2VLImageProcessorPil(**pictures),
        tokenizer,
        video_processor(**pictures),
        chat_template=QWEN_TEMPLATE,
    )


def qwen2_5_vl() -> tuple[Any, Any]:
    tokenizer = byte_level("<|im_end|>", QWEN, others=QWEN_OTHERS)
    processor = _qwen_processor(hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor, tokenizer, patch=14)
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
    processor = _qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, tokenizer, patch=16)
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
        vision_config=TOWER,
        text_config={"model_type": "qwen2", **TEXT, **ends(tokenizer), "tie_word_embeddings": False},
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return hf.InternVLForConditionalGeneration(config), processor
