import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml
from commands import COMMAND, CONFIGS, SMALL, shrunk, vlmq
from transformers import AutoModelForImageTextToText, LlamaConfig

from lightning_vlmq.cli import _precision, main
from lightning_vlmq.envs.exact_blackjack import optimal_blackjack_policy, score_blackjack

ALWAYS_STAND = score_blackjack(dict.fromkeys(optimal_blackjack_policy(), 0.0)).win


@pytest.fixture(scope="module")
def small_config(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """NumberLine's configuration, shrunk."""
    return shrunk("numberline.yaml", tiny_folder, tmp_path_factory.mktemp("config"))


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
    assert tags >= {"prompts/cut", "loss", "loss/actor", "loss/critic", "filter/pass_rate_all", "filter/guard_engaged"}
    assert tags >= {"critic/q", "critic/v", "critic/target", "critic/advantage_all", "critic/advantage_std"}
    assert tags >= {"popart/mean", "popart/scale", "grad_norm/vlm", "grad_norm/critic", "policy/entropy"}
    assert tags >= {"lr-AdamW/vlm", "lr-AdamW/critic", "report/trained/goal_reached", "report/base/syntax_accuracy"}


def test_a_checkpoint_is_scored(run: Path, small_config: Path) -> None:
    before = [(run / name).read_text() for name in ("results.json", "config.yaml")]
    done = vlmq("test", f"--config={small_config}", f"--folder={run}", "--ckpt_path=last", *SMALL)
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "results-test.json").read_text())
    assert found["trained"]["episodes"] == 2
    assert found["steps"] == 2  # of the checkpoint
    assert [(run / name).read_text() for name in ("results.json", "config.yaml")] == before
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
    # the score stays at 0: the last checkpoint is written all the same
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


def test_a_fit_into_the_folder_of_an_earlier_one_says_so(run: Path, small_config: Path) -> None:
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    done = vlmq("fit", f"--config={small_config}", f"--folder={run}", *SMALL)
    assert done.returncode == 0, done.stderr
    assert f"{run} holds an earlier run: its curves are in {run / 'earlier' / '1'} now" in done.stdout
    assert "its checkpoints will be replaced (to resume it: --ckpt_path last)" in done.stdout
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))  # of this fit only
    events.Reload()
    steps = [scalar.step for scalar in events.Scalars("loss")]
    assert len(set(steps)) == len(steps)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == names  # none beside the old ones


def test_a_damaged_checkpoint_is_named(tmp_path: Path, small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    path.write_bytes(b"PK half of it")
    for command in ("fit", "export"):
        line = one_error(
            capsys,
            command,
            f"--config={small_config}",
            f"--folder={tmp_path}",
            "--ckpt_path=last",
            *(["--output=x"] if command == "export" else []),
        )
        assert line == f"vlmq: ckpt_path: {path} is damaged (no whole checkpoint); take another one"


def test_scoring_needs_a_checkpoint(tmp_path: Path, small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = (f"--config={small_config}", f"--folder={tmp_path}", *SMALL)
    line = one_error(capsys, "test", *common)
    assert line == "vlmq: test: name a checkpoint to score: --ckpt_path best, last, or a file"
    line = one_error(capsys, "validate", *common, f"--ckpt_path={tmp_path / 'none.ckpt'}")
    assert line == f"vlmq: ckpt_path: there is no {tmp_path / 'none.ckpt'}; give best, last or a file"


def test_a_fit_with_nothing_to_resume_begins_and_says_so(
    tmp_path: Path, small_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (f"--config={small_config}", f"--folder={tmp_path}", *SMALL)
    checkpoints = tmp_path / "checkpoints"
    for command in ("validate", "test"):
        line = one_error(capsys, command, *common, "--ckpt_path=last")
        assert line.startswith(f"vlmq: ckpt_path: last: there is no last checkpoint in {checkpoints}")
    line = one_error(capsys, "fit", *common, "--ckpt_path=best")
    assert line.startswith(f"vlmq: ckpt_path: best: there is no best checkpoint in {checkpoints}")
    done = vlmq("fit", *common, "--ckpt_path=last")
    assert done.returncode == 0, done.stderr
    assert f"vlmq: there is no last checkpoint in {checkpoints}: a fresh start" in done.stderr.splitlines()
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["global_step"] == 2


def test_export_loads_without_us(run: Path, small_config: Path, tmp_path: Path) -> None:
    common = [f"--config={small_config}", f"--folder={run}", "--ckpt_path=last", *SMALL]
    done = vlmq("export", *common, f"--output={tmp_path / 'merged'}")
    assert done.returncode == 0, done.stderr
    assert AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").num_parameters() > 0
    # from the configuration that the run keeps
    saved = [f"--config={run / 'config.yaml'}", "--ckpt_path=last"]
    done = vlmq("export", *saved, f"--output={tmp_path / 'adapter'}", "--merged=false")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_collect_makes_demonstrations(run: Path, tmp_path: Path) -> None:
    done = vlmq("collect", f"--config={run / 'config.yaml'}", f"--folder={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "demonstrations in" in done.stdout
    assert list((tmp_path / "data").glob("*.parquet"))


def test_prompting_scores_untrained_models(tiny_folder: Path, tmp_path: Path) -> None:
    common = [f"--config={CONFIGS / 'blackjack.yaml'}", f"--folder={tmp_path}", "--episodes=2", "--threads=1"]
    common += ["--data.max_reply_tokens=6", "--thoughts=[true]", "--action_prompts=[minimum,random]"]
    done = vlmq("prompting", *common, "--models=[embedded, ./nowhere]")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "vlmq: models: not played: ./nowhere; see why above; all others are done"
    assert "./nowhere was not played: vlm.name: './nowhere' is no folder with a config.json" in done.stdout
    done = vlmq("prompting", *common, f"--models=[embedded, {tiny_folder}]")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "prompting.json").read_text())
    models = [(cell["model"], cell["action_prompt"], cell["thought"]) for cell in found["cells"]]
    assert models == [("", "random", False), ("embedded", "minimum", True), (str(tiny_folder), "minimum", True)]
    assert (found["settings"]["env"], found["settings"]["max_reply_tokens"]) == ("Blackjack", 6)
    assert (tmp_path / "prompting.md").read_text().count("| minimum | on |") == 4  # two models in two tables
    assert (tmp_path / "prompting.png").is_file()


def test_blackjack_is_fitted_and_scored_exactly(tiny_folder: Path, tmp_path: Path) -> None:
    config = shrunk("blackjack.yaml", tiny_folder, tmp_path)
    done = vlmq("fit", f"--config={config}", f"--folder={tmp_path}", *SMALL)
    assert done.returncode == 0, done.stderr
    (board,) = json.loads((tmp_path / "results.json").read_text())["scoreboards"].values()
    # the tiny VLM says nothing valid, which counts as standing
    assert board["valid"] == 0
    assert board["win"] == pytest.approx(ALWAYS_STAND, abs=1e-3)


def test_an_environment_s_own_error_is_shown_whole(
    tmp_path: Path, small_config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tests = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests / "helpers"), str(tests.parent)]))
    config = yaml.safe_load(small_config.read_text())
    config["data"]["init_args"]["environment"]["init_args"]["env"] = {"class_path": "flaky_env.Picky"}
    path = tmp_path / "picky.yaml"
    path.write_text(yaml.safe_dump(config))
    common = ("fit", f"--config={path}", f"--folder={tmp_path}", *SMALL)
    done = vlmq(*common)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: invalid literal for int() with base 10: 'seven'"
    assert 'return int("seven")' in done.stderr
    line = one_error(capsys, *common, "--data.environment.init_args.env.init_args.number=8")
    assert line.endswith("number 8 is not seven")  # its constructor's


