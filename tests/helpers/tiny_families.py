"""Tiny random models of many families, each from its own configuration class and with its own processor.

What a checkpoint of the family has on the hub stands here in small: the tokenizer's kind and special tokens, the chat
template, how pictures are cut. Heads are tied or not, and vocabularies padded, as the family does it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import tiny_foreign_families as outside
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
        weights: Parameters of an adapter of rank 1 on them: inputs and outputs of all, added.
        torchvision: Its processor needs it.
        shows_none: Its own processor takes prompts without pictures.
    """

    make: Callable[[], tuple[Any, Any]]
    targets: int
    weights: int
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


# q and o are 32 x 32, k and v 32 x 16, three of the MLP 32 x 48
ATTENTION, MLP = 64 + 64 + 48 + 48, 3 * 80
USUAL = (LAYERS * 7, LAYERS * (ATTENTION + MLP))

FAMILIES = {
    "idefics3": Family(pictures.idefics3, *USUAL),
    "smolvlm": Family(videos.smolvlm, *USUAL, torchvision=True),
    "paligemma": Family(pictures.paligemma, *USUAL, shows_none=False),
    "paligemma2": Family(pictures.paligemma2, *USUAL, shows_none=False),
    "qwen2_5_vl": Family(videos.qwen2_5_vl, *USUAL, torchvision=True),
    "qwen3_vl": Family(videos.qwen3_vl, *USUAL, torchvision=True),
    "llava_onevision": Family(videos.llava_onevision, *USUAL, torchvision=True),
    "internvl": Family(videos.internvl, *USUAL, torchvision=True),
    "gemma3": Family(pictures.gemma3, *USUAL),
    # a convolution (in_proj, out_proj) in one layer, attention (q, k, v, out_proj) in the other, an MLP in both
    "lfm2_vl": Family(pictures.lfm2_vl, 2 + 4 + LAYERS * 3, 4 * D + 2 * D + ATTENTION + LAYERS * MLP, torchvision=True),
    "llava": Family(pictures.llava, *USUAL),
    "aya_vision": Family(pictures.aya_vision, *USUAL),
    # one layer for queries, keys and values, its output, and an MLP of two
    "foreign": Family(outside.foreign, LAYERS * 4, LAYERS * (4 * D + 2 * D + 3 * D + 3 * D)),
    # Phi: four of 32 x 32 and an MLP of two; Phi-3: three of its seven in two
    "moondream2": Family(outside.moondream2, LAYERS * 6, LAYERS * (4 * 2 * D + 2 * 80)),
    "xgen_mm": Family(outside.xgen_mm, LAYERS * 4, LAYERS * ((D + 64) + 2 * D + (D + 96) + 80)),
}
