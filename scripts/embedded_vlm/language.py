"""Stage 2: connector and language model learn to copy, to answer, then to copy and read in the same reply.

The tower is frozen by now: its features of a pool of pictures are computed once, and every step is a step of the small
language model only. A second loss names what each tile of a picture shows: the output of the connector, through the
model's own last norm and head, has to be the token. A third one names facts of the picture from the states behind
prompts that ask nothing.
"""

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Idefics3ForConditionalGeneration

from scripts.embedded_vlm.alignment import Facts, spellings, tile_tokens
from scripts.embedded_vlm.knowledge import KNOWN, NAMED, Knowledge, known
from scripts.embedded_vlm.model import encode_pictures
from scripts.embedded_vlm.pictures import Scene, make_scene
from scripts.embedded_vlm.sequences import LESSONS, STATE, Batch, Lesson, Sequences
from scripts.embedded_vlm.training import Trained, worker_random

__all__ = ["hidden_states", "load_pool", "make_pool", "tile_loss", "train_language"]

TILE_WEIGHT = 0.3
"""Weight of the loss that names tiles."""

KNOWLEDGE_WEIGHT = 1.0
"""Weight of the loss of states behind prompts that ask nothing."""

NAME_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 4.0, 4.0)
"""Weights of a tile's names: four characters, its word or thing, the number of its line or its colour. With equal ones
the characters hide the word, and no question finds it."""


class _Scenes(IterableDataset[Scene]):
    """Endless pictures, drawn in processes of their own."""

    def __init__(self, seed: int, kind: str | None) -> None:
        self.seed, self.kind = seed, kind

    def __iter__(self) -> Iterator[Scene]:
        rng, _, _ = worker_random(self.seed)
        while True:
            yield make_scene(rng, self.kind)


