"""Environments in processes of their own: the same play, and what comes of one that dies, hangs or raises."""

import contextlib
import copy
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flaky_env import Flaky

from lightning_vlmq.envs import AgentEnv, BabyAI, EpisodeLostError, NumberLine, WorkerEnv
from lightning_vlmq.parsing import JsonParser
from lightning_vlmq.policy import ExpertPolicy, RandomPolicy
from lightning_vlmq.rollout import Rollout, play
from lightning_vlmq.turns import Episode

pytestmark = pytest.mark.filterwarnings("ignore:environment .*started anew")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


def _played(env: AgentEnv, seeds: int = 6) -> list[Episode]:
    found = play(env, [RandomPolicy(), ExpertPolicy()], range(seeds), parallel=3)
    return sorted(found, key=lambda episode: episode.turns[0].seed)


@pytest.mark.parametrize("task", [NumberLine, BabyAI])
def test_plays_as_in_this_process(task: type) -> None:
    options = {"parser": JsonParser(), "step_limit": 4, "invalid_penalty": -1.0}
    assert _played(WorkerEnv(task(), workers=3, **options)) == _played(AgentEnv(task(), **options))


def test_is_known_as_the_environment_that_it_plays() -> None:
    """A demonstration set goes on where an ``AgentEnv`` has begun it."""
    assert WorkerEnv(NumberLine(), workers=2, step_limit=7).settings == AgentEnv(NumberLine(), step_limit=7).settings


def test_a_series_of_seeds_goes_on_as_in_this_process() -> None:
    found = []
    for env in (AgentEnv(NumberLine()), WorkerEnv(NumberLine())):
        texts = [env.reset(seed=3).images, env.reset().images, env.reset().images]
        found.append((texts, env.seed, env.random_action(), env.expert_action()))
        env.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("what", ["die", "hang", "raise"])
def test_a_lost_episode_ends_truncated_and_the_next_begins(what: str) -> None:
    """Seed 1 fails in its third step: two turns of it are there, those of the other seeds are as ever."""
    slow = WorkerEnv(Flaky({"1:3": what}), workers=2, timeout=3.0)
    env = AgentEnv(Flaky())
    options = [{"start": 0, "target": 5}] * 4
    rollout = Rollout(slow, zip(range(4), options, strict=True), 2)
    found = {}
    while rollout.running:
        found |= {episode.turns[0].seed: episode for episode in rollout.turn([ExpertPolicy()])}
    assert len(rollout.failures) == 1
    rollout.close()
    expected = {e.turns[0].seed: e for e in play(env, [ExpertPolicy()], range(4), options=options)}
    assert [len(found[seed]) for seed in range(4)] == [5, 2, 5, 5]
    assert found[1].turns[:1] == expected[1].turns[:1]
    assert (found[1].turns[1].truncated, expected[1].turns[1].truncated) == (True, False)
    assert found[1].turns[2].observation == expected[1].turns[2].observation
    assert {seed: found[seed] for seed in (0, 2, 3)} == {seed: expected[seed] for seed in (0, 2, 3)}


def test_a_seed_whose_reset_fails_is_left_out() -> None:
    env = WorkerEnv(Flaky({"1:0": "die", "3:0": "raise"}), workers=2)
    rollout = Rollout(env, ((seed, {}) for seed in range(5)), 2)
    found = []
    while rollout.running:
        found += rollout.turn([ExpertPolicy()])
    rollout.close()
    assert sorted(episode.turns[0].seed for episode in found) == [0, 2, 4]
    assert len(rollout.failures) == 2


