"""Two ranks whose plays overlap their training: each plays apart, and ``kill -9`` leaves no process of theirs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lightning_vlmq import TurnStore

RANKS = """
import os, signal, sys
import lightning as L
from lightning_vlmq import VLM, VLMQ, OfflineToOnline, OnlineCollector, TargetCriticEMA
from lightning_vlmq.envs import WorkerEnv
from slow_env import Slow

class Killed(L.Callback):  # while the next play is under way
    def on_train_batch_start(self, trainer, module, batch, number):
        if trainer.current_epoch == 2 and number == 1:
            trainer.datamodule.experience.flush()
            trainer.strategy.barrier()
            os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    vlm, folder = sys.argv[1:]
    data = OfflineToOnline(
        folder=folder + "/data", environment=WorkerEnv(Slow(0.1)), turns=0, batch_size=4, batches_per_epoch=2,
        validation_batches=1, max_reply_tokens=6, seed=3,
    )
    L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=4, default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[
            TargetCriticEMA(), OnlineCollector(environments=2, steps=12, epsilon=1.0, asynchronous=True), Killed()
        ],
    ).fit(VLMQ(VLM(vlm, lora_rank=2)), data)
"""


def test_ranks_play_apart_and_nothing_is_left_of_a_killed_trainer(tiny_folder: Path, tmp_path: Path) -> None:
    """Each rank has a process that plays, and that one has two whose environments are slow."""
    script, root = tmp_path / "fit.py", Path(__file__).parents[2]
    script.write_text(RANKS)
    mark = f"VLMQ_TEST={tmp_path}"
    environment = os.environ | {"PYTHONPATH": f"{root}:{root}/tests/helpers", "VLMQ_TEST": str(tmp_path)}
    command = [sys.executable, str(script), str(tiny_folder), str(tmp_path)]
    most = 0
    with (tmp_path / "log").open("w") as log:
        trainer = subprocess.Popen(command, env=environment, stderr=log)
        while trainer.poll() is None:
            most = max(most, len(_marked(mark)))
            time.sleep(0.1)
    assert trainer.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()[-3000:]
    assert most >= 2 + 2 + 4
    end = time.monotonic() + 30
    while _marked(mark) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _marked(mark)
    found = [TurnStore(tmp_path / "experience" / f"rank-{rank}") for rank in range(2)]
    seeds = [{episode.turns[0].seed for episode in store.episodes()} for store in found]
    assert all(seeds)
    assert not seeds[0] & seeds[1]
    # of three plays what has ended: two episodes were open, of ten turns at most
    assert all(3 * 2 * 12 - 2 * 10 < len(store.samples) <= 3 * 2 * 12 for store in found)


def _marked(mark: str) -> list[int]:
    """Processes that live in an environment with that variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_zombie = (path / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            if mark.encode() in (path / "environ").read_bytes().split(b"\0") and not is_zombie:
                found.append(int(path.name))
        except OSError:
            continue
    return found
