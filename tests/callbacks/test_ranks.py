"""Two processes on gloo: each plays its own episodes into its own store, and a resumed run finds both.

The first one draws pictures, and the other does not wait for it in vain. Where one is slow, both begin to train
together.
"""

import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_vlmq import OnlineCollector, TurnStore

SCRIPT = """
import sys
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_vlmq import VLM, VLMQ, AgentEnv, EpisodeEvaluation, Inspection, OfflineToOnline, OnlineCollector
from lightning_vlmq import RandomState, TargetCriticEMA
from lightning_vlmq.envs import NumberLine
from lightning_vlmq.evaluation import EpisodeScores
from lightning_vlmq.turns import Episode, Observation, Turn

def say(text):  # a line of its own, whatever the other rank writes
    sys.stderr.write("\\n" + text + "\\n")

class Unequal(L.Callback):  # the first rank has a long and a short episode, the other one has none
    def on_train_end(self, trainer, module):
        def episode(*rewards):
            rows = enumerate(rewards)
            turns = [Turn("e", "x", i, Observation(), reply="r", env_reward=r, valid=True) for i, r in rows]
            return Episode((*turns, Turn("e", "x", len(turns), Observation())))

        metric = EpisodeScores()
        metric.update([episode(0.0, 0.0, 1.0), episode(-1.0)] if trainer.global_rank == 0 else [])
        scores, intervals = metric.compute()
        assert (scores["episodes"], scores["turns"], scores["return_above_0"]) == (2, 4, 0.5), scores
        assert 0 < intervals["return_above_0"][0] < 0.5 < intervals["return_above_0"][1] < 1
        found = trainer.callback_metrics
        assert found["eval/syntax_accuracy_low"] <= found["eval/syntax_accuracy"] <= found["eval/syntax_accuracy_high"]
        assert found["eval/mean_length"] == 3.0, found  # the tiny VLM's replies are all invalid
        # what is logged of training and validation is every rank's, though each has turns of its own
        logged = [found[name].item() for name in ("loss", "loss/critic", "val/critic/q", "val/filter/pass_rate_all")]
        say(f"logged {logged}")
        say(f"checked {trainer.global_rank}")

class Generators(L.Callback):  # the ranks' differ; what they are where the second epoch trains
    def on_train_start(self, trainer, module):
        torch.manual_seed(trainer.global_rank)

    def on_train_batch_start(self, trainer, module, batch, number):
        if trainer.current_epoch == 1 and number == 0:
            state = hash(tuple(torch.get_rng_state().tolist()))
            say(f"generator {trainer.global_rank} {state}")

if __name__ == "__main__":
    vlm, folder, epochs, checkpoint = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    L.seed_everything(3)
    module = VLMQ(VLM(vlm, lora_rank=2), warmup_steps=2, critic_warmup_steps=2)
    data = OfflineToOnline(
        folder=folder + "/data", environment=AgentEnv(NumberLine()), turns=0, batch_size=4, batches_per_epoch=3,
        validation_batches=1, max_reply_tokens=6,
    )
    keep = ModelCheckpoint(folder + "/kept", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=epochs, default_root_dir=folder,
        logger=TensorBoardLogger(folder, name="", version="logs"),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[
            TargetCriticEMA(), OnlineCollector(environments=3, steps=11, epsilon=1.0), keep,
            RandomState(), Generators(),
            EpisodeEvaluation(episodes=2 if checkpoint else 3), Unequal(),
            Inspection(episodes=1, turns=1, return_episodes=2),
        ],
    ).fit(module, data, ckpt_path=checkpoint or None)
"""


def test_ranks_play_apart_and_resume_together(tiny_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)

    generators = []

    def fit(epochs: int, checkpoint: str = "") -> list[dict[int, int]]:
        """Length of each episode, by seed, of both ranks."""
        command = [sys.executable, str(script), str(tiny_folder), str(tmp_path), str(epochs), checkpoint]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("checked") == 2
        logged = [line for line in done.stderr.splitlines() if line.startswith("logged")]
        assert logged[0] == logged[1]
        generators.append(sorted(line for line in done.stderr.splitlines() if line.startswith("generator")))
        stores = [TurnStore(tmp_path / "experience" / f"rank-{rank}") for rank in range(2)]
        return [{episode.turns[0].seed: len(episode) for episode in store.episodes()} for store in stores]

    first, second = fit(2)
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [image.step for image in events.Images("inspect/film")] == [6]  # once, not by both
    assert sum(first.values()) == sum(second.values()) == 2 * 3 * 11
    assert not set(first) & set(second)
    resumed = fit(2, str(tmp_path / "kept" / "epoch=0.ckpt"))
    assert [sum(ranks.values()) for ranks in resumed] == [66, 66]
    # each rank goes on with its own generators, which on_train_start of the resumed run had set anew
    assert generators[0] == generators[1]
    assert len({line.split()[2] for line in generators[0]}) == len(generators[0]) == 2
    assert list((tmp_path / "experience" / "rank-1" / "set_aside").glob("*.parquet"))


SLOW = """
import sys
import time
import lightning as L
import torch
from lightning_vlmq import VLM, VLMQ, AgentEnv, OfflineToOnline, OnlineCollector, TargetCriticEMA
from lightning_vlmq.envs import NumberLine

class Slow(NumberLine):
    def step(self, action):
        time.sleep(0.25 * torch.distributed.get_rank())
        return super().step(action)

class Note(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, number):
        own = len(trainer.datamodule.experience.samples)
        sys.stderr.write(f"\\nstep {trainer.global_rank} {trainer.global_step} {own}\\n")

if __name__ == "__main__":
    vlm, folder = sys.argv[1:]
    module = VLMQ(VLM(vlm, lora_rank=2), warmup_steps=2, critic_warmup_steps=2)
    data = OfflineToOnline(
        folder=folder + "/data", environment=AgentEnv(Slow()), turns=0, batch_size=2, batches_per_epoch=2,
        validation_batches=1, max_reply_tokens=6, seed=3, min_turns=25,
    )
    L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, default_root_dir=folder, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[
            TargetCriticEMA(), OnlineCollector(environments=2, steps=20, epsilon=1.0, time_limit=2.0), Note()
        ],
    ).fit(module, data)
"""


def test_a_slow_rank_is_filled_before_any_trains_and_holds_nobody_up_for_long(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """A play of the second rank would take ten seconds; it gives 8 replies or so in its two."""
    script = tmp_path / "fit.py"
    script.write_text(SLOW)
    command = [sys.executable, str(script), str(tiny_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split()[1:] for line in done.stderr.splitlines() if line.startswith("step")]
    turns = {(int(rank), int(step)): int(played) for rank, step, played in lines}
    assert set(turns) == {(rank, step) for rank in range(2) for step in range(4)}
    assert 25 <= turns[1, 0] < turns[0, 0]
    stores = [TurnStore(tmp_path / "experience" / f"rank-{rank}") for rank in range(2)]
    first, second = (sum(len(episode) for episode in store.episodes()) for store in stores)
    assert first % 40 == 0  # whole plays
    assert second < first / 2
    assert "time_limit 2 s ended" in done.stderr
    assert "collecting until each rank has 25 own turns" in done.stderr
    # others wait for a play, and for the slowest turn, with the group's own patience
    assert 0 < OnlineCollector().time_limit < torch.distributed.constants.default_pg_timeout.total_seconds()