def test_an_expert_is_asked_in_the_process_that_was_lost() -> None:
    """The process is gone when the second action is asked for: the episode ends there, the next one is whole."""
    env = WorkerEnv(Flaky(), workers=1)
    options = {"start": 0, "target": 5}
    rollout = Rollout(env, ((seed, options) for seed in range(2)), 1)
    assert not rollout.turn([ExpertPolicy()])
    os.kill(rollout._running[0].env._process.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    (lost,) = rollout.turn([ExpertPolicy()])
    assert (len(lost), lost.turns[0].truncated) == (1, True)
    for _ in range(5):
        found = rollout.turn([ExpertPolicy()])
    assert [episode.goal for episode in found] == [True]
    assert len(rollout.failures) == 1
    rollout.close()


def test_what_ended_is_kept_where_the_next_reset_fails_for_good() -> None:
    """Seeds 0 and 1 reach the goal in one step, 2 cannot begin."""
    starts = [(seed, {"start": 0, "target": 1}) for seed in range(3)]
    rollout = Rollout(WorkerEnv(Flaky({"2:0": "raise"}), max_failures=1), starts, 2)
    with pytest.raises(RuntimeError, match="1 failures in a row"):
        rollout.turn([ExpertPolicy()])
    rollout.close()
    assert [(e.turns[0].seed, e.goal, e.turns[0].truncated) for e in rollout.open_episodes()] == [
        (0, True, False),
        (1, True, False),
    ]


def test_nothing_is_left_where_it_cannot_even_begin(tmp_path: Path) -> None:
    env = WorkerEnv(Flaky({"1:0": "raise"}, pids=str(tmp_path)), max_failures=1)
    with pytest.raises(RuntimeError, match=r"seed 1, reset\(\)"):
        Rollout(env, ((seed, {}) for seed in range(2)), 2)
    pids = [int(pid) for path in tmp_path.iterdir() for pid in path.name.split("-")]
    assert len(pids) == 4
    assert _until(lambda: not any(map(_alive, pids)))


def test_an_evaluation_without_an_episode_says_why() -> None:
    env = WorkerEnv(Flaky({"*:1": "raise"}), workers=2)
    with pytest.raises(RuntimeError, match=r"no episode could be played: .* seven by nothing"):
        list(play(env, [ExpertPolicy()], range(4)))


def test_closing_does_not_wait_for_those_that_hang() -> None:
    rollout = Rollout(WorkerEnv(Flaky({"*:1": "hang"})), ((seed, {}) for seed in range(9)), 3)
    player = threading.Thread(target=_turn, args=(rollout,))
    player.start()
    time.sleep(1.0)
    begin = time.monotonic()
    rollout.close()
    player.join(5.0)
    assert not player.is_alive()
    assert time.monotonic() - begin < 4.0


def _turn(rollout: Rollout) -> None:
    with contextlib.suppress(RuntimeError):
        rollout.turn([RandomPolicy()])


@pytest.mark.parametrize("step", [0, 1])
def test_fails_for_good_with_the_environments_own_traceback(step: int) -> None:
    """Each new process fails before a step was played."""
    env = WorkerEnv(Flaky({f"*:{step}": "raise"}), max_failures=3)
    with pytest.raises(RuntimeError) as error:
        list(play(env, [RandomPolicy()], range(9), parallel=1))
    text = str(error.value)
    what = "step" if step else "reset"
    assert text.startswith(
        f"environment NumberLine, seed 2, {what}(): ZeroDivisionError: seven by nothing; 3 failures in"
    )
    assert "3 failures in a row\nTraceback" in text
    assert "flaky_env.py" in text


def test_a_step_between_failures_lets_it_go_on() -> None:
    """Each of seven episodes fails in its second step, two in a row would end it."""
    env = WorkerEnv(Flaky({"*:2": "raise"}), max_failures=2)
    options = [{"start": 0, "target": 5}] * 7
    assert [len(e) for e in play(env, [ExpertPolicy()], range(7), options=options)] == [1] * 7


def test_says_how_a_process_died() -> None:
    env = WorkerEnv(Flaky({"*:1": "die"}), max_failures=1)
    env.reset(seed=0)
    with pytest.raises(
        RuntimeError, match=r"^environment NumberLine, seed 0, step\(\): the process died \(exit code -9\); 1 fa"
    ):
        env.step("[action] +")


def test_says_how_long_it_waited() -> None:
    env = WorkerEnv(Flaky({"*:1": "hang"}), timeout=1.5, max_failures=2)
    env.reset(seed=0)
    with pytest.raises(EpisodeLostError, match=r"step\(\): no answer within timeout = 1\.5 s"):
        env.step("[action] +")
    with pytest.raises(EpisodeLostError, match=r"call reset\(\)"):
        env.step("[action] +")
    assert (env.expert_action(), env.random_action()) == ("", "")
    env.close()
    with pytest.raises(RuntimeError, match="is closed"):
        env.reset(seed=0)


def test_over_is_over() -> None:
    env = WorkerEnv(NumberLine())
    with pytest.raises(ValueError, match="call reset"):
        env.step("[action] +")
    env.reset(seed=0, options={"start": 0, "target": 1})
    assert env.step("[action] +").goal
    with pytest.raises(ValueError, match="call reset"):
        env.step("[action] +")
    env.close()


def test_copies_have_processes_of_their_own(tmp_path: Path) -> None:
    env = WorkerEnv(Flaky(pids=str(tmp_path)))
    env.reset(seed=0)
    other = copy.deepcopy(env)
    other.reset(seed=0)
    assert len(list(tmp_path.iterdir())) == 2
    for each in (env, other):
        each.close()


def test_steps_at_once() -> None:
    """Eight environments that take a second each take far less than eight together."""
    env = WorkerEnv(Flaky({"*:1": "take a second"}), workers=8)
    rollout = Rollout(env, ((seed, {"start": 0, "target": 5}) for seed in range(99)), 8)
    begin = time.monotonic()
    rollout.turn([ExpertPolicy()])
    assert 1.0 <= time.monotonic() - begin < 4.0
    rollout.close()


@pytest.mark.parametrize("what", ["hang", "die", "raise"])
def test_nothing_is_left_of_a_process_that_failed(tmp_path: Path, what: str) -> None:
    env = WorkerEnv(Flaky({"0:1": what}, pids=str(tmp_path)), timeout=1.0)
    env.reset(seed=0)
    with pytest.raises(EpisodeLostError):
        env.step("[action] +")
    pids = [int(pid) for pid in next(tmp_path.iterdir()).name.split("-")]
    assert _until(lambda: not any(map(_alive, pids)))
    env.close()


_TRAINER = """
import time
from lightning_vlmq.envs import WorkerEnv
from flaky_env import Flaky
env = WorkerEnv(Flaky({{"0:1": "{what}"}}, pids={folder!r}))
env.reset(seed=0)
env.step("[action] +")
"""


@pytest.mark.parametrize(
    ("how", "what"), [(signal.SIGKILL, "hang"), (signal.SIGINT, "hang"), (signal.SIGINT, "hang in C")]
)
def test_nothing_is_left_of_a_killed_trainer(tmp_path: Path, how: signal.Signals, what: str) -> None:
    """Also where the worker hangs and so never asks whether anyone is there."""
    root = Path(__file__).parents[2]
    pids = tmp_path / "pids"
    pids.mkdir()
    script = tmp_path / "trainer.py"  # without a main guard, it would begin anew in every worker
    script.write_text(f"if __name__ == '__main__':\n{_indented(_TRAINER.format(folder=str(pids), what=what))}")
    trainer = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}:{root}/tests/helpers"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    assert _until(lambda: any(pids.iterdir()))
    found = [int(pid) for pid in next(pids.iterdir()).name.split("-")]
    assert all(map(_alive, found))
    time.sleep(0.5)
    trainer.send_signal(how)
    trainer.wait(30)
    assert _until(lambda: not any(map(_alive, found)))


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def test_refuses_what_it_cannot_send() -> None:
    env = NumberLine()
    env.window = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"env NumberLine cannot be sent to a process .*: make that in its reset\(\)"):
        WorkerEnv(env)


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"timeout": 0.0}, {"max_failures": 0}])
def test_refuses_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        WorkerEnv(NumberLine(), **wrong)  # type: ignore[arg-type]
