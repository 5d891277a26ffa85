"""Fits of a trained vision tower: all that plays beside it sees with its weights of then; two processes (DDP)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from family_turns import pairs
from lightning.pytorch.loggers import TensorBoardLogger
from tiny_families import FAMILIES, build

from lightning_vlmq import (
    VLM,
    VLMQ,
    AgentEnv,
    EpisodeEvaluation,
    Inspection,
    OfflineToOnline,
    OnlineCollector,
    RandomZoomOut,
    Report,
    TargetCriticEMA,
)
from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs import NumberLine

SCRIPT = """
import faulthandler
import os
import socket
import sys
import lightning as L
import torch
from family_turns import pairs
from torch.utils.data import DataLoader
from lightning_vlmq import VLM, VLMQ
from lightning_vlmq.batches import TurnEncoder

class Note(L.Callback):
    def __init__(self):
        self.steps = []

    def on_after_backward(self, trainer, module):
        self.steps.append({name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad})

if __name__ == "__main__":
    folder, out = sys.argv[1:]
    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(2):  # forked, as to import all of it takes longer than to fit
        ranks.append(os.fork())
        if ranks[-1] == 0:
            os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            faulthandler.dump_traceback_later(240, exit=True)  # where one waits for the other in vain
            module = VLMQ(VLM(folder, lora_rank=0, train_vision_tower=True), td_weight=0.0, lr=1e-3, warmup_steps=0)
            turns, successors = (rows[:4] if rank == 0 else rows[4:] for rows in pairs())
            batch = TurnEncoder(module.vlm).batch(turns, successors)
            note = Note()
            L.Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_steps=2, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, callbacks=[note],
            ).fit(module, DataLoader([batch] * 2, batch_size=None))
            torch.save({"gradients": note.steps, "weights": module.vlm.state_dict()}, f"{out}/{rank}.pt")
            os._exit(0)
    assert not any(os.waitpid(rank, 0)[1] for rank in ranks)
"""


@pytest.mark.filterwarnings("error:rollout and training differ")
def test_a_fit_plays_with_the_weights_of_its_day(tiny_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    vlm = VLM(str(tiny_folder), lora_rank=2, train_vision_tower=True)
    before = {name: p.detach().clone() for name, p in vlm.vision_parameters()}
    module = VLMQ(vlm, critic_states="adapted", lr=1e-3, vision_lr=1e-3, warmup_steps=0, threshold=0.0, critic_width=16)
    data = OfflineToOnline(
        folder=str(tmp_path / "data"),
        environment=AgentEnv(NumberLine()),
        turns=24,
        mixture={"random": 1.0},
        window=2,
        augmentation=RandomZoomOut(),
        batch_size=4,
        batches_per_epoch=3,
        validation_batches=1,
        max_reply_tokens=6,
        seed=3,
    )
    collector = OnlineCollector(environments=3, steps=12, epsilon=0.0, temperature=1.0)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=TensorBoardLogger(tmp_path, name="", version="logs"),
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[
            TargetCriticEMA(),
            collector,
            EpisodeEvaluation(episodes=2),
            Inspection(episodes=1, turns=1, return_episodes=0),
            Report(episodes=1),
        ],
    )
    trainer.fit(module, data)
    assert all(not torch.equal(p, before[name]) for name, p in vlm.vision_parameters())
    # the second play is behind three updates, and what it is compared with is read anew
    assert 0 < trainer.logged_metrics["collect/log_prob_difference"] < 1e-4
    assert trainer.logged_metrics["grad_norm/vision"] > 0
    assert not list(tmp_path.rglob("*.sqlite"))
    results = json.loads(next(tmp_path.rglob("results.json")).read_text())
    assert "trained" in results
    assert "base" not in results  # it is no more


def test_a_rank_without_pictures_takes_part(tmp_path: Path) -> None:
    folder = build(FAMILIES["llava"], tmp_path / "llava")
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), str(folder), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr[-3000:]

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    module = VLMQ(VLM(str(folder), lora_rank=0, train_vision_tower=True), td_weight=0.0)
    encoder, rows = TurnEncoder(module.vlm), pairs()
    alone: list[dict[str, Any]] = []
    for part in (slice(4), slice(4, None)):
        module.zero_grad()
        module.losses(encoder.batch(*(each[part] for each in rows)))[0].backward()
        alone.append({key: p.grad.clone() for key, p in module.named_parameters() if p.requires_grad})
    assert all(gradient.any() for gradient in alone[0].values())
    assert not any(gradient.any() for gradient in alone[1].values())  # nothing else is trained
    mean = {key: gradient / 2 for key, gradient in alone[0].items()}
    torch.testing.assert_close(first["gradients"][0], mean, atol=1e-7, rtol=1e-4)
    assert all(torch.equal(value, second["gradients"][1][key]) for key, value in first["gradients"][1].items())
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    before = module.vlm.state_dict()
    moved = {key for key, value in first["weights"].items() if not torch.equal(value, before[key])}
    assert moved == {key.removeprefix("vlm.") for key in mean}
