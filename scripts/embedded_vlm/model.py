"""The embedded model's shape: an Idefics3 of a little over three million parameters, and the helpers that train it."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Idefics3Config

__all__ = [
    "CONTEXT",
    "IMAGE_TOKENS",
    "Average",
    "encode_pictures",
    "load_optimizers",
    "make_config",
    "make_local",
    "make_optimizers",
    "set_rate",
]

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


def make_optimizers(
    groups: list[tuple[nn.Module, float]], decay: float = 0.05, muon_rate: float = 4.0
) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the layers, AdamW for everything else (embeddings, heads, norms, biases).

    Args:
        groups: Modules and their peak learning rates.
        decay: Decoupled weight decay.
        muon_rate: Rate of Muon over that of AdamW.

    Returns:
        Optimisers whose groups remember their peak rate under ``peak``.
    """
    muon: list[dict[str, Any]] = []
    adam: list[dict[str, Any]] = []
    for module, rate in groups:
        matrices, others = [], []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (matrices if ".layers." in f".{name}" and parameter.ndim == 2 else others).append(parameter)
        if matrices:
            muon.append({"params": matrices, "lr": rate * muon_rate, "peak": rate * muon_rate})
        if others:
            adam.append({"params": others, "lr": rate, "peak": rate})
    found: list[torch.optim.Optimizer] = []
    if muon:
        found.append(torch.optim.Muon(muon, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
    if adam:
        found.append(torch.optim.AdamW(adam, weight_decay=decay, betas=(0.9, 0.98), fused=True))
    return found


def set_rate(
    optimizers: list[torch.optim.Optimizer], step: int, steps: int, warm_up: int = 100, flat: float = 0.0
) -> float:
    """Linear warm-up, the peak until a share ``flat`` of the steps, then cosine to 2 % of it; returns the factor."""
    start = max(warm_up, int(flat * steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    factor = min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(progress * math.pi)))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
    return factor


def load_optimizers(optimizers: list[torch.optim.Optimizer], states: list[dict[str, Any]]) -> None:
    """Continue with kept states; the peak rates stay those of now."""
    for optimizer, state in zip(optimizers, states, strict=True):
        peaks = [group["peak"] for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak


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


class Average:
    """Exponential moving average of a module's parameters, with a short memory at the start.

    Args:
        module: The module that trains.
        decay: Final decay a step.
    """

    def __init__(self, module: nn.Module, decay: float = 0.998) -> None:
        self.decay, self.steps = decay, 0
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move towards the module's present parameters."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(list(self.values.values()), [parameters[n].detach() for n in self.values], 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into a module of the same shape."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.values[name])
