"""From nothing to the model folder: the stages in order, each continued where it stopped."""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoProcessor, Idefics3ForConditionalGeneration, Idefics3Processor

from scripts.embedded_vlm.language import make_pool, train_language
from scripts.embedded_vlm.model import make_config
from scripts.embedded_vlm.processor import make_processor, shrink
from scripts.embedded_vlm.training import Average
from scripts.embedded_vlm.vision import Classifier, train_vision

__all__ = ["assemble", "build", "export", "extend"]

POOL_CHUNKS = 36
TABLE_CHUNKS = 14
VIEW_CHUNKS = 6
WORLD_CHUNKS = 8  # those above among them

EXTENSION_RATE = 1.2e-3
"""Peak learning rate of lessons on weights that are trained already."""


def _processor(work: Path) -> Idefics3Processor:
    """Make the tokenizer and processor once; later calls read them."""
    folder = work / "processor"
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        make_processor().save_pretrained(folder)
        shrink(folder)
    return AutoProcessor.from_pretrained(folder)


def assemble(work: Path) -> tuple[Idefics3ForConditionalGeneration, Idefics3Processor]:
    """Put the trained tower, where there is one, into a fresh model of float32 weights.

    Args:
        work: Working folder.

    Returns:
        Model and processor.
    """
    processor = _processor(work)
    tokenizer = processor.tokenizer
    ids = {"image": tokenizer.convert_tokens_to_ids("<image>"), "eos": tokenizer.eos_token_id}
    ids |= {"pad": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id}
    torch.manual_seed(2)
    model = Idefics3ForConditionalGeneration(make_config(len(tokenizer), ids))
    path = work / "vision.pt"
    if path.is_file():
        state = torch.load(path, weights_only=True, map_location="cpu")
        classifier = Classifier(model.model.vision_model)
        average = Average(classifier)
        average.values = state["average"]
        average.copy_to(classifier)
    return model, processor


def export(model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, folder: Path) -> None:
    """Write the model as float16 and the processor, then move the files into place.

    Args:
        model: Trained model; its weights stay float32.
        processor: Its processor.
        folder: Model folder; other files in it (the model card) are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent))
    half = Idefics3ForConditionalGeneration(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    shrink(temporary)
    for path in temporary.iterdir():
        path.chmod(0o644)
        os.replace(path, folder / path.name)
    shutil.rmtree(temporary)


def build(work: Path, output: Path, threads: int = 2, device: str = "cpu", workers: int = 1) -> None:
    """Run every stage and write the model folder.

    Args:
        work: Working folder for checkpoints and pools (gigabytes).
        output: Model folder.
        threads: CPU threads.
        device: Device to train on.
        workers: Processes that draw pictures and make sequences.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high")
    train_vision(work, device=device, workers=workers)
    model, processor = assemble(work)
    model.to(device)
    _make_pools(model, processor, work, workers)
    train_language(model, processor.tokenizer, work, pool=1, tables=2, worlds=3, workers=workers)
    export(model.cpu(), processor, output)


def extend(
    work: Path, source: Path, output: Path, begin: int, threads: int = 2, device: str = "cpu", workers: int = 1
) -> None:
    """Practise the lessons behind a step on weights that have reached it.

    Args:
        work: Working folder, another one than that of :func:`build`.
        source: Model folder whose weights are those of step ``begin``.
        output: Model folder to write.
        begin: The step.
        threads: CPU threads.
        device: Device to train on.
        workers: Processes that draw pictures and make sequences.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    model = Idefics3ForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(source)
    model.to(device)
    _make_pools(model, processor, work, workers)
    train_language(
        model, processor.tokenizer, work, rate=EXTENSION_RATE, flat=0.6, begin=begin, pool=1, tables=2, worlds=3,
        workers=workers,
    )  # fmt: skip
    export(model.cpu(), processor, output)


def _make_pools(
    model: Idefics3ForConditionalGeneration, processor: Idefics3Processor, work: Path, workers: int
) -> None:
    """All pictures of the language stage, with the tower's features."""
    make_pool(model, processor.tokenizer, work, POOL_CHUNKS, seed=1, workers=workers)
    make_pool(model, processor.tokenizer, work, TABLE_CHUNKS, seed=2, kind="hands", workers=workers)
    make_pool(model, processor.tokenizer, work, VIEW_CHUNKS, seed=3, kind="view", workers=workers)
    make_pool(model, processor.tokenizer, work, WORLD_CHUNKS, seed=3, kind="grid", workers=workers)
