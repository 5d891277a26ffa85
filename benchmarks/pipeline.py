"""Share of a fit's wall time that goes into batches: turns read, prompts rendered, tokens and features put together.

    python -m benchmarks.pipeline --threads 1

A fit of ``VLMQ`` with the paper's options on random Blackjack turns, by Lightning and with the embedded VLM, the
smallest there is: with a larger one a step takes longer and a batch does not. Every picture was encoded in a pass
before. Each step is a round; the first ones are left out. (What the collation of SmolVLM-256M's shape takes is a row of
``benchmarks.training_step``.)
"""

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import SimpleProfiler

from benchmarks.naive import PAPER
from benchmarks.rows import RESULTS, machine, row, save
from lightning_vlmq import VLM, VLMQ, Demonstrations
from lightning_vlmq.callbacks import TargetCriticEMA
from lightning_vlmq.envs import AgentEnv, Blackjack

BENCH = "pipeline"
_FIRST = 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=1024, help="turns in the store")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--window", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help='of the machine, for instance "beside other jobs"')
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    batches, steps = durations(options)
    case = f"embedded VLM, Blackjack, {options.batch_size} turns in windows of {options.window}"
    both = [one + other for one, other in zip(batches, steps, strict=True)]
    made = row(
        BENCH,
        case,
        ("batches", batches),
        ("batches and steps", both),
        unit="s",
        machine=machine(options.note),
        demanded="<= .05",
    )
    save([made], options.results)


def durations(options: Any) -> tuple[list[float], list[float]]:
    """Seconds that each batch and each step took."""
    # else it tells of loaders without workers, and of what it found no GPU for
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    profiler = SimpleProfiler()
    with TemporaryDirectory() as folder:
        data = Demonstrations(
            folder,
            AgentEnv(Blackjack()),
            turns=options.turns,
            mixture={"random": 1.0},
            batch_size=options.batch_size,
            window=options.window,
            batches_per_epoch=options.steps + _FIRST,
            seed=1,
        )
        trainer = L.Trainer(
            max_steps=options.steps + _FIRST,
            accelerator="cpu",
            logger=False,
            callbacks=[TargetCriticEMA(), _AllEncoded()],
            profiler=profiler,
            gradient_clip_val=2.0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(VLMQ(VLM(lora_layers=2), **PAPER), data)
    found = profiler.recorded_durations
    batches = found["[_TrainingEpochLoop].train_dataloader_next"]
    steps = found["run_training_batch"]
    return batches[_FIRST : len(steps)], steps[_FIRST:]


class _AllEncoded(L.Callback):
    """Encodes every picture before the first batch is drawn."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for number in range(len(data.store)):
            data.encoder.prompt_ids(data.store[number].observation)


if __name__ == "__main__":
    main()
