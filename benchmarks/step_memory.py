"""GPU memory of a training step by the estimate, and as measured on a GPU: published shapes with random weights.

    python -m benchmarks.step_memory                  # estimates, anywhere
    python -m benchmarks.step_memory --device cuda    # beside them what PyTorch says on a GPU

The algorithm's settings are those of configs/paper/gym_cards.yaml; ``--critic_states base`` takes the default instead.
A row is a prompt of ``--text`` tokens and as many for its picture as the model's own processor makes of it, which are
plain tokens here: what a step keeps depends on their number alone. No weights and no processor are downloaded.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import transformers as hf
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.adapters import add_adapter
from lightning_vlmq.batches import TokenBatch
from lightning_vlmq.estimate.stages import Training
from lightning_vlmq.language_head import HeadOutput
from lightning_vlmq.modules.optim import Group, clip_groups, make_optimizer
from lightning_vlmq.shapes import drop_numbers, network_of_shapes, shapes

_LLAMA = {"model_type": "llama", "tie_word_embeddings": False, "max_position_embeddings": 16384}


def _smolvlm(text: dict[str, Any], vision: dict[str, Any], scale: int) -> Any:
    sizes = {"text_config": {**_LLAMA, **text}, "vision_config": vision, "scale_factor": scale}
    return hf.Idefics3Config(**sizes, tie_word_embeddings=False)


def smolvlm_256m() -> Any:
    """HuggingFaceTB/SmolVLM-256M-Instruct."""
    text = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49280}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    pictures = {"image_size": 512, "patch_size": 16}
    return _smolvlm({**text, "num_attention_heads": 9, "num_key_value_heads": 3}, {**vision, **pictures}, 4)


def smolvlm_2b() -> Any:
    """HuggingFaceTB/SmolVLM-Instruct, the paper's."""
    text = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "vocab_size": 49155}
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    pictures = {"image_size": 384, "patch_size": 14}
    return _smolvlm({**text, "num_attention_heads": 32, "num_key_value_heads": 32}, {**vision, **pictures}, 3)


def qwen2_5_vl_3b() -> Any:
    """Qwen/Qwen2.5-VL-3B-Instruct."""
    return hf.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": 2048,
        },
        tie_word_embeddings=True,
    )


class Shape(NamedTuple):
    """A published model.

    Attributes:
        config: Makes its configuration.
        parameters: As published, if so: a check of the configuration.
        picture: Tokens that its processor makes of one picture.
    """

    config: Callable[[], Any]
    parameters: int | None
    picture: int


SHAPES = {
    # 4 x 4 tiles and the whole, each of 64 or 81 tokens, behind 4 of their place and in lines
    "smolvlm-256m": Shape(smolvlm_256m, 256_484_928, 17 * (64 + 2) + 4),
    "smolvlm-2.2b": Shape(smolvlm_2b, None, 17 * (81 + 6) + 4),
    "qwen2.5-vl-3b": Shape(qwen2_5_vl_3b, 3_754_622_976, 256),  # of 448 x 448 pixels
}


class Plain(VLM):
    """A VLM that reads tokens alone, made around a network."""

    def __init__(self, network: Any, *, train_head: bool = False) -> None:
        nn.Module.__init__(self)
        self.trains_base, self.head_output, self.forbidden_ids = (), HeadOutput(), ()
        self.pictures: Any = _NoPictures()
        options = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05}
        self.network = add_adapter(network.requires_grad_(False), "all-linear", None, train_head=train_head, **options)


