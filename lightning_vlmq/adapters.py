"""LoRA on a language model: which layers get it, how it is added, merged and written."""

import copy
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

__all__ = ["adapter_targets", "add_adapter", "export", "train_language_model"]


def add_adapter(
    network: Any, targets: Sequence[str] | str, layers: int | None, *, train_head: bool = False, **options: Any
) -> PeftModel:
    """A frozen model with an adapter on its language model.

    Args:
        network: The Hugging Face model.
        targets: Suffixes of names of linear layers, or "all-linear".
        layers: Only in the last ones; ``None`` for all.
        train_head: Train a copy of the language head, too.
        options: Of peft's ``LoraConfig``: ``r``, ``lora_alpha``, ``lora_dropout``, ``use_rslora``, ``use_dora``.

    Raises:
        ValueError: ``targets`` or ``layers`` match nothing.
    """
    saved = [_name_of(network, network.get_output_embeddings())] if train_head else None
    wanted = adapter_targets(network, targets, layers)
    adapted: PeftModel = get_peft_model(network, LoraConfig(target_modules=wanted, modules_to_save=saved, **options))
    return adapted


def train_language_model(network: Any) -> None:
    """Trains all weights of the language model and its head in place of an adapter."""
    network.get_decoder().requires_grad_(True)
    network.get_output_embeddings().requires_grad_(True)


def adapter_targets(network: Any, targets: Sequence[str] | str, layers: int | None) -> list[str]:
    """Full names of the linear layers of the language model that ``targets`` name, in its last ``layers`` layers."""
    decoder = network.get_decoder()
    prefix = next(name for name, module in network.named_modules() if module is decoder)
    linear = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    wanted = [targets] if isinstance(targets, str) else list(targets)
    if wanted == ["all-linear"]:
        chosen = linear
    else:
        chosen = [name for name in linear if any(name == t or name.endswith(f".{t}") for t in wanted)]
    idle = [t for t in wanted if wanted != ["all-linear"] and not any(f".{name}".endswith(f".{t}") for name in linear)]
    if idle or not chosen:
        known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        raise ValueError(
            f"vlm.lora_targets: {idle or wanted} match no linear layer of the language model; it has {known}"
        )
    if layers is not None:
        numbers = {name: int(found[1]) for name in chosen if (found := re.search(r"(?:^|\.)layers\.(\d+)\.", name))}
        first = max(numbers.values(), default=-1) + 1 - layers
        chosen = [name for name, number in numbers.items() if number >= first]
        if layers < 1 or not chosen:
            raise ValueError(f"vlm.lora_layers: {layers} leaves no layer to adapt; give at least 1, or null for all")
    return [f"{prefix}.{name}" for name in chosen]


def export(
    network: Any, folder: str | Path, *, merged: bool, untied: bool, unrounded: Callable[[], Any] | None
) -> None:
    """Writes the plain peft adapter, or a whole model.

    Args:
        network: Model as trained, with or without an adapter; it stays as it is.
        folder: Where to; made if missing.
        merged: A whole model, with the adapter, if any, added to its weights.
        untied: Whether the language head was trained apart from the token embeddings.
        unrounded: Loads the model as it was before its weights were rounded to 4 bits; ``None`` if they were not.
    """
    if not merged:
        network.save_pretrained(str(folder))
        return
    whole = _whole(network, unrounded)
    if untied:
        for config in (whole.config, whole.config.get_text_config()):
            config.tie_word_embeddings = False
    whole.save_pretrained(folder)


def _whole(network: Any, unrounded: Callable[[], Any] | None) -> Any:
    if not isinstance(network, PeftModel):
        return network
    if unrounded is None:
        return copy.deepcopy(network).merge_and_unload()
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        return PeftModel.from_pretrained(unrounded(), folder).merge_and_unload()


def _name_of(network: Any, part: nn.Module) -> str:
    names = {id(module): name for name, module in network.named_modules()}
    return str(names[id(part)])
