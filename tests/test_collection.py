import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flaky_env import Flaky

from lightning_vlmq import AgentEnv, TurnEncoder, TurnStore, collect
from lightning_vlmq.envs import BabyAI, Blackjack, NumberLine, WorkerEnv
from lightning_vlmq.policy import ExpertPolicy
from lightning_vlmq.rollout import play
from lightning_vlmq.turns import Episode


def test_collection_is_reproducible_resumable_and_not_repeated(
    encoder: TurnEncoder, env: AgentEnv, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"mixture": {"random": 0.7, "base": 0.3}, "seed": 4, "parallel": 4}
    one = collect(env, encoder, tmp_path / "one", turns=90, **settings)
    two = collect(env, encoder, tmp_path / "two", turns=90, **settings)
    assert [t for e in one.episodes() for t in e.turns] == [t for e in two.episodes() for t in e.turns]
    policies = {t.policy for e in one.episodes() for t in e.turns if t.reply is not None}
    assert policies == {"random", "base"}
    rows = len(one)
    assert len(collect(env, encoder, tmp_path / "one", turns=90, **settings)) == rows
    with pytest.raises(ValueError, match="these turns were collected with turns = 90, not 91"):
        collect(env, encoder, tmp_path / "one", turns=91, **settings)


def test_unknown_policies_and_bad_shares_are_named(encoder: TurnEncoder, env: AgentEnv, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mixture: unknown policy 'oracle'; choose from random, base"):
        collect(env, encoder, tmp_path / "a", turns=5, mixture={"oracle": 1.0})
    with pytest.raises(
        ValueError, match=r"mixture: shares of policies must be at least 0 and sum to 1, not {'random': 0.5}"
    ):
        collect(env, encoder, tmp_path / "a", turns=5, mixture={"random": 0.5})
    assert collect(env, encoder, tmp_path / "a", turns=5, mixture={"random": 1.0}, parallel=2)  # nothing was kept
    (tmp_path / "a" / "collection.json").write_text('{"seed')
    with pytest.raises(ValueError, match=r"collection.json is damaged; delete it and the same command goes on"):
        collect(env, encoder, tmp_path / "a", turns=5, mixture={"random": 1.0}, parallel=2)


def test_a_misled_expert_plays_where_there_is_one() -> None:
    env = AgentEnv(BabyAI(), step_limit=20)
    (episode,) = play(env, [ExpertPolicy(misled=True)], [0])
    assert [turn.policy for turn in episode.turns[:-1]] == ["misled"] * 20
    assert not episode.goal
    with pytest.raises(ValueError, match="NumberLine has no misled policy; random and base play everything"):
        list(play(AgentEnv(NumberLine()), [ExpertPolicy(misled=True)], [0]))


def test_the_expert_solves_numberline_and_plays_blackjack_well() -> None:
    episodes = list(play(AgentEnv(NumberLine()), [ExpertPolicy()], range(50)))
    assert all(e.goal and e.env_return == 1.0 for e in episodes)
    hands = list(play(AgentEnv(Blackjack()), [ExpertPolicy()], range(400)))
    assert 0.33 < sum(e.goal for e in hands) / 400 < 0.53  # .4295 +- 4 standard errors


@pytest.mark.filterwarnings("ignore:environment .*started anew")
def test_what_an_environment_lost_is_not_played_again(
    encoder: TurnEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third of eight episodes of a round cannot begin; the folder is full all the same."""
    env = WorkerEnv(Flaky({"1000002:0": "raise"}))
    store = collect(env, encoder, tmp_path, turns=8, mixture={"expert": 1.0}, parallel=2)
    assert {turn.seed for turn in store} == {1_000_000 + number for number in range(8) if number != 2}
    monkeypatch.setattr("lightning_vlmq.collection.play", None)
    assert len(collect(env, encoder, tmp_path, turns=8, mixture={"expert": 1.0}, parallel=2)) == len(store)


def test_settings_are_written_before_the_first_turn(encoder: TurnEncoder, env: AgentEnv, tmp_path: Path) -> None:
    collect(env, encoder, tmp_path, turns=10, mixture={"expert": 1.0}, seed=7)
    settings = json.loads((tmp_path / "collection.json").read_text())
    assert settings["mixture"] == {"expert": 1.0}
    assert settings["seed"] == 7


@pytest.mark.parametrize("turns", [90, 5])  # 5: the turns are there when the first round is interrupted
def test_an_interrupted_collection_goes_on(encoder: TurnEncoder, tmp_path: Path, monkeypatch: Any, turns: int) -> None:
    settings: dict[str, Any] = {"turns": turns, "mixture": {"random": 1.0}, "seed": 4, "parallel": 4}
    whole = collect(AgentEnv(NumberLine()), encoder, tmp_path / "whole", **settings)
    append, names = TurnStore.append, []

    def interrupted(store: TurnStore, episode: Episode) -> None:
        if len(names) == 3:
            raise KeyboardInterrupt
        names.append(episode.turns[0].episode)
        append(store, episode)

    monkeypatch.setattr(TurnStore, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(AgentEnv(NumberLine()), encoder, tmp_path / "part", **settings)
    monkeypatch.undo()
    # within a round of 16, and not the first 3 of its seeds
    kept = [e.turns[0].episode for e in TurnStore(tmp_path / "part").episodes()]
    assert kept == names
    assert sorted(kept) != sorted(e.turns[0].episode for e in whole.episodes())[:3]
    part = collect(AgentEnv(NumberLine()), encoder, tmp_path / "part", **settings)

    def played(store: TurnStore) -> dict[str, Episode]:
        return {e.turns[0].episode: e for e in store.episodes()}

    assert played(part) == played(whole)  # random actions depend on the episode's seed alone


def test_other_settings_of_the_environment_are_refused(encoder: TurnEncoder, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"turns": 5, "mixture": {"random": 1.0}, "parallel": 2}
    collect(AgentEnv(NumberLine()), encoder, tmp_path, **settings)
    collect(AgentEnv(NumberLine()), encoder, tmp_path, **settings)
    with pytest.raises(ValueError, match=r"with environment.end_penalty = -10.0, not -200.0"):
        collect(AgentEnv(NumberLine(), end_penalty=-200.0), encoder, tmp_path, **settings)
    with pytest.raises(ValueError, match=r"with environment.env.font_sizes = \[\d+, \d+\], not \[20, 20\]"):
        collect(AgentEnv(NumberLine(font_size=20)), encoder, tmp_path, **settings)


def test_an_action_prompt_begins_the_base_vlms_replies(encoder: TurnEncoder, env: AgentEnv, tmp_path: Path) -> None:
    store = collect(env, encoder, tmp_path, turns=5, mixture={"base_minimum": 1.0}, parallel=2)
    turns = [turn for episode in store.episodes() for turn in episode.turns if turn.reply is not None]
    assert all(turn.reply.startswith("[action]") and turn.policy == "base_minimum" for turn in turns)
    assert all(turn.forced > 0 for turn in turns)


def test_of_two_that_begin_at_once_one_collects(encoder: TurnEncoder, env: AgentEnv, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(collect, env, encoder, tmp_path, turns=60, mixture={"random": 1.0}, parallel=4)
            for _ in range(2)
        ]
        lengths = [len(job.result()) for job in jobs]
    episodes = [turn.episode for turn in TurnStore(tmp_path) if turn.index == 0]
    assert len(set(episodes)) == len(episodes)
    assert lengths == [len(TurnStore(tmp_path))] * 2
