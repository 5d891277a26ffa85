"""The command in a process of its own, with configurations small enough for a test."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parent.parent.parent / "configs"
SMALL = [
    "--trainer.max_steps=2",
    "--data.init_args.turns=30",
    "--data.init_args.parallel=8",
    "--data.init_args.mixture={random: 1.0}",
    "--data.init_args.batch_size=2",
    "--data.init_args.batches_per_epoch=2",
    "--data.init_args.validation_batches=1",
    "--data.init_args.max_reply_tokens=6",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--threads=1",
]
COMMAND = [sys.executable, "-c", "from lightning_vlmq.cli import main; main()"]


def vlmq(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=300, check=False)


def shrunk(name: str, tiny_folder: Path, folder: Path) -> Path:
    """A configuration with the tiny VLM and little to play."""
    config: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    config["model"]["init_args"]["vlm"]["init_args"]["name"] = str(tiny_folder)
    for callback in config["trainer"]["callbacks"]:
        options = callback.get("init_args", {})
        options |= {name: small for name, small in {"episodes": 2, "steps": 4}.items() if name in options}
    path = folder / Path(name).name
    path.write_text(yaml.safe_dump(config))
    return path
