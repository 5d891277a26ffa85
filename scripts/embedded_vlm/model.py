"""The embedded model's shape and start: an Idefics3 of a little over three million parameters."""

import torch
from torch import Tensor, nn
from transformers import Idefics3Config

__all__ = ["CONTEXT", "IMAGE_TOKENS", "encode_pictures", "make_config", "make_local"]

IMAGE_TOKENS = 64
"""Image tokens of a picture: 16 x 16 patches, pixel-shuffled by 2: one token is 32 x 32 pixels."""

CONTEXT = 1024
"""Longest sequence in tokens."""


def make_config(vocabulary: int, ids: dict[str, int]) -> Idefics3Config:
    """Describe the model.

    Args:
        vocabulary: Number of tokens.
        ids: Token ids of ``image``, ``eos``, ``pad`` and ``bos``.

    Returns:
        Configuration of vision tower (4 layers, 160 wide), connector and Llama language model (4 layers, 160 wide).
    """
    special = {"pad_token_id": ids["pad"], "bos_token_id": ids["bos"], "eos_token_id": ids["eos"]}
    return Idefics3Config(
        vision_config={
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "image_size": 256,
            "patch_size": 16,
            "hidden_act": "gelu_pytorch_tanh",
        },
        text_config={
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": 160,
            "intermediate_size": 448,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "head_dim": 32,
            "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
            **special,
        },
        scale_factor=2,
        image_token_id=ids["image"],
        tie_word_embeddings=True,
        **special,
    )


def encode_pictures(pictures: Tensor) -> Tensor:
    """Normalise as the processor does: ``[B, 256, 256, 3]`` uint8 to ``[B, 3, 256, 256]`` in -1..1."""
    return pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def _cosines(count: int, size: int = 16, chroma: int = 14) -> Tensor:
    """Patch filters of the discrete cosine transform, as in JPEG: brightness in detail, colour coarsely.

    Args:
        count: Number of filters.
        size: Side of a patch in pixels.
        chroma: Filters of each of the two colour channels.

    Returns:
        Filters ``[count, 3, size, size]``, scaled so that strokes of text weigh as much as the background.
    """
    place = torch.arange(size)
    waves = ((place[None] + 0.5) * place[:, None] * torch.pi / size).cos() * (2 / size) ** 0.5  # [frequency, pixel]
    waves[0] /= 2**0.5
    order = sorted(
        ((u, v) for u in range(size) for v in range(size)), key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair)
    )
    mixtures = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
    filters = []
    for channel, number in ((0, count - 2 * chroma), (1, chroma), (2, chroma)):
        for u, v in order[:number]:
            gain = 1.5 / size if u == v == 0 else 0.9 * (1 + (u * u + v * v) ** 0.5 / 4)
            filters.append(
                gain * (2 if channel else 1) * mixtures[channel][:, None, None] * torch.outer(waves[u], waves[v])
            )
    return torch.stack(filters)


@torch.no_grad()
def make_local(vision: nn.Module, side: int = 16, width: int = 32) -> None:
    """Start the tower as a stack of small convolutions: sines as positions, heads that look at neighbouring patches,
    a cosine transform as patch filters.

    A vision transformer spends its first thousands of steps on finding out which patches are neighbours; here the
    queries of the first layers are turned so that each head starts at one offset, and later heads along the row.

    Args:
        vision: Idefics3 vision tower with 32 dimensions a head.
        side: Patches along a side.
        width: Dimensions that hold the position; patches start without them.
    """
    quarter = width // 4
    rates = 2.5 * (0.2 / 2.5) ** (torch.arange(quarter) / (quarter - 1))  # [8] radians a patch
    angles = torch.arange(side)[:, None] * rates  # [16, 8]
    waves = torch.cat([angles.cos(), angles.sin()], -1) * 2**0.5  # [16, 16]
    table = vision.embeddings.position_embedding.weight
    table.zero_()
    table[:, : width // 2] = waves.repeat_interleave(side, 0)
    table[:, width // 2 : width] = waves.repeat(side, 1)
    vision.embeddings.patch_embedding.weight[:width] = 0
    vision.embeddings.patch_embedding.weight[width:] = _cosines(
        vision.embeddings.patch_embedding.weight.shape[0] - width
    )
    vision.embeddings.patch_embedding.bias.zero_()

    def turn(offset: int | None) -> Tensor:
        """Rotation of a position by ``offset`` patches; nothing where the axis is free."""
        if offset is None:
            return torch.zeros(2 * quarter, 2 * quarter)
        cosine, sine = torch.diag((rates * offset).cos()), torch.diag((rates * offset).sin())
        return torch.cat([torch.cat([cosine, -sine], 1), torch.cat([sine, cosine], 1)])

    cross = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]
    plans: list[list[tuple[int | None, int | None] | None]] = [
        [*cross],
        [None, *cross[1:]],
        [None, (0, 2), (0, -2), (0, None), (0, None)],
        [None, None, (0, None), (0, None), (None, 0)],
    ]
    for layer, plan in zip(vision.encoder.layers, plans, strict=True):
        attention = layer.self_attn
        for head, offset in enumerate(plan):
            if offset is not None:
                rows = slice(head * width, (head + 1) * width)
                for projection, (row, column) in ((attention.q_proj, offset), (attention.k_proj, (0, 0))):
                    projection.weight[rows] *= 0.3
                    projection.weight[rows, :width] = 1.1 * torch.block_diag(turn(row), turn(column))
