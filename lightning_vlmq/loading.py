"""Where a model is found, how it is loaded, and how its weights are told apart."""

import hashlib
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
)

from lightning_vlmq.shapes import made_of_shapes, network_of_shapes, without_numbers

__all__ = [
    "EMBEDDED",
    "fingerprint",
    "load_network",
    "load_processor",
    "locate",
    "named_dtype",
]

EMBEDDED = Path(__file__).parent / "embedded"
"""Folder of the small VLM that comes with the package; ``name="embedded"`` means this one."""

_FOREIGN = {"moondream2": "lightning_vlmq.foreign.moondream2", "xgen_mm": "lightning_vlmq.foreign.xgen_mm"}
"""Modules that make models known to transformers, which lacks them, by ``model_type``."""

_AS_PUBLISHED = {"moondream1": "moondream2", "xgenmm": "xgen_mm"}
"""The same models by the ``model_type`` under which they are published, with code that is never run."""


def locate(name: str) -> str:
    """Folder or hub name of a model; refuses what surely is none before the network is tried."""
    if name == "embedded":
        return str(EMBEDDED)
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        source = str(path)
    elif path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"vlm.name: {name!r} is no folder with a config.json; give a model folder or a hub name")
    else:
        source = name
    try:
        kind = PreTrainedConfig.get_config_dict(source)[0].get("model_type", "")
        if kind in _FOREIGN:
            importlib.import_module(_FOREIGN[kind]).register()
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"vlm.name: cannot load {name!r} ({reason}); give a model folder or a hub name") from None
    except ValueError:  # no such architecture, or code of its own
        remedy = (
            f"convert it by python -m lightning_vlmq.foreign.{_AS_PUBLISHED.get(kind)}_weights and give that folder"
        )
        raise ValueError(
            f"vlm.name: transformers has no model of type {kind!r}, which {name!r} is; "
            f"{remedy if kind in _AS_PUBLISHED else 'choose another, or write it (docs/models.md)'}"
        ) from None
    if not hasattr(config, "vision_config"):
        raise ValueError(f"vlm.name: {name!r} ({config.model_type}) has no image input; choose a vision-language model")
    return source


def named_dtype(name: str) -> torch.dtype:
    """Type of torch by its name."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"vlm.dtype: {name!r} is no type of torch; take float32, bfloat16 or float16")
    return found


def load_network(source: str, dtype: str, *, four_bit: bool = False) -> Any:
    """The Hugging Face model, its weights of a type, those of the language model's linear layers in 4 bits if asked.

    The vision tower and the connector stay as they are: their features are computed once and kept. Where models are
    made of shapes, its configuration is all that is read.
    """
    if made_of_shapes():
        return network_of_shapes(AutoConfig.from_pretrained(source), named_dtype(dtype), four_bit=four_bit)
    if not four_bit:
        return AutoModelForImageTextToText.from_pretrained(source, dtype=named_dtype(dtype))
    with torch.device("meta"):  # the names of its layers, without weights
        shape: Any = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(source))  # type: ignore[no-untyped-call]
    inside = {id(module) for module in shape.get_decoder().modules()}
    linear = [(name, module) for name, module in shape.named_modules() if isinstance(module, nn.Linear)]
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=named_dtype(dtype),
        llm_int8_skip_modules=[name for name, module in linear if id(module) not in inside],
    )
    network: Any = AutoModelForImageTextToText.from_pretrained(
        source,
        dtype=named_dtype(dtype),
        quantization_config=quantization,
        device_map={"": "cpu"},  # or each rank would load onto the first GPU; Lightning moves it
    )
    module: Any
    for module in network.modules():
        # on a CPU bitsandbytes would pack the weights in the first pass without gradient, and cannot train behind that
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return network


def load_processor(source: str, template: str | None) -> Any:
    """Processor of a model, with ``template`` as its chat template where it has none.

    Pictures are resized by Pillow where the family knows how: what torchvision makes of them is not the same, and a
    model must not see otherwise where that is installed.
    """
    try:
        processor: Any = AutoProcessor.from_pretrained(source)  # type: ignore[no-untyped-call]
        processor.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil")  # type: ignore[no-untyped-call]
    except (ImportError, ValueError) as error:
        packages = [name for name in ("torchvision", "num2words") if name in str(error).lower()]
        if not packages:
            raise
        raise ValueError(
            f"vlm.name: the processor of {source!r} needs {' and '.join(packages)}; pip install {' '.join(packages)}"
        ) from None
    if template is not None and not processor.chat_template:
        processor.chat_template = template
    return processor


def fingerprint(weights: Iterable[Tensor]) -> str:
    """Short hash of at most 256 numbers of each tensor, evenly spread: quick also for billions of weights.

    Taken in bfloat16, so that weights loaded in float32 and in bfloat16 agree; weights in 4 bits are left out, since
    devices may round differently, and so are shapes without numbers.
    """
    digest = hashlib.sha256()
    for weight in (each for each in weights if each.is_floating_point() and not without_numbers(each)):
        flat = weight.detach().flatten()
        numbers = flat[:: max(1, len(flat) // 256)][:256].to(torch.bfloat16)
        digest.update(numbers.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
