"""xGen-MM (BLIP-3, Salesforce/xgen-mm-phi3-mini-*-r-v1.5) for transformers: SigLIP, a resampler, Phi-3.

Not run with the published weights; docs/models.md says what was checked. Written from its public code
(github.com/salesforce/LAVIS, branch xgen-mm). A picture is seen as a whole and in tiles of 384 pixels; of each the
resampler makes 128 features. ``xgen_mm_weights.py`` makes a folder of published weights.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Phi3Config,
    ProcessorMixin,
    SiglipVisionConfig,
)
from transformers.image_processing_utils import select_best_resolution

from lightning_vlmq.foreign.body import ForeignConfig, ForeignForConditionalGeneration, ForeignModel

__all__ = ["XGenMMConfig", "XGenMMForConditionalGeneration", "XGenMMProcessor", "grids", "register"]


def grids(side: int) -> list[list[int]]:
    """Heights and widths to which a picture is brought, for tiles of ``side`` pixels; the first of equals counts."""
    return [[side * rows, side * columns] for rows, columns in ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))]


class XGenMMConfig(ForeignConfig):  # type: ignore[no-untyped-call]
    """Shape of the model: features a tile (``latents``), and layers, heads and their width of the resampler."""

    model_type = "xgen_mm"
    sub_configs = {"text_config": Phi3Config, "vision_config": SiglipVisionConfig}  # noqa: RUF012

    def __init__(self, latents: int = 128, depth: int = 6, heads: int = 16, head_size: int = 96, **others: Any) -> None:
        self.latents, self.depth, self.heads, self.head_size = latents, depth, heads, head_size
        super().__init__(**others)


class XGenMMProcessor(ProcessorMixin):
    """Writes as many tokens for a picture as the resampler makes features of it.

    Args:
        image_processor: LLaVA-NeXT's, with the grids of xGen-MM.
        tokenizer: Of the model.
        chat_template: Likewise.
        latents: Features a tile.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, latents: int = 128
    ) -> None:
        self.latents = latents
        self.image_token = "<image>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **_: Any) -> str:
        """Text in the place of a picture."""
        pictures: Any = self.image_processor
        size = [int(pixels) for pixels in image_inputs["image_sizes"][image_idx]]
        rows, columns = _tiles(size, pictures.image_grid_pinpoints, pictures.crop_size["height"])
        return self.image_token * (self.latents * (1 + rows * columns))


def _tiles(size: Any, choices: list[list[int]], side: int) -> tuple[int, int]:
    height, width = select_best_resolution(tuple(size), choices)
    return height // side, width // side


class _Attention(nn.Module):
    """Latents look at a tile and at themselves; names are the published ones."""

    def __init__(self, size: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media, self.norm_latents = nn.LayerNorm(size), nn.LayerNorm(size)
        self.to_q = nn.Linear(size, heads * head_size, bias=False)
        self.to_kv = nn.Linear(size, 2 * heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, size, bias=False)

    def forward(self, media: Tensor, latents: Tensor, kept: Tensor) -> Tensor:
        latents = self.norm_latents(latents)
        both = torch.cat([self.norm_media(media), latents], dim=1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(latents), *self.to_kv(both).chunk(2, dim=-1))
        )
        allowed = F.pad(kept, (0, latents.shape[1]), value=True)[:, None, None]
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        out: Tensor = self.to_out(seen.transpose(1, 2).flatten(2))
        return out


class _Resampler(nn.Module):
    """States of a tile ``[tiles, places, E]`` to a fixed number of features ``[tiles, latents, D]``."""

    def __init__(self, size: int, out: int, latents: int, depth: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, size))
        self.layers = nn.ModuleList()
        for _ in range(depth):
            wide = nn.Linear(size, 4 * size, bias=False), nn.GELU(), nn.Linear(4 * size, size, bias=False)
            forward = nn.Sequential(nn.LayerNorm(size), *wide)
            self.layers.append(nn.ModuleList([_Attention(size, heads, head_size), forward]))
        self.norm = nn.LayerNorm(size)
        self.projection = nn.Linear(size, out)

    def forward(self, media: Tensor, kept: Tensor) -> Tensor:
        latents = self.latents.expand(len(media), -1, -1)
        layers: Any = self.layers
        for attention, forward in layers:
            latents = latents + attention(media, latents, kept)
            latents = latents + forward(latents)
        projected: Tensor = self.projection(self.norm(latents))
        return projected


class XGenMMModel(ForeignModel):
    """Body: SigLIP, resampler, Phi-3."""

    config: XGenMMConfig

    def __init__(self, config: XGenMMConfig) -> None:
        super().__init__(config)
        shape = (config.latents, config.depth, config.heads, config.head_size)
        self.resampler = _Resampler(config.vision_config.hidden_size, config.text_config.hidden_size, *shape)
        self.post_init()  # type: ignore[no-untyped-call]

    def see(self, tiles: Tensor, size: list[int]) -> Tensor:
        """Features ``[N, D]`` of one picture."""
        vision = self.config.vision_config
        grid = vision.image_size // vision.patch_size
        rows, columns = _tiles(size, grids(vision.image_size), vision.image_size)
        states = self.tower(tiles[: 1 + rows * columns]).last_hidden_state
        # The published code puts the tiles together and then cuts the rows of the whole into pieces of a tile's
        # length: a piece is a strip of the picture, no square. The weights were trained so.
        whole = states[1:].unflatten(0, (rows, columns)).unflatten(2, (grid, grid)).transpose(1, 2)
        strips = whole.reshape(rows * columns, grid * grid, -1)
        kept = _not_padded(size, rows * grid, columns * grid).to(states.device).reshape(rows * columns, grid * grid)
        every = torch.ones_like(kept[:1])
        features: Tensor = self.resampler(torch.cat([states[:1], strips]), torch.cat([every, kept]))
        return features.flatten(0, 1)


def _not_padded(size: list[int], height: int, width: int) -> Tensor:
    """Places of a grid ``[height, width]`` that show a picture of ``size`` in its middle, as large as it fits."""
    shown = torch.ones(height, width, dtype=torch.bool)
    if size[1] / size[0] > width / height:
        edge = (height - int(size[0] * (width / size[1]))) // 2
        shown[:edge] = shown[height - edge :] = False
    else:
        edge = (width - int(size[1] * (height / size[0]))) // 2
        shown[:, :edge] = shown[:, width - edge :] = False
    return shown


class XGenMMForConditionalGeneration(ForeignForConditionalGeneration):  # type: ignore[no-untyped-call]
    """Body and language head."""

    config: XGenMMConfig
    body = XGenMMModel


def register() -> None:
    """Makes the model known to transformers; often is as good as once."""
    AutoConfig.register(XGenMMConfig.model_type, XGenMMConfig, exist_ok=True)
    AutoProcessor.register(XGenMMConfig, XGenMMProcessor, exist_ok=True)  # type: ignore[no-untyped-call]
    AutoModelForImageTextToText.register(XGenMMConfig, XGenMMForConditionalGeneration, exist_ok=True)
