"""Memory of a training step by the size of the vocabulary: what a step holds beside what stands there anyway.

    python -m benchmarks.vocabulary --threads 1

A step is losses and gradients of ``--turns`` turns on SmolVLM-256M's language model of ``--layers`` layers with random
weights and an adapter. Its memory is the most that PyTorch's allocator handed out at once, by torch.profiler's events,
without what stood there before (parameters, target critic) and without the gradients that the step leaves. Each number
is of a fresh process. ``in one piece`` is the same step without chunks. Seconds are CPU time of a step, median, without
the profiler.

Last come the critics alone: bytes of the online and the target critic, of gradients and of AdamW's state.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import transformers as hf
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

import lightning_vlmq.chunks
from benchmarks.step_memory import Plain, a_batch, smolvlm_256m
from lightning_vlmq import VLMQ
from lightning_vlmq.estimate.parts import states_of, weights_of

VOCABULARIES = (51_200, 257_216)
"""MoonDream2's and PaliGemma's, which the paper trains."""

CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "critic: embeddings": {"critic": "embeddings"},
    "top_k: null (the paper)": {"top_k": None},
    "actor: max_q": {"actor": "max_q"},
    "td_weight: 0 (SFT)": {"td_weight": 0.0},
    "vlm.train_head: true": {"train_head": True},
}


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--vocabularies", nargs=2, type=int, default=VOCABULARIES)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=184, help="tokens: 120 of text, 64 of a picture")
    parser.add_argument("--reply", type=int, default=12)
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.row:
        print(json.dumps(_row(json.loads(options.row), options)))
        return
    small, large = options.vocabularies
    print(f"| settings | chunks | MB at {small:,} | MB at {large:,} | ratio | s | s |\n|---|---|---|---|---|---|---|")
    for case in options.cases:
        for whole in (False, True):
            found = [_apart({"case": case, "vocabulary": size, "whole": whole}) for size in (small, large)]
            megabytes, seconds = zip(*((row["bytes"] / 1e6, row["seconds"]) for row in found), strict=True)
            columns = [case, "in one piece" if whole else "yes", *(f"{each:.0f}" for each in megabytes)]
            columns += [f"{megabytes[1] / megabytes[0]:.2f}", *(f"{each:.2f}" for each in seconds)]
            print("| " + " | ".join(columns) + " |", flush=True)
    print(f"\n| critic | MB at {small:,} | MB at {large:,} |\n|---|---|---|")
    for critic in ("mlp", "embeddings"):
        found = [_apart({"critic": critic, "vocabulary": size}) for size in (small, large)]
        print(f"| {critic} | " + " | ".join(f"{row['bytes'] / 1e6:.0f}" for row in found) + " |", flush=True)


def _apart(row: dict[str, Any]) -> dict[str, float]:
    """A row's numbers, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.vocabulary", *sys.argv[1:], "--row", json.dumps(row)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(row: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(0)
    settings = {"critic": row["critic"]} if "critic" in row else dict(CASES[row["case"]])
    module = _module(row["vocabulary"], options.layers, **settings)
    if "critic" in row:
        return {"bytes": _critic_bytes(module)}
    if row["whole"]:
        lightning_vlmq.chunks.CHUNK = sys.maxsize
    batch = a_batch(options.turns, options.prompt, options.reply)

    def step() -> float:
        module.zero_grad()
        start = time.process_time()
        loss, _ = module.losses(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return time.process_time() - start

    step()
    return {"bytes": most_held(module, step), "seconds": median(step() for _ in range(options.steps))}


def _module(vocabulary: int, layers: int, *, train_head: bool = False, **settings: Any) -> VLMQ:
    config = smolvlm_256m()
    config.text_config.vocab_size, config.text_config.num_hidden_layers = vocabulary, layers
    config.vision_config.num_hidden_layers = 1  # of which nothing is asked
    network = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    return VLMQ(Plain(network, train_head=train_head), threshold=0.0, **settings).train()


def most_held(module: torch.nn.Module, step: Callable[[], Any]) -> int:
    """Most bytes that a step allocated at once, gradients that it leaves left out."""
    module.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = sorted(_allocations(profiler), key=lambda event: event[0])
    gradients = {p.grad.untyped_storage().data_ptr() for p in module.parameters() if p.grad is not None}
    made = {place: number for number, (_, place, size) in enumerate(events) if size > 0 and place in gradients}
    held = most = 0
    for number, (_, place, size) in enumerate(events):
        if made.get(place) != number:
            held += size
            most = max(most, held)
    return most


def _allocations(profiler: Any) -> Iterator[tuple[int, int, int]]:
    """Time, place and bytes of each allocation; where memory is given back, they are negative."""
    waiting = list(profiler.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting.extend(event.children)
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size


def _critic_bytes(module: VLMQ) -> int:
    """Of critic and target as they are behind a step of AdamW."""
    critic = module.critic
    trained = [p for p in critic.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    own = {id(t) for t in weights_of(module.vlm)}
    standing = [t for t in weights_of(critic) if id(t) not in own]
    storages = {t.untyped_storage().data_ptr(): t for t in [*standing, *states_of(optimizer)]}
    return sum(t.untyped_storage().nbytes() for t in storages.values()) + sum(p.nbytes for p in trained)


if __name__ == "__main__":
    main()
