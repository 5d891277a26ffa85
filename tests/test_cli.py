import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = [
    "--trainer.max_steps=2",
    "--data.init_args.turns=30",
    "--data.init_args.mixture={random: 1.0}",
    "--data.init_args.batch_size=2",
    "--data.init_args.batches_per_epoch=2",
    "--data.init_args.validation_batches=1",
    "--data.init_args.max_reply_tokens=6",
    "--trainer.enable_progress_bar=false",
    "--threads=1",
]


COMMAND = [sys.executable, "-c", "from lightning_vlmq.cli import main; main()"]


def vlmq(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def small_config(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """NumberLine's configuration with the tiny VLM and few episodes to play."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / "numberline.yaml").read_text())
    config["model"]["init_args"]["vlm"]["init_args"]["name"] = str(tiny_folder)
    for callback in config["trainer"]["callbacks"]:
        if "episodes" in callback.get("init_args", {}):
            callback["init_args"]["episodes"] = 2
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_config: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    done = vlmq("fit", f"--config={small_config}", f"--folder={folder}", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "goal" in done.stdout
    return folder


def test_a_fit_leaves_everything_in_its_folder(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    for row in ("data", "base", "trained"):
        assert set(results[row]) >= {
            "episodes",
            "syntax_accuracy",
            "goal_reached",
            "return_above_0",
            "mean_return",
            "mean_shaped_return",
        }
    assert results["seed"] == 1
    assert (run / "config.yaml").is_file()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert list(run.glob("events.out.tfevents*"))
    assert (run / "data" / "collection.json").is_file()


def test_tensorboard_has_what_the_readme_says(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {"eval/syntax_accuracy", "eval/goal_reached", "eval/mean_return", "val/loss", "val/critic/q"}


def test_a_checkpoint_is_scored(run: Path, small_config: Path) -> None:
    (run / "results.json").unlink()
    done = vlmq("test", f"--config={small_config}", f"--folder={run}", "--ckpt_path=best", *SMALL)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "results.json").read_text())["trained"]["episodes"] == 2
    done = vlmq("validate", f"--config={small_config}", f"--folder={run}", "--ckpt_path=last", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "eval/goal_reached" in done.stdout


def test_a_run_is_resumed(run: Path, small_config: Path) -> None:
    arguments = ["--ckpt_path=last", *SMALL, "--trainer.max_steps=3"]
    done = vlmq("fit", f"--config={small_config}", f"--folder={run}", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "results.json").read_text())["steps"] == 3
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3


def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path: Path, small_config: Path) -> None:
    # the score stays at 0: the last checkpoint is written all the same, not only where the best one is
    arguments = ["fit", f"--config={small_config}", f"--folder={tmp_path}", *SMALL]
    path, step, deadline = tmp_path / "checkpoints" / "last.ckpt", 0, time.monotonic() + 200
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*COMMAND, *arguments, "--trainer.max_steps=1000"], stdout=log, stderr=log)
        while step < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            step = torch.load(path, weights_only=True)["global_step"] if path.is_file() else 0
        process.kill()
        process.wait()
    assert step >= 6, (tmp_path / "log").read_text()
    step = torch.load(path, weights_only=True)["global_step"]
    done = vlmq(*arguments, "--ckpt_path=last", f"--trainer.max_steps={step + 1}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == step + 1


def test_nothing_to_resume_is_said(tmp_path: Path, small_config: Path) -> None:
    done = vlmq("fit", f"--config={small_config}", f"--folder={tmp_path}", "--ckpt_path=last", *SMALL)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("vlmq: ckpt_path: last: there is no last checkpoint in")


def test_export_loads_without_us(run: Path, small_config: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    common = [f"--config={small_config}", f"--folder={run}", f"--ckpt_path={checkpoint}", *SMALL]
    done = vlmq("export", *common, f"--output={tmp_path / 'merged'}")
    assert done.returncode == 0, done.stderr
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").num_parameters() > 0
    done = vlmq("export", *common, f"--output={tmp_path / 'adapter'}", "--merged=false")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_collect_makes_demonstrations(small_config: Path, tmp_path: Path) -> None:
    done = vlmq("collect", f"--config={small_config}", f"--folder={tmp_path}", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "demonstrations in" in done.stdout
    assert list((tmp_path / "data").glob("*.parquet"))


def test_an_unknown_key_is_named(small_config: Path, tmp_path: Path) -> None:
    done = vlmq("fit", f"--config={small_config}", f"--folder={tmp_path}", "--model.init_args.learning_rate=1")
    assert done.returncode == 2
    assert "learning_rate" in done.stderr


def test_a_damaged_shard_is_named(run: Path, small_config: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run / "data", tmp_path / "data")
    shard = sorted((tmp_path / "data").glob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:200])
    done = vlmq("fit", f"--config={small_config}", f"--folder={tmp_path}", *SMALL)
    assert done.returncode == 1
    assert shard.name in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("**/*.yaml")))
def test_every_configuration_parses(name: str) -> None:
    done = vlmq("fit", f"--config={CONFIGS / name}", "--print_config")
    assert done.returncode == 0, done.stderr
    assert "class_path: lightning_vlmq.modules.vlmq.VLMQ" in done.stdout or "lightning_vlmq.VLMQ" in done.stdout
