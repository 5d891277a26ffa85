import gc
import json
import shutil
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from lightning_vlmq.batches import TurnEncoder
from lightning_vlmq.envs import AgentEnv, Blackjack
from lightning_vlmq.policy import Reply
from lightning_vlmq.prompting import Cell, Prompting, Sheet, playing, print_sheet, write_report
from lightning_vlmq.prompts import PromptMethod
from lightning_vlmq.turns import Episode, Observation
from lightning_vlmq.vlm import VLM

RANDOM = Cell("", "random", False)
SHORT: dict[str, Any] = {"episodes": 4, "max_reply_tokens": 6, "thought_tokens": 4}


class Script:
    """In place of a VLM's policy: the expert's action behind a thought, no action without one or after a forced tag."""

    name = "script"

    def __init__(self, encoder: TurnEncoder, *, temperature: float, action_prompt: str, seed: int) -> None:
        assert encoder.max_reply_tokens == (10 if encoder.prompt.thought else 6)
        self.thought, self.tag = encoder.prompt.thought, action_prompt == "minimum"

    def reply(self, envs: Sequence[AgentEnv], observations: Sequence[Observation]) -> list[Reply]:
        if self.tag:
            return [Reply("[action] up") for _ in envs]
        return [Reply(f"So: [action] {env.expert_action()}" if self.thought else "So.") for env in envs]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playing, "VLMPolicy", Script)


