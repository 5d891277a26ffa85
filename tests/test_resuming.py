"""Runs of the command that are interrupted, and what goes on from them."""

import signal
import subprocess
import time
from pathlib import Path

import torch
from commands import COMMAND, SMALL, shrunk, vlmq

# a shell's background job ignores Ctrl-C, and so do those whom it starts
LISTENING = [*COMMAND[:-1], "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " + COMMAND[-1]]


def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_goes_on_exactly(tiny_folder: Path, tmp_path: Path) -> None:
    config = shrunk("numberline.yaml", tiny_folder, tmp_path)
    common = ["fit", f"--config={config}", *SMALL[1:], "--data.init_args.batches_per_epoch=7"]
    common.append("--model.decay_steps=0")  # by default over the whole fit, and the two have other ends
    folder, other = tmp_path / "interrupted", tmp_path / "whole"
    with (tmp_path / "log").open("w") as log:
        command = [*LISTENING, *common, f"--folder={folder}", "--trainer.max_steps=100000"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 200
        while not (folder / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 1
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    last = folder / "checkpoints" / "last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"interrupted at step {step}: wrote {last}" in said
    for run in (folder, other):
        done = vlmq(*common, f"--folder={run}", "--ckpt_path=last", f"--trainer.max_steps={7 * (step // 7 + 1)}")
        assert done.returncode == 0, done.stderr
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (folder, other)]
    assert states[0]["global_step"] == states[1]["global_step"] > step
    for name, value in states[1]["state_dict"].items():
        assert torch.equal(states[0]["state_dict"][name], value), name


def test_a_kill_while_a_checkpoint_is_saved_leaves_the_old_one(tiny_folder: Path, tmp_path: Path) -> None:
    config = shrunk("numberline.yaml", tiny_folder, tmp_path)
    common = ["fit", f"--config={config}", f"--folder={tmp_path}", *SMALL]
    assert vlmq(*common).returncode == 0
    # killed where it moves a file, or where it synchronises the first one
    dies = "import os, shutil, signal; os.fsync = shutil.move = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL); "
    command = [*COMMAND[:-1], dies + COMMAND[-1], *common, "--ckpt_path=last", "--trainer.max_steps=4"]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert list((tmp_path / "checkpoints").glob(".*.ckpt.tmp"))
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    done = vlmq(*common, "--ckpt_path=last", "--trainer.max_steps=4")
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
