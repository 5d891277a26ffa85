"""Tiny random models of many families, each from its own configuration class and with its own processor.

What a checkpoint of the family has on the hub stands here in small: the tokenizer's kind and special tokens, the chat
template, how pictures are cut. Heads are tied or not, and vocabularies padded, as the family does it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tiny_picture_families as pictures
import tiny_video_families as videos
import torch
from tiny_tokenizers import LAYERS, D

__all__ = ["FAMILIES", "LAYERS", "D", "Family", "build"]


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


ATTENTION_AND_MLP = LAYERS * 7

FAMILIES = {
    "idefics3": Family(pictures.idefics3, ATTENTION_AND_MLP),
    "smolvlm": Family(videos.smolvlm, ATTENTION_AND_MLP, torchvision=True),
    "paligemma": Family(pictures.paligemma, ATTENTION_AND_MLP, shows_none=False),
    "paligemma2": Family(pictures.paligemma2, ATTENTION_AND_MLP, shows_none=False),
    "qwen2_5_vl": Family(videos.qwen2_5_vl, ATTENTION_AND_MLP, torchvision=True),
    "qwen3_vl": Family(videos.qwen3_vl, ATTENTION_AND_MLP, torchvision=True),
    "llava_onevision": Family(videos.llava_onevision, ATTENTION_AND_MLP, torchvision=True),
    "internvl": Family(videos.internvl, ATTENTION_AND_MLP, torchvision=True),
    "gemma3": Family(pictures.gemma3, ATTENTION_AND_MLP),
    # a convolution (in_proj, out_proj) in one layer, attention (q, k, v, out_proj) in the other, an MLP in both
    "lfm2_vl": Family(pictures.lfm2_vl, 2 + 4 + LAYERS * 3, torchvision=True),
    "llava": Family(pictures.llava, ATTENTION_AND_MLP),
    "aya_vision": Family(pictures.aya_vision, ATTENTION_AND_MLP),
}