@torch.no_grad()
def make_pool(
    model: Idefics3ForConditionalGeneration,
    tokenizer: Any,
    folder: Path,
    chunks: int,
    seed: int,
    size: int = 1000,
    kind: str | None = None,
    workers: int = 1,
) -> None:
    """Draw pictures and keep the tower's features, pixel-shuffled, with the pictures' facts and their tiles' names.

    Args:
        model: Model whose tower is trained; the pictures are encoded where it is.
        tokenizer: Its tokenizer.
        folder: Where ``pool_*.pt`` files are written; existing ones are kept.
        chunks: Number of files.
        seed: Seed of the pictures.
        size: Pictures a file.
        kind: Kind of all pictures; drawn by their shares if missing.
        workers: Processes that draw pictures.
    """
    connector = model.model.connector
    paths = [folder / f"pool_{seed}_{chunk:03d}.pt" for chunk in range(chunks)]
    missing = [chunk for chunk in range(chunks) if not paths[chunk].is_file()]
    if not missing:
        return
    data = _Scenes(10_000_000 + 1000 * seed + missing[0], kind)
    stream = iter(DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=64 if workers else None))
    for chunk in missing:
        path, clock = paths[chunk], time.time()
        scenes, features = [], []
        for _ in range(0, size, 20):  # the next pictures are drawn while these are encoded
            part = list(itertools.islice(stream, 20))
            pictures = encode_pictures(torch.stack([torch.tensor(scene.image) for scene in part]).to(model.device))
            hidden = model.model.vision_model(pixel_values=pictures).last_hidden_state
            features.append(connector.pixel_shuffle(hidden, connector.scale_factor).half().cpu())
            scenes += part
        folder.mkdir(parents=True, exist_ok=True)
        tiles = torch.tensor(np.stack([tile_tokens(scene.labels, tokenizer) for scene in scenes]))
        data = {"features": torch.cat(features), "facts": [(s.kind, s.facts) for s in scenes], "tiles": tiles}
        torch.save(data, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
        print(f"pool {chunk + 1}/{chunks}: {size / (time.time() - clock):.0f} pictures/s", flush=True)


def load_pool(folder: Path, seed: int) -> tuple[Tensor, list[Facts], Tensor]:
    """Read a pool: features ``[N, 64, 640]`` float16, the facts of each picture, tokens of the tiles ``[N, 64, 6]``."""
    features, facts, tiles = [], [], []
    for path in sorted(folder.glob(f"pool_{seed}_*.pt")):
        data = torch.load(path, weights_only=True)
        features.append(data["features"])
        facts += data["facts"]
        tiles.append(data["tiles"])
    return torch.cat(features), facts, torch.cat(tiles)


def tile_loss(model: Idefics3ForConditionalGeneration, features: Tensor, tiles: Tensor) -> Tensor:
    """Cross-entropy of the tokens that name a tile, from the connector's output alone.

    Args:
        model: The model.
        features: Pixel-shuffled features ``[b, 64, 640]``.
        tiles: Tokens of the tiles ``[b, 64, 6]``, -1 for none.

    Returns:
        Mean over the named tiles.
    """
    named = (tiles >= 0).any(-1)
    wanted = tiles[named]  # [n, 6]
    seen = model.model.text_model.norm(model.model.connector.modality_projection(features[named]))
    scores = model.lm_head(seen).log_softmax(-1).gather(-1, wanted.clamp(min=0))
    weights = (wanted >= 0) * scores.new_tensor(NAME_WEIGHTS)
    return -((scores * weights).sum(-1) / weights.sum(-1)).mean()


def hidden_states(model: Idefics3ForConditionalGeneration, batch: Batch, features: Tensor) -> Tensor:
    """Hidden states that the language head reads.

    Args:
        model: The model.
        batch: Packed sequences.
        features: Pixel-shuffled features of the pictures of the rows that have one ``[b, 64, 640]``.

    Returns:
        ``[B, T, width]``.
    """
    embeddings = model.get_input_embeddings()(batch.ids)
    image = batch.ids == model.config.image_token_id
    seen = model.model.connector.modality_projection(features)
    embeddings = embeddings.masked_scatter(image[..., None], seen.to(embeddings.dtype))
    segments = batch.segments
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    visible = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    output = model.model.text_model(
        inputs_embeds=embeddings,
        attention_mask=(visible & causal)[:, None],
        position_ids=batch.positions,
        use_cache=False,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _score(batch: Batch, right: Tensor) -> dict[str, list[int]]:
    """Turns answered exactly (every token the likeliest), by kind: [right, all]."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    wanted = batch.labels >= 0
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
    model: Idefics3ForConditionalGeneration, tokenizer: Any, folder: Path, *, lessons: tuple[Lesson, ...] = LESSONS,
    rate: float = 1.5e-3, flat: float = 0.85, begin: int = 0, seed: int = 7, pool: int = 1, tables: int | None = None,
    worlds: int | None = None, workers: int = 1,
) -> None:  # fmt: skip
    """Train connector and language model on questions about a pool of pictures; the model ends with averaged weights.

    Args:
        model: Model with a trained tower; trained in place, on the device where it is.
        tokenizer: Its tokenizer.
        folder: Working folder with the pool; ``language.pt`` is kept there and continued.
        lessons: What is practised when; the last one's end is the number of optimiser steps.
        rate: Peak learning rate.
        flat: Share of the steps at it, before it falls.
        begin: Step that the model has reached already; only the lessons behind it are practised.
        seed: Seed of the questions.
        pool: Seed of the pool.
        tables: Seed of a second pool, of cards only; they are drawn where a lesson asks for cards.
        worlds: Seed of a third one, of grid worlds and agents' views; drawn where a lesson asks for worlds.
        workers: Processes that make sequences.
    """
    device = model.device
    model.requires_grad_(True)
    model.model.vision_model.requires_grad_(False)
    knowledge = Knowledge(model.config.text_config.hidden_size).to(device)
    module = nn.ModuleList([model.model.connector, model.model.text_model, knowledge])
    steps = lessons[-1].end
    merges = {lesson.end: lesson.merge for lesson in lessons if lesson.merge}
    path = folder / "language.pt"
    trained = Trained(module, path, steps, rate, muon_rate=1.0, warm_up=50, flat=flat, begin=begin, merges=merges)
    start = trained.start
    features, facts, tiles = load_pool(folder, pool)
    general = len(facts)
    for other in (tables, worlds):
        if other is None:
            continue
        more = load_pool(folder, other)
        features, facts, tiles = torch.cat([features, more[0]]), facts + more[1], torch.cat([tiles, more[2]])
    features, tiles = features.to(device), tiles.to(device)
    classes = torch.tensor([known(each) for each in facts], device=device)
    alike = torch.tensor(spellings(tokenizer), device=device)
    data = Sequences(tokenizer, facts, 1000 * seed + start, lessons, start, general)
    stream = iter(
        DataLoader(
            data,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=8 if workers else None,
            worker_init_fn=lambda _: os.nice(5) and None,
        )
    )
    clock, losses, named, tally = time.time(), 0.0, 0.0, defaultdict(lambda: [0, 0])
    counts = torch.zeros(len(KNOWN) + len(NAMED), 2)
    for step in range(start, steps):
        drawn: Batch = next(stream)
        sample = Batch(*(part.to(device) for part in drawn[:6]), drawn.kinds)
        chosen = sample.pictures[sample.pictures >= 0]
        shown = features[chosen].float()
        hidden = hidden_states(model, sample, shown)
        logits, targets = model.lm_head(hidden[sample.labels >= 0]), sample.labels[sample.labels >= 0]
        loss = nn.functional.cross_entropy(logits, targets)
        losses += float(loss.detach())
        silent = sample.labels == STATE
        if silent.any():
            pictures = sample.pictures[:, None].expand(-1, silent.shape[1])[silent]
            knowing, right_and_all = knowledge(hidden[silent], torch.cat([classes[pictures], sample.named[silent]], 1))
            counts += right_and_all.cpu()
            loss = loss + KNOWLEDGE_WEIGHT * knowing
        if len(chosen):
            wanted = tiles[chosen].long()
            spelling = torch.randint(6, wanted.shape, device=device)
            wanted = torch.where(wanted < 0, -1, alike[wanted.clamp(min=0), spelling])
            naming = tile_loss(model, shown, wanted)
            named += float(naming.detach())
            loss = loss + TILE_WEIGHT * naming
        trained.update(step, loss)
        if step % 5 == 0:
            for kind, (right, count) in _score(drawn, (logits.argmax(-1) == targets).cpu()).items():
                tally[kind][0] += right
                tally[kind][1] += count
        if (step + 1) % 50 == 0:
            shares = " ".join(f"{kind} {a / b:.2f}" for kind, (a, b) in sorted(tally.items()))
            shares += "".join(
                f" | {f} {a / b:.2f}" for f, (a, b) in zip((*KNOWN, *NAMED), counts.tolist(), strict=True) if b
            )
            counts.zero_()
            print(
                f"language {step + 1}/{steps} {(time.time() - clock) / 50:.2f} s/step "
                f"loss {losses / 50:.3f} tiles {named / 50:.2f} | {shares}",
                flush=True,
            )
            clock, losses, named, tally = time.time(), 0.0, 0.0, defaultdict(lambda: [0, 0])
    trained.average.copy_to(module)
