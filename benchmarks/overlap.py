"""What play that overlaps training saves: wall time of epochs with ``asynchronous`` over those without.

    python -m benchmarks.overlap --threads 1

Fits of NumberLine online by the embedded VLM, as it is and with a picture that takes ``--milliseconds`` to make, in
turn with and without; the order changes from round to round. Timed are the epochs behind the first one: there both wait
for a play, and with ``asynchronous`` also for the process to start. Trainer and player compute on so many threads each,
so ``--threads 1`` should have two cores that are free.
"""

import argparse
import os
import time
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import numpy as np
import torch

from benchmarks.base_states import ratios
from lightning_vlmq import VLM, VLMQ, AgentEnv, OfflineToOnline, OnlineCollector, TargetCriticEMA
from lightning_vlmq.envs import NumberLine


class Slow(NumberLine):
    """Its picture takes some seconds of waiting, as a browser's would."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def images(self) -> Any:
        """The picture, later."""
        time.sleep(self.seconds)
        return super().images()


class Clock(L.Callback):
    """Notes when each epoch begins to play, when the last one ends, and what was logged."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.play: list[float] = []
        self.waited: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before the collector's."""
        self.at.append(time.monotonic())

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Behind an epoch's last batch."""
        logged = trainer.callback_metrics
        self.play.append(float(logged["collect/seconds"]))
        self.waited.append(float(logged.get("collect/waited_seconds", logged["collect/seconds"])))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Behind the last epoch."""
        self.at.append(time.monotonic())


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--environments", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batches", type=int, default=20, help="of an epoch, 8 turns each")
    parser.add_argument("--epochs", type=int, default=5, help="the first one is not timed")
    parser.add_argument("--milliseconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    print("| picture takes | asynchronous | s an epoch | play in it | waited in it | s of the first wait | ratio |")
    print("|---|---|---|---|---|---|---|")
    for seconds in (0.0, options.milliseconds / 1000):
        clocks: dict[bool, list[Clock]] = {False: [], True: []}
        for number in range(options.rounds):
            for asynchronous in np.random.default_rng(number).permutation([False, True]).tolist():
                clocks[asynchronous].append(fit(seconds, asynchronous, options))
        spans = {kind: [(c.at[-1] - c.at[1]) / (options.epochs - 1) for c in found] for kind, found in clocks.items()}
        for kind, found in clocks.items():
            cells = [f"{1000 * seconds:g} ms", str(kind).lower(), f"{median(spans[kind]):.2f}"]
            cells += [f"{median(s for c in found for s in c.play[1:]):.2f}"]
            cells += [f"{median(s for c in found for s in c.waited[1:]):.2f}"]
            cells += [f"{median(c.waited[0] for c in found):.1f}", ratios(spans[kind], spans[False])]
            print("|", " | ".join(cells), "|", flush=True)


def fit(seconds: float, asynchronous: bool, options: argparse.Namespace) -> Clock:
    """A fit from an empty buffer, the same but for who plays."""
    torch.manual_seed(1)
    clock = Clock()
    collector = OnlineCollector(
        environments=options.environments, steps=options.steps, epsilon=0.3, asynchronous=asynchronous
    )
    with TemporaryDirectory() as folder:
        data = OfflineToOnline(
            folder=f"{folder}/data",
            environment=AgentEnv(Slow(seconds)),
            turns=0,
            batch_size=8,
            batches_per_epoch=options.batches,
            validation_batches=1,
            seed=1,
        )
        trainer = L.Trainer(
            default_root_dir=folder,
            max_epochs=options.epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[clock, TargetCriticEMA(), collector],
        )
        trainer.fit(VLMQ(VLM(lora_layers=2), critic_states="adapted", critic_inputs="raw"), data)
    return clock


if __name__ == "__main__":
    main()
