"""Turns played per second: environments whose replies are decoded together against one at a time.

    python -m benchmarks.rollouts --threads 1

Both sides play the same number of turns with the same VLM, pictures encoded before. ``embedded``: NumberLine by the
embedded VLM, environment and prompts included. ``smolvlm-256m``: replies of a fixed number of tokens to prompts of a
fixed length by the published shape with random weights; its decode part is what it takes beyond the first token. On the
other side of the last row is a loop of transformers' own ``generate``, one prompt at a time, which encodes each picture
anew. Ratios are of turns per second.
"""

import argparse
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.case import CASES, MEASURED, PROMPT, Case, make_folder, make_turns
from benchmarks.rows import RESULTS, Row, Spent, machine, row, save, spent, without_demands
from lightning_vlmq import VLM
from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs import AgentEnv, NumberLine
from lightning_vlmq.policy import VLMPolicy
from lightning_vlmq.rollout import Rollout
from lightning_vlmq.turns import Turn

BENCH = "rollouts"
ALONE, PLAIN = "one at a time", "transformers' generate, one at a time"
_PREFILL = "first token"
_LONG = 8
"""Turns in each environment of the embedded VLM, of which one is over too soon to be timed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), default=MEASURED, help="beside the embedded VLM")
    parser.add_argument("--envs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=Spent._fields, default="wall", help="what the rows are made of")
    parser.add_argument("--note", default="", help='of the machine, for instance "beside other jobs"')
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    rates = functools.partial(_rates, options.clock)
    make_row = functools.partial(row, BENCH, unit="turns/s", machine=machine(options.note))
    together, case, count = f"{options.envs} together", CASES[options.case], options.envs

    times = in_turn(embedded_ways(count), options.rounds)
    rows: list[Row] = [
        make_row("embedded VLM, NumberLine", *rates(_LONG * count, times, together, ALONE), demanded=">= 8")
    ]
    with TemporaryDirectory() as folder:
        times = in_turn(ways(case, make_folder(case, Path(folder)), count), options.rounds)
    for name in (together, ALONE):
        pairs = zip(times[name], times[f"{name}, {_PREFILL}"], strict=True)
        times[f"{name}, decode part"] = [Spent(*(a - b for a, b in zip(*pair, strict=True))) for pair in pairs]
    what = f"{options.case}, {case}"
    of_shape = [
        make_row(what, *rates(count, times, together, ALONE), demanded=">= 1.8"),
        make_row(what, *rates(count, times, f"{together}, decode part", f"{ALONE}, decode part"), demanded=">= 5"),
        make_row(what, *rates(count, times, together, PLAIN)),
    ]
    rows += of_shape if options.case == MEASURED else without_demands(of_shape)
    save(rows, options.results)


def in_turn(ways: Mapping[str, Callable[[], Any]], count: int) -> dict[str, list[Spent]]:
    """What each way took in each round; their order changes, and a round before warms up."""
    times: dict[str, list[Spent]] = {name: [] for name in ways}
    for number in range(-1, count):
        for name in np.random.default_rng(number + 1).permutation(list(ways)).tolist():
            _, took = spent(ways[name])
            if number >= 0:
                times[name].append(took)
                print(f"round {number}: {name} {took}", flush=True)
    return times


def embedded_ways(envs: int) -> dict[str, Callable[[], Any]]:
    """Some turns in each of so many environments, decoded together, or as many turns in one."""
    encoder, env = TurnEncoder(VLM(lora_rank=0)), AgentEnv(NumberLine())

    def playing(parallel: int) -> Callable[[], Any]:
        rollout = Rollout(env, ((seed, {}) for seed in range(10**9)), parallel)
        policies = [VLMPolicy(encoder, temperature=1.0)]
        return lambda: [rollout.turn(policies) for _ in range(_LONG * envs // parallel)]

    return {f"{envs} together": playing(envs), ALONE: playing(1)}


def ways(case: Case, folder: Path, envs: int) -> dict[str, Callable[[], Any]]:
    """Replies to so many prompts, decoded together or one at a time: whole, or the first token alone."""
    vlm = VLM(str(folder), lora_rank=0)
    vlm.stop_ids = ()  # random weights would stop anywhere
    encoder, turns = TurnEncoder(vlm, PROMPT), make_turns(case, envs)

    def replies(at_once: int, tokens: int) -> None:
        for start in range(0, envs, at_once):
            inputs = encoder.prompts([turn.observation for turn in turns[start : start + at_once]])
            sampled = vlm.generate(inputs, max_new_tokens=tokens, temperature=1.0, generator_seed=0)
            assert all(len(each.ids) == tokens for each in sampled)

    found: dict[str, Callable[[], Any]] = {}
    for name, at_once in ((f"{envs} together", envs), (ALONE, 1)):
        found[name] = functools.partial(replies, at_once, case.reply)
        found[f"{name}, {_PREFILL}"] = functools.partial(replies, at_once, 1)
    plain = [_plain_inputs(vlm, turn) for turn in turns]
    found[PLAIN] = lambda: [_generate(vlm, inputs, case.reply) for inputs in plain]
    return found


def _plain_inputs(vlm: VLM, turn: Turn) -> Mapping[str, Tensor]:
    text = vlm.processor.apply_chat_template(
        PROMPT.messages(turn.observation), add_generation_prompt=True, tokenize=False
    )
    image = Image.open(io.BytesIO(turn.observation.images[0])).convert("RGB")
    return vlm.processor(text=text, images=[image], return_tensors="pt")  # type: ignore[no-any-return]


def _generate(vlm: VLM, inputs: Mapping[str, Tensor], tokens: int) -> None:
    options = {"do_sample": True, "max_new_tokens": tokens, "min_new_tokens": tokens}
    with torch.no_grad():
        vlm.hf.generate(**inputs, **options, pad_token_id=vlm.tokenizer.pad_token_id)


def _rates(clock: str, turns: int, times: Mapping[str, Sequence[Spent]], *names: str) -> list[tuple[str, list[float]]]:
    return [(name, [turns / getattr(each, clock) for each in times[name]]) for name in names]


if __name__ == "__main__":
    main()