def one_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says of wrong arguments: one line."""
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    assert stopped.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line and not line.startswith("Seed set")]
    assert len(lines) == 1, lines
    return lines[0]


def test_errors_of_a_configuration_are_one_line(
    small_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(small_config.read_text())
    config["model"]["init_args"]["learning_rate"] = 1
    config["folder"] = str(tmp_path)
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(config))
    line = one_error(capsys, "fit", f"--config={bad}")
    number = bad.read_text().splitlines().index("    learning_rate: 1") + 1
    assert line.startswith(f"vlmq: {bad}, line {number}: Parser key")
    assert "'learning_rate' is not accepted; see `vlmq fit --help`" in line
    bad.write_text("model: [\nseed_everything: 1")
    assert f"in {bad}, line 1" in one_error(capsys, "fit", "--config", str(bad))
    common = ("fit", f"--config={small_config}", f"--folder={tmp_path}", "--threads=1")
    assert "'turnz' is not accepted" in one_error(capsys, *common, "--data.turnz=3")
    line = one_error(capsys, *common, "--model.lr=much")  # the file has a good one
    assert line.startswith("vlmq: Parser key")
    assert line.endswith("Expected a <class 'float'>. Got value: much")
    line = one_error(capsys, *common, "--model.vlm.dtype=bf16")
    assert line.startswith("vlmq: vlm.dtype: 'bf16' is no type of torch")
    assert "logger" in one_error(capsys, *common, "--trainer.logger=false")  # LearningRateMonitor needs one
    line = one_error(capsys, *common, "--model.vlm.lora_targets=[Wqkv]")
    assert line.startswith("vlmq: vlm.lora_targets: ['Wqkv'] match no linear layer")
    LlamaConfig(hidden_size=64, num_hidden_layers=1).save_pretrained(tmp_path / "text")
    line = one_error(capsys, *common, f"--model.vlm.name={tmp_path / 'text'}")
    assert line.endswith("has no image input; choose a vision-language model")


def test_bf16_is_taken_where_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert _precision() == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert _precision() is None


def test_a_damaged_shard_is_named(run: Path, small_config: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run / "data", tmp_path / "data")
    shard = sorted((tmp_path / "data").glob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:200])
    done = vlmq("fit", f"--config={small_config}", f"--folder={tmp_path}", *SMALL)
    assert done.returncode == 1
    assert shard.name in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))  # the paper's: test_paper.py
def test_every_configuration_fits(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = [*SMALL, "--trainer.devices=1", "--trainer.strategy=auto", "--trainer.num_sanity_val_steps=0"]
    config = shrunk(name, tiny_folder, tmp_path)
    if "OfflineToOnline" in config.read_text():
        arguments.append("--data.init_args.min_turns=4")
    done = vlmq("fit", f"--config={config}", f"--folder={tmp_path / 'run'}", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 2
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
