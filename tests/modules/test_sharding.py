"""Two processes on gloo whose weights are in shards train as two that have all of them (DDP), and play."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

from lightning_vlmq import VLM
from lightning_vlmq.modules.sharding import check_shardable

SCRIPT = """
import faulthandler
import json
import os
import socket
import sys
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_vlmq import VLM, VLMQ, AgentEnv, EpisodeEvaluation, Inspection, OfflineToOnline, OnlineCollector
from lightning_vlmq import RandomState, Report, TargetCriticEMA
from lightning_vlmq import chunks
from lightning_vlmq.envs import NumberLine

chunks.CHUNK = 4 * 3072  # logits of four tokens at a time

class Note(L.Callback):
    def __init__(self):
        self.steps, self.goes_on = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, number):
        found = trainer.callback_metrics
        self.steps.append([found[name].item() for name in ("loss", "loss/critic", "grad_norm/vlm", "grad_norm/critic")])
        self.goes_on.append(batch.has_next.any().item())
        own = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in module.parameters())
        self.share = own / sum(p.numel() for p in module.parameters())

def fit(name, root, strategy, checkpoint):
    L.seed_everything(3)
    module = VLMQ(VLM(lora_rank=2), lr=1e-3, critic_lr=1e-3, warmup_steps=2, critic_warmup_steps=2, threshold=0.0)
    data = OfflineToOnline(
        folder=root + "/data", environment=AgentEnv(NumberLine()), turns=24, batch_size=1, batches_per_epoch=3,
        validation_batches=1, max_reply_tokens=6, experience_folder=root + "/" + name, mixture={"random": 1.0},
    )
    if strategy == "shards":
        strategy = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    keep = ModelCheckpoint(root + "/" + name, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    note = Note()
    L.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_epochs=2, default_root_dir=root, log_every_n_steps=1,
        logger=TensorBoardLogger(root, name="", version=name), gradient_clip_val=0.5,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
        callbacks=[
            TargetCriticEMA(tau=0.1), OnlineCollector(environments=2, steps=2, start_epoch=1), RandomState(), keep,
            EpisodeEvaluation(episodes=3), Inspection(episodes=1, turns=1, return_episodes=0), Report(episodes=1), note,
        ],
    ).fit(module, data, ckpt_path=checkpoint)
    return {"steps": note.steps, "goes_on": note.goes_on, "share": note.share}

if __name__ == "__main__":
    root = sys.argv[1]
    for name, strategy, checkpoint in (
        ("ddp", "ddp", None), ("shards", "shards", None), ("resumed", "shards", root + "/shards/epoch=0.ckpt"),
        ("refused", "shards", root + "/ddp/epoch=0.ckpt"),
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = []
        for rank in range(2):  # forked, as to import all of it takes longer than to fit
            ranks.append(os.fork())
            if ranks[-1] == 0:
                os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                faulthandler.dump_traceback_later(240, exit=True)  # where one waits for the other in vain
                try:
                    found = fit(name, root, strategy, checkpoint)
                except ValueError as error:
                    found = {"error": str(error)}
                with open(f"{root}/{name}-{rank}.json", "w") as file:
                    json.dump(found, file)
                os._exit(0)
        assert not any(os.waitpid(rank, 0)[1] for rank in ranks), name
"""


def test_shards_train_and_play_as_whole_weights_do(tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    for rank in range(2):
        ddp, shards = (torch.tensor(found[f"{name}-{rank}"]["steps"]) for name in ("ddp", "shards"))
        assert ddp.shape == (6, 4)
        torch.testing.assert_close(shards, ddp, atol=5e-6, rtol=1e-5)
        assert found[f"ddp-{rank}"]["share"] == 1
        assert 0.5 < found[f"shards-{rank}"]["share"] < 0.8  # half of all but the vision tower
        assert found[f"refused-{rank}"]["error"].startswith(
            "the checkpoint was made without ModelParallelStrategy; go on"
        )
    # a rank whose turns all end takes part in the other's pass through the next turns
    assert found["shards-0"]["goes_on"] != found["shards-1"]["goes_on"]

    def weights(name: str) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = torch.load(tmp_path / name, weights_only=True)["state_dict"]
        return state

    first, last, whole = (weights(name) for name in ("shards/epoch=0.ckpt", "shards/epoch=1.ckpt", "ddp/epoch=1.ckpt"))
    assert set(last) == set(whole)
    moved = {name for name in last if not torch.equal(last[name], first[name])}
    assert {name for name in last if "lora_" in name or "critic.target" in name} <= moved
    for name, value in whole.items():  # AdamW makes much of the rounding of gradients near zero
        torch.testing.assert_close(last[name], value, atol=1e-5, rtol=1e-4)
    resumed = weights("resumed/epoch=1.ckpt")
    assert all(torch.equal(resumed[name], value) for name, value in last.items())
    assert json.loads((tmp_path / "shards" / "results.json").read_text())["trained"]["episodes"] == 1


class _Mesh(dict[str, Any]):
    def size(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("strategy", "options", "precision", "said"),
    [
        ({"mesh": _Mesh()}, {}, "32-true", r"trainer.strategy: ModelParallelStrategy needs tensor_parallel_size: 1"),
        ({"save_distributed_checkpoint": True}, {}, "32-true", r"save_distributed_checkpoint: false"),
        ({}, {"optimizer": "adamw8bit"}, "32-true", r"optimizer: adamw8bit does not go with .*; take adamw, or ddp"),
        ({}, {}, "bf16-true", r"trainer.precision: bf16-true .*; take bf16-mixed or 32-true"),
    ],
)
def test_what_shards_cannot_go_with_is_refused_in_one_line(
    vlm: VLM, strategy: dict[str, Any], options: dict[str, Any], precision: str, said: str
) -> None:
    one = type("One", (), {"size": lambda self: 1})()
    mesh = strategy.pop("mesh", one)
    parallel = ModelParallelStrategy(**{"save_distributed_checkpoint": False, **strategy})
    parallel._device_mesh = {"tensor_parallel": mesh}  # type: ignore[assignment]
    with pytest.raises(ValueError, match=said) as caught:
        check_shardable(parallel, vlm, options, precision)
    assert "\n" not in str(caught.value)


def test_compiled_layers_four_bits_and_the_older_fsdp_are_refused(vlm: VLM) -> None:
    with pytest.raises(ValueError, match=r"trainer.strategy: fsdp does not work here; take ModelParallelStrategy"):
        check_shardable(FSDPStrategy(), vlm, {}, "32-true")
    parallel = ModelParallelStrategy(save_distributed_checkpoint=False)
    parallel._device_mesh = {"tensor_parallel": type("One", (), {"size": lambda self: 1})()}  # type: ignore[assignment]
    vlm.trains_base = ("train_vision_tower",)
    with pytest.raises(ValueError, match=r"vlm.train_vision_tower does not go with ModelParallelStrategy; set it to"):
        check_shardable(parallel, vlm, {}, "32-true")
    vlm.trains_base = ()
    vlm.compiled = True
    with pytest.raises(ValueError, match=r"vlm.compile does not go with ModelParallelStrategy; set it to null"):
        check_shardable(parallel, vlm, {}, "32-true")
    vlm.compiled = False
    vlm.packed = nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"vlm.load_in_4bit does not go with ModelParallelStrategy; set it to false"):
        check_shardable(parallel, vlm, {}, "32-true")
