"""MoonDream2 (vikhyatk/moondream2) for transformers: a SigLIP tower, a Phi language model, and a projector.

Not run with the published weights; docs/models.md says what was checked. Written from its public code
(github.com/vikhyat/moondream, 44146f1), whose parts are those of transformers under other names: one linear layer for
queries, keys and values is three here, and patches are cut by a convolution. What it says of regions (detect, point) is
left out. ``moondream2_weights.py`` makes a folder of published weights.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    BatchFeature,
    PhiConfig,
    SiglipVisionConfig,
)
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.masking_utils import create_causal_mask

from lightning_vlmq.foreign.body import ForeignConfig, ForeignForConditionalGeneration, ForeignModel

__all__ = [
    "Moondream2Config",
    "Moondream2ForConditionalGeneration",
    "Moondream2ImageProcessor",
    "register",
    "tiling",
]

MARGIN = 4
"""Patches at the edge of a tile that its neighbour shows, too."""
MOST_TILES = 12


class Moondream2Config(ForeignConfig):  # type: ignore[no-untyped-call]
    """Shape of the model; ``projector_size`` is the width between the tower and the language model."""

    model_type = "moondream2"
    sub_configs = {"text_config": PhiConfig, "vision_config": SiglipVisionConfig}  # noqa: RUF012

    def __init__(self, projector_size: int = 8192, **others: Any) -> None:
        self.projector_size = projector_size
        super().__init__(**others)


def tiling(height: int, width: int, window: int, margin: int, most: int = MOST_TILES) -> tuple[int, int]:
    """Rows and columns of tiles for a picture.

    Args:
        height: In pixels.
        width: In pixels.
        window: Pixels of a tile that are its own.
        margin: Pixels that tiles show beyond their own, both sides together.
        most: Tiles at most.
    """
    height, width = height - margin, width - margin
    if min(height, width) <= window:
        return 1, 1
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    if rows * columns > most:
        shrunk = math.sqrt(most / (rows * columns))
        return max(1, math.floor(rows * shrunk)), max(1, math.floor(columns * shrunk))
    rows = max(rows, math.floor(math.sqrt(most * height / width)))
    columns = max(columns, math.floor(math.sqrt(most * width / height)))
    if rows * columns > most and columns > rows:
        columns = most // rows
    elif rows * columns > most:
        rows = most // columns
    return rows, columns


def _tiling(size: Sequence[int], side: int, patch: int) -> tuple[int, int]:
    margin = 2 * MARGIN * patch
    return tiling(int(size[0]), int(size[1]), side // patch * patch - margin, margin)


class Moondream2ImageProcessor(PilBackend):
    """A picture as a whole and in overlapping tiles, padded to the most tiles of a batch."""

    model_input_names = ["pixel_values", "image_sizes"]  # noqa: RUF012
    resample = PILImageResampling.LANCZOS
    image_mean = [0.5, 0.5, 0.5]  # noqa: RUF012
    image_std = [0.5, 0.5, 0.5]  # noqa: RUF012
    size = {"height": 378, "width": 378}  # noqa: RUF012
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    patch_size = 14

    def _preprocess(self, images: Any, *_: Any, **options: Any) -> Any:
        side = options["size"].height
        step = side - 2 * MARGIN * self.patch_size
        cut = [self._cut(image, side, step) for image in images]
        most = max(len(tiles) for tiles in cut)
        pixels = np.zeros((len(cut), most, 3, side, side), dtype=np.float32)
        for picture, tiles in zip(pixels, cut, strict=True):
            for place, tile in zip(picture, tiles, strict=False):
                scaled = self.rescale(tile, options["rescale_factor"])
                place[:] = self.normalize(scaled, options["image_mean"], options["image_std"])
        sizes = [image.shape[-2:] for image in images]
        return BatchFeature({"pixel_values": pixels, "image_sizes": sizes}, tensor_type=options["return_tensors"])

    def _cut(self, image: np.ndarray, side: int, step: int) -> list[np.ndarray]:
        rows, columns = _tiling(image.shape[-2:], side, self.patch_size)
        overlap = side - step
        whole = SizeDict(height=side, width=side)
        large = SizeDict(height=rows * step + overlap, width=columns * step + overlap)
        tiled = self.resize(image, large, resample=self.resample)
        corners = [(row * step, column * step) for row in range(rows) for column in range(columns)]
        tiles = [tiled[:, top : top + side, left : left + side] for top, left in corners]
        return [self.resize(image, whole, resample=self.resample), *tiles]


class Moondream2Model(ForeignModel):
    """Body: the tower sees the whole and the tiles, which are stitched and shrunk to the size of the whole."""

    config: Moondream2Config

    def __init__(self, config: Moondream2Config) -> None:
        super().__init__(config)
        seen, inner = config.vision_config.hidden_size, config.projector_size
        outer = config.text_config.hidden_size
        self.projector = nn.ModuleDict({"fc1": nn.Linear(2 * seen, inner), "fc2": nn.Linear(inner, outer)})
        self.post_init()  # type: ignore[no-untyped-call]

    def see(self, tiles: Tensor, size: list[int]) -> Tensor:
        """Features ``[N, D]`` of one picture."""
        vision = self.config.vision_config
        grid = vision.image_size // vision.patch_size
        rows, columns = _tiling(size, vision.image_size, vision.patch_size)
        states = self.tower(tiles[: 1 + rows * columns]).last_hidden_state
        whole = states[0]
        parts = states[1:].reshape(rows, columns, grid, grid, -1)

        def own(index: int, count: int) -> slice:
            return slice(MARGIN if index else 0, None if index == count - 1 else grid - MARGIN)

        stitched = torch.cat(
            [
                torch.cat([parts[r, c, own(r, rows), own(c, columns)] for c in range(columns)], dim=1)
                for r in range(rows)
            ]
        )
        shrunk = F.adaptive_avg_pool2d(stitched.permute(2, 0, 1), (grid, grid)).flatten(1).T
        both = torch.cat([whole, shrunk], dim=-1)
        projected: Tensor = self.projector["fc2"](F.gelu(self.projector["fc1"](both), approximate="tanh"))
        return projected

    def mask(self, input_ids: Tensor, states: Tensor, attention_mask: Any, past_key_values: Any) -> Any:
        """The picture and the beginning in front of it see each other in both directions."""
        shown = input_ids == self.config.image_token_id
        if not shown.any():  # text alone, and every step behind the prompt
            return attention_mask
        before = F.pad(shown[:, 1:], (0, 1))
        blocks = (shown | before).long() - 1
        return create_causal_mask(
            self.config.text_config, states, attention_mask, past_key_values, block_sequence_ids=blocks
        )


class Moondream2ForConditionalGeneration(ForeignForConditionalGeneration):  # type: ignore[no-untyped-call]
    """Body and language head."""

    config: Moondream2Config
    body = Moondream2Model


def register() -> None:
    """Makes the model known to transformers; often is as good as once."""
    AutoConfig.register(Moondream2Config.model_type, Moondream2Config, exist_ok=True)
    AutoImageProcessor.register(
        Moondream2Config, image_processor_classes={"pil": Moondream2ImageProcessor}, exist_ok=True
    )
    AutoModelForImageTextToText.register(Moondream2Config, Moondream2ForConditionalGeneration, exist_ok=True)