@pytest.fixture
def seeds_played(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Seeds of each cell that is played."""
    found: list[list[int]] = []

    def noting(env: AgentEnv, policies: Any, seeds: Sequence[int], **options: Any) -> Iterator[Episode]:
        found.append(list(seeds))
        return play(env, policies, seeds, **options)

    play = playing.play
    monkeypatch.setattr(playing, "play", noting)
    return found


def prompting(env: AgentEnv, **options: Any) -> Prompting:
    return Prompting(env, PromptMethod(), **SHORT | options)


def run(env: AgentEnv, folder: Path, models: list[Any], **options: Any) -> Sheet:
    return prompting(env, **options).run(folder, list(map(str, models)), ["agent", "minimum", "random"], [False, True])


@pytest.mark.usefixtures("scripted")
def test_every_cell_is_scored(env: AgentEnv, tiny_folder: Path, tmp_path: Path, seeds_played: list[list[int]]) -> None:
    sheet = run(env, tmp_path, [tiny_folder, "embedded"], seed=2)
    assert len(sheet.results) == 2 * 4 + 1
    for model in (str(tiny_folder), "embedded"):
        found = {(c.action_prompt, c.thought): r.scores for c, r in sheet.results.items() if c.model == model}
        assert {way: s["syntax_accuracy"] for way, s in found.items()} == {
            ("agent", False): 0,
            ("agent", True): 1,
            ("minimum", False): 0,
            ("minimum", True): 0,
        }
        assert found["agent", True]["goal_reached"] == found["agent", True]["mean_return"] == 1
        assert found["agent", False]["goal_reached"] == 0
    assert sheet.results[RANDOM].scores["syntax_accuracy"] == 1
    assert seeds_played == [[100_008, 100_009, 100_010, 100_011]] * 9


@pytest.mark.usefixtures("scripted")
def test_finished_cells_are_not_played_again(
    env: AgentEnv, tiny_folder: Path, tmp_path: Path, seeds_played: list[list[int]]
) -> None:
    first = prompting(env).run(tmp_path, [str(tiny_folder)], ["agent"], [False])
    before = (tmp_path / "prompting.json").read_text()
    again = prompting(env, batch_size=2).run(tmp_path, [str(tiny_folder)], ["agent"], [False])
    assert again.results == first.results
    assert len(seeds_played) == 1
    assert (tmp_path / "prompting.json").read_text() == before
    run(env, tmp_path, [tiny_folder])
    assert len(seeds_played) == 5  # the others of the five
    with pytest.raises(ValueError, match=r"prompting.json: these cells were played with temperature = 0.4, not 1.0"):
        run(env, tmp_path, [tiny_folder], temperature=1.0)
    with pytest.raises(ValueError, match=r"with environment.step_limit = 10, not 9"):
        run(AgentEnv(env.env, step_limit=9), tmp_path, [tiny_folder])


@pytest.mark.usefixtures("scripted")
def test_an_interrupted_run_keeps_what_is_finished(
    env: AgentEnv, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds_played: list[list[int]]
) -> None:
    reply = Script.reply

    def interrupted(self: Script, *arguments: Any) -> list[Reply]:
        if self.thought:
            raise KeyboardInterrupt
        return reply(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Script, "reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(env, tmp_path, [tiny_folder])
    cells = json.loads((tmp_path / "prompting.json").read_text())["cells"]
    assert [(c["action_prompt"], c["thought"]) for c in cells] == [("random", False), ("agent", False)]
    seeds_played.clear()
    assert len(run(env, tmp_path, [tiny_folder]).results) == 5
    assert len(seeds_played) == 3


@pytest.mark.usefixtures("scripted")
def test_a_broken_model_is_named_and_the_others_are_played(env: AgentEnv, tiny_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    sheet = run(env, tmp_path, ["./nowhere", broken, tiny_folder])
    assert sheet.failed.keys() == {"./nowhere", str(broken)}
    assert "is no folder with a config.json" in sheet.failed["./nowhere"]
    assert sheet.failed[str(broken)].startswith("SafetensorError: ")
    assert {cell.model for cell in sheet.results} == {str(tiny_folder), ""}
    markdown = write_report(sheet)[0].read_text()
    assert "| broken | not played |" in markdown
    assert f"- {broken} was not played: SafetensorError" in markdown
    assert run(env, tmp_path, [tiny_folder]).failed == {}  # of this run only


def test_other_weights_under_the_same_name_are_refused(env: AgentEnv, tiny_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    assert not prompting(env).run(tmp_path, [str(model)], ["agent"], [False]).failed
    weights = load_file(model / "model.safetensors")
    save_file({name: weight * 1.1 for name, weight in weights.items()}, model / "model.safetensors", {"format": "pt"})
    sheet = prompting(env).run(tmp_path, [str(model)], ["minimum"], [False])
    assert "its other cells were played with other weights" in sheet.failed[str(model)]


def test_one_model_at_a_time(env: AgentEnv, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[VLM]] = []

    def loading(*arguments: Any, **options: Any) -> VLM:
        assert [ref() for ref in loaded] == [None] * len(loaded)
        vlm = VLM(*arguments, **options)
        loaded.append(weakref.ref(vlm))
        return vlm

    monkeypatch.setattr(playing, "VLM", loading)
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    assert not run(env, tmp_path, [tiny_folder, other]).failed
    gc.collect()
    assert [ref() for ref in loaded] == [None, None]


def test_a_real_model_writes_behind_the_tag_and_in_its_limits(tiny_folder: Path, tmp_path: Path) -> None:
    sheet = run(AgentEnv(Blackjack()), tmp_path, [tiny_folder], temperature=1.0)
    assert not sheet.failed
    found = {(c.action_prompt, c.thought): r for c, r in sheet.results.items()}
    for thought, limit in ((False, 6), (True, 10)):
        # a random model hardly ever stops by itself; of the tag's tokens it writes none
        tag = len(VLM(str(tiny_folder)).tokenizer("[action]", add_special_tokens=False)["input_ids"])
        assert limit - 1 < found["agent", thought].tokens_a_reply <= limit
        assert limit - tag - 1 < found["minimum", thought].tokens_a_reply <= limit - tag
        assert all(reply.startswith("[action]") for reply, _ in found["minimum", thought].replies)
        assert not any(reply.startswith("[action]") for reply, _ in found["agent", thought].replies)
    assert found["random", False].scores["syntax_accuracy"] == 1
    assert found["random", False].tokens_a_reply == 0


def test_the_same_command_gives_the_same_scores(env: AgentEnv, tiny_folder: Path, tmp_path: Path) -> None:
    one, two = (run(env, tmp_path / name, [tiny_folder]).results for name in ("one", "two"))
    assert [(c, r.scores, r.replies) for c, r in one.items()] == [(c, r.scores, r.replies) for c, r in two.items()]


def test_what_cannot_be_played_is_said_at_once(env: AgentEnv) -> None:
    with pytest.raises(ValueError, match="episodes: 1 have no spread; play at least 2"):
        prompting(env, episodes=1)
    with pytest.raises(ValueError, match=r"give data\.environment"):
        Prompting(None, PromptMethod())


@pytest.mark.usefixtures("scripted")
def test_the_report(
    env: AgentEnv,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script.reply
    monkeypatch.setattr(
        Script, "reply", lambda *a: [r._replace(text=r.text.replace("So.", "a|b\n`c`")) for r in script(*a)]
    )
    models = [tmp_path / "one" / "vlm", tmp_path / "two" / "vlm"]
    for model in models:
        shutil.copytree(tiny_folder, model)
    sheet = run(env, tmp_path, models)
    print_sheet(sheet)
    shown = capsys.readouterr().out
    assert "one/vlm" in shown
    assert "0.0 (0.0 to 49.0)" in shown  # 0 of 4 episodes, Wilson
    markdown, picture = write_report(sheet)
    lines = markdown.read_text().splitlines()
    table = [line.split(" | ")[:5] for line in lines if line.startswith(("| one/vlm", "| two/vlm", "| no model"))][:9]
    assert [row[:3] for row in table[4:]] == [
        ["| two/vlm", "agent", "off"],
        ["| two/vlm", "agent", "on"],
        ["| two/vlm", "minimum", "off"],
        ["| two/vlm", "minimum", "on"],
        ["| no model", "random", "-"],
    ]
    assert table[5][3:] == ["100.0 (51.0 to 100.0)", "100.0 (51.0 to 100.0)"]
    assert "| one/vlm | agent | off | `\"a\\|b\\n'c'\"` 100 % |" in lines
    with Image.open(picture) as image:
        assert image.width >= 760
