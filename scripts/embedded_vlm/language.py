"""Stages 2 and 3: connector and language model learn to answer, then to copy and read in the same reply.

The tower is frozen by now: its features of a pool of pictures are computed once, and every step is a step of the small
language model only.
"""

import os
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Idefics3ForConditionalGeneration

from scripts.embedded_vlm.alignment import suits_alignment
from scripts.embedded_vlm.model import Average, encode_pictures, make_optimizers, set_rate
from scripts.embedded_vlm.pictures import make_scene
from scripts.embedded_vlm.sequences import Batch, Facts, Sequences

__all__ = ["answer_logits", "load_pool", "make_pool", "train_language"]


@torch.no_grad()
def make_pool(model: Idefics3ForConditionalGeneration, folder: Path, chunks: int, seed: int, size: int = 1000) -> None:
    """Draw pictures and keep the tower's features, pixel-shuffled, with the pictures' facts.

    Args:
        model: Model whose tower is trained.
        folder: Where ``pool_*.pt`` files are written; existing ones are kept.
        chunks: Number of files.
        seed: Seed of the pictures.
        size: Pictures a file.
    """
    connector = model.model.connector
    for chunk in range(chunks):
        path = folder / f"pool_{seed}_{chunk:03d}.pt"
        if path.is_file():
            continue
        rng, clock = Random(10_000_000 + 1000 * seed + chunk), time.time()
        scenes = [make_scene(rng) for _ in range(size)]
        pictures = torch.stack([torch.tensor(scene.image) for scene in scenes])
        features = []
        for part in pictures.split(50):
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.model.vision_model(pixel_values=encode_pictures(part)).last_hidden_state
            features.append(connector.pixel_shuffle(hidden.float(), connector.scale_factor).half())
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            {"features": torch.cat(features), "facts": [(s.kind, s.facts) for s in scenes]}, path.with_suffix(".tmp")
        )
        path.with_suffix(".tmp").replace(path)
        print(f"pool {chunk + 1}/{chunks}: {size / (time.time() - clock):.0f} pictures/s", flush=True)


def load_pool(folder: Path, seed: int) -> tuple[Tensor, list[Facts]]:
    """Read a pool: features ``[N, 64, 640]`` float16 and the facts of each picture."""
    features, facts = [], []
    for path in sorted(folder.glob(f"pool_{seed}_*.pt")):
        data = torch.load(path, weights_only=True)
        features.append(data["features"])
        facts += data["facts"]
    return torch.cat(features), facts


def answer_logits(model: Idefics3ForConditionalGeneration, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """Logits where an answer's token comes next.

    Args:
        model: The model.
        batch: Packed sequences.
        features: Pixel-shuffled features of the pictures of the rows that have one ``[b, 64, 640]``.

    Returns:
        Logits ``[N, V]`` and next tokens ``[N]``, in row-major order.
    """
    embeddings = model.get_input_embeddings()(batch.ids)
    image = batch.ids == model.config.image_token_id
    seen = model.model.connector.modality_projection(features)
    embeddings = embeddings.masked_scatter(image[..., None], seen.to(embeddings.dtype))
    segments = batch.segments
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool).tril()
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    hidden = model.model.text_model(
        inputs_embeds=embeddings,
        attention_mask=(visible & causal)[:, None],
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    wanted = batch.labels != -100
    return model.lm_head(hidden[wanted]), batch.labels[wanted]


def _score(batch: Batch, right: Tensor) -> dict[str, list[int]]:
    """Turns answered exactly (every token the likeliest), by kind: [right, all]."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    wanted = batch.labels != -100
    correct = torch.ones_like(wanted)
    correct[wanted] = right
    for row, kinds in enumerate(batch.kinds):
        # Answers are runs of wanted positions; the n-th run is the n-th turn's.
        starts = wanted[row] & ~torch.cat([torch.zeros(1, dtype=torch.bool), wanted[row, :-1]])
        number = starts.cumsum(0)
        for turn, kind in enumerate(kinds, 1):
            found[kind][0] += int(correct[row][(number == turn) & wanted[row]].all())
            found[kind][1] += 1
    return found


def train_language(
    model: Idefics3ForConditionalGeneration, tokenizer: Any, folder: Path, name: str, steps: int, *,
    rate: float, copying: float, wordy: float, drills: int, seed: int, pool: int = 1, turns: int = 8, batch: int = 16,
    short: bool = False,
) -> None:  # fmt: skip
    """Train connector and language model on questions about a pool of pictures; the model ends with averaged weights.

    Args:
        model: Model with a trained tower; trained in place.
        tokenizer: Its tokenizer.
        folder: Working folder with the pool; ``<name>.pt`` is kept there and continued.
        name: Name of the stage.
        steps: Optimiser steps.
        rate: Peak learning rate.
        copying: Share of turns that copy.
        wordy: Share of turns with sentences around the question.
        drills: Steps without pictures at the start, to learn copying.
        seed: Seed of the questions.
        pool: Seed of the pool.
        turns: Turns a picture.
        batch: Pictures a step.
        short: Asks only short questions about labelled numbers and cards, see :mod:`~scripts.embedded_vlm.alignment`.
    """
    model.requires_grad_(True)
    model.model.vision_model.requires_grad_(False)
    trained = nn.ModuleList([model.model.connector, model.model.text_model])
    average, optimizers = Average(trained), make_optimizers([(trained, rate)], muon_rate=1.0)
    start, path = 0, folder / f"{name}.pt"
    if path.is_file():
        state = torch.load(path, weights_only=True)
        start = state["step"]
        trained.load_state_dict(state["model"])
        average.values, average.steps = state["average"], start
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            peaks = [group["peak"] for group in optimizer.param_groups]
            optimizer.load_state_dict(kept)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["peak"] = peak
    features, facts = load_pool(folder, pool)
    if short:
        kept = [i for i, known in enumerate(facts) if suits_alignment(known)]
        features, facts = features[kept], [facts[i] for i in kept]
    data = Sequences(tokenizer, facts, 1000 * seed + start, copying, wordy, turns, batch, drills, start, short)
    stream = iter(
        DataLoader(
            data, batch_size=None, num_workers=1, prefetch_factor=8, worker_init_fn=lambda _: os.nice(5) and None
        )
    )
    clock, losses, tally = time.time(), 0.0, defaultdict(lambda: [0, 0])
    for step in range(start, steps):
        sample: Batch = next(stream)
        set_rate(optimizers, step, steps, 50)
        shown = features[sample.pictures[sample.pictures >= 0]].float()
        with torch.autocast("cpu", torch.bfloat16):
            logits, targets = answer_logits(model, sample, shown)
        logits = logits.float()
        loss = nn.functional.cross_entropy(logits, targets)
        if not torch.isfinite(loss):
            raise ValueError(f"loss is not finite in step {step} of stage {name}: lower its rate ({rate})")
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        average.update(trained)
        losses += float(loss)
        if step % 5 == 0:
            for kind, (right, count) in _score(sample, logits.argmax(-1) == targets).items():
                tally[kind][0] += right
                tally[kind][1] += count
        if (step + 1) % 50 == 0:
            shares = " ".join(f"{kind} {a / b:.2f}" for kind, (a, b) in sorted(tally.items()))
            print(
                f"{name} {step + 1}/{steps} {(time.time() - clock) / 50:.2f} s/step loss {losses / 50:.3f} | {shares}",
                flush=True,
            )
            clock, losses, tally = time.time(), 0.0, defaultdict(lambda: [0, 0])
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {"step": step + 1, "model": trained.state_dict(), "average": average.values}
            state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
            torch.save(state, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
    average.copy_to(trained)