class _NoPictures:
    @contextlib.contextmanager
    def asked_for(self) -> Iterator[None]:
        yield

    def arguments(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return inputs


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--device", help="a GPU to measure on; none only estimates")
    parser.add_argument("--batch_size", type=int, default=3)
    parser.add_argument("--text", type=int, default=150, help="tokens of a prompt's text")
    parser.add_argument("--picture", type=int, help="tokens of its picture; default: as its processor makes it")
    parser.add_argument("--reply", type=int, default=24)
    parser.add_argument("--critic_states", default="adapted", choices=("adapted", "detached", "base"))
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    options = parser.parse_args()
    columns = ["shape", "base", "parameters", "tokens a row", "GB at the peak", "a turn more", "seconds"]
    columns += ["measured GB", "reserved GB", "estimate / measured"] if options.device else []
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for name in options.shapes:
        for four_bit in (False, True):
            print("| " + " | ".join(_row(name, four_bit, options)) + " |", flush=True)


def _row(name: str, four_bit: bool, options: argparse.Namespace) -> list[str]:
    start, shape = time.perf_counter(), SHAPES[name]
    config = shape.config()
    whole = network_of_shapes(config, torch.bfloat16).num_parameters()
    if shape.parameters not in (None, whole):
        raise SystemExit(f"{name}: {whole:,} parameters, but the published model has {shape.parameters:,}")
    tokens = options.text + (shape.picture if options.picture is None else options.picture)
    with shapes():
        module = _module(network_of_shapes(config, torch.bfloat16, four_bit=four_bit), options)
        drop_numbers(module)
    training = Training(module, MixedPrecision("bf16-mixed", "cpu"))
    sizes = options.batch_size, 2 * options.batch_size
    one, two = (training.step(a_batch(size, tokens, options.reply)).peak for size in sizes)
    more = (two - one) / options.batch_size
    row = [name, "4 bits" if four_bit else "bfloat16", f"{whole:,}", str(tokens + options.reply - 1)]
    row += [f"{one / 2**30:.2f}", f"{more / 2**30:.2f}", f"{time.perf_counter() - start:.0f}"]
    if options.device:
        allocated, reserved = _measured(config, four_bit, a_batch(options.batch_size, tokens, options.reply), options)
        row += [f"{allocated / 2**30:.2f}", f"{reserved / 2**30:.2f}", f"{one / allocated:.3f}"]
    return row


def _module(network: Any, options: argparse.Namespace) -> VLMQ:
    if options.checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    paper: dict[str, Any] = {"critic_inputs": "raw", "trace": 0.0, "top_k": None, "optimizer": "adamw8bit"}
    return VLMQ(Plain(network), critic_states=options.critic_states, threshold=0.0, **paper)


def a_batch(size: int, prompt: int, reply: int) -> TokenBatch:
    """Turns that all go on, of random tokens."""
    ids = torch.randint(10, 1000, (size, prompt + reply))
    yes, zeros = torch.ones(size, dtype=torch.bool), torch.zeros(size)
    read, following, mask = ids[:, :-1], ids[:, :prompt], torch.ones(size, reply, dtype=torch.bool)
    there = torch.ones_like(read)
    mask[0, -1], there[0, -1] = False, 0  # with nothing to pad, attention takes less than it does in a fit
    return TokenBatch(
        inputs={"input_ids": read, "attention_mask": there},
        next_inputs={"input_ids": following, "attention_mask": torch.ones_like(following)},
        positions=torch.arange(prompt - 1, prompt + reply - 1).expand(size, -1).contiguous(),
        reply_ids=ids[:, prompt:],
        mask=mask,
        next_positions=torch.full((size,), prompt - 1),
        has_next=yes,
        next_in_batch=~yes,
        reward=zeros,
        terminated=~yes,
        imitate=yes,
        td=yes,
        weight=torch.ones(size),
        valid=yes,
        cut=~yes,
        prompt_cut=~yes,
    )


def _measured(config: Any, four_bit: bool, batch: TokenBatch, options: argparse.Namespace) -> tuple[int, int]:
    """Most bytes that PyTorch allocated and reserved on a GPU in a step behind the first one."""
    torch.cuda.empty_cache()
    network = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    if four_bit:
        _round(network)
    module = _module(network, options).to(options.device).train()
    batch = module.transfer_batch_to_device(batch, torch.device(options.device), 0)
    parts = {"vlm": module.vlm, "critic": module.critic}
    groups = [Group(name, list(part.parameters()), 1e-4, 0) for name, part in parts.items()]
    optimizer, _ = make_optimizer("adamw8bit", groups, 0.0)
    for number in range(3):
        if number == 1:  # the first one made the optimiser's state
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss, _ = module.losses(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_groups(optimizer, 2.0, None)
        optimizer.step()
        module.critic.commit()
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def _round(network: Any) -> None:
    """The language model's linear layers in 4 bits, as loading does it; moved to a GPU they are rounded."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(network.get_decoder().modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is nn.Linear:
                size = (linear.in_features, linear.out_features, linear.bias is not None)
                rounded = Linear4bit(*size, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta")
                rounded.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
                rounded.bias = linear.bias
                setattr(parent, name, rounded)
    network.is_loaded_in_4bit = True


if __name__ == "__main__":
    main()
