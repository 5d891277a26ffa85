import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attached import attach

from lightning_vlmq import VLM, VLMQ, AgentEnv, Demonstrations, RandomZoomOut, TurnEncoder, TurnStore, collect
from lightning_vlmq.envs import NumberLine
from lightning_vlmq.policy import ExpertPolicy, RandomPolicy
from lightning_vlmq.relabelling import relabel
from lightning_vlmq.rollout import play
from lightning_vlmq.turns import Episode, Observation, Turn


def _data(folder: Path, **options: Any) -> Demonstrations:
    settings: dict[str, Any] = {"turns": 120, "mixture": {"random": 1.0}, "batch_size": 8, "seed": 3} | options
    return Demonstrations(str(folder), AgentEnv(NumberLine()), **settings)


def _drawn(data: Demonstrations, batches: int) -> list[tuple[str, int]]:
    """Episode and index of the turns of the next batches; their successors are checked."""
    drawn: list[tuple[str, int]] = []

    def note(turns: list[Turn], successors: list[Turn]) -> None:
        for turn, after in zip(turns, successors, strict=True):
            assert (after.episode, after.index) == (turn.episode, turn.index + 1)
            drawn.append((turn.episode, turn.index))

    data.encoder = SimpleNamespace(batch=note)  # type: ignore[assignment]
    for _ in itertools.islice(data._training_batches(), batches):
        pass
    return drawn


def test_every_turn_is_drawn_once_in_each_pass(vlm: VLM, tmp_path: Path) -> None:
    data = attach(_data(tmp_path, turns=1, holdout=0.0), vlm)
    data.training_rows = data.training_rows[:42]  # batches of 8 do not divide it
    drawn = _drawn(data, 21)
    passes = [drawn[start : start + 42] for start in range(0, 168, 42)]
    assert all(sorted(one) == sorted(passes[0]) and len(set(one)) == 42 for one in passes)
    assert len({tuple(one) for one in passes}) == 4
    data.training_rows, data._drawn = data.training_rows[:3], 0  # fewer than a batch
    assert set(Counter(_drawn(data, 3)).values()) == {8}


def test_ranks_share_a_pass(vlm: VLM, tmp_path: Path) -> None:
    drawn = []
    for rank in range(2):
        data = attach(_data(tmp_path, turns=1, holdout=0.0), vlm)
        data.training_rows = data.training_rows[:48]
        data.trainer.global_rank, data.trainer.world_size = rank, 2  # type: ignore[union-attr,misc]
        drawn += _drawn(data, 3)
    assert len(set(drawn)) == 48


def test_batches_are_a_function_of_the_seed_and_their_number(vlm: VLM, tmp_path: Path) -> None:
    one, two = attach(_data(tmp_path), vlm), attach(_data(tmp_path), vlm)
    first = [batch.reward.tolist() for batch, _ in zip(one._training_batches(), range(4), strict=False)]
    two.load_state_dict({"drawn": 2})
    resumed = [batch.reward.tolist() for batch, _ in zip(two._training_batches(), range(2), strict=False)]
    assert resumed == first[2:]
    assert len({tuple(rewards) for rewards in first}) > 1


def test_held_out_episodes_are_whole_and_apart(vlm: VLM, tmp_path: Path) -> None:
    data = attach(_data(tmp_path, holdout=0.3), vlm)
    episodes = data.store.columns(["episode"])["episode"]
    training = {episodes[row] for row in data.training_rows}
    held_out = {episodes[row] for row in data.validation_rows}
    assert held_out
    assert not training & held_out
    share = len(data.validation_rows) / len(data.store.samples)
    assert 0.15 < share < 0.35


def test_turns_to_look_at_are_held_out_ones_spread_evenly(vlm: VLM, tmp_path: Path) -> None:
    data = attach(_data(tmp_path, turns=1), vlm)
    data.validation_rows = data.training_rows[[5, 7, 9, 20, 30]]
    shown = [(turn.episode, turn.index) for turn, _ in data.held_out(3)]
    assert shown == [
        (data.store[row].episode, data.store[row].index) for row in data.training_rows[[5, 9, 30]].tolist()
    ]
    for turn, after in data.held_out(99):
        assert (after.episode, after.index) == (turn.episode, turn.index + 1)
    assert len(data.held_out(99)) == 5
    data.validation_rows = data.validation_rows[:0]
    assert len(data.held_out(99)) == 99  # of the training turns
    data.training_rows = data.training_rows[:0]
    assert data.held_out(3) == []


def test_no_turns_and_nothing_to_collect_is_named(vlm: VLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no turns to train on; run `vlmq collect`"):
        attach(Demonstrations(str(tmp_path / "empty"), turns=0), vlm)


def test_collected_turns_are_taken_as_they_are_on_request(vlm: VLM, encoder: TurnEncoder, tmp_path: Path) -> None:
    collect(AgentEnv(NumberLine()), encoder, tmp_path, turns=5, mixture={"random": 1.0}, parallel=2)
    with pytest.raises(ValueError, match=r"with turns = 5, not 120; .* set data.turns: 0 to train on them as they are"):
        attach(_data(tmp_path), vlm)
    for data in (_data(tmp_path, turns=0), Demonstrations(str(tmp_path))):
        assert len(attach(data, vlm).training_rows) > 5


def test_replies_that_cannot_be_learned_are_named_before_the_fit(vlm: VLM, env: AgentEnv, tmp_path: Path) -> None:
    with TurnStore(tmp_path) as store:
        for number, episode in enumerate(play(env, [RandomPolicy()], range(3))):
            reply = "[action] +" + " and on" * 9 * (number == 1)
            turns = [t if t.reply is None else dataclasses.replace(t, reply=reply) for t in episode.turns]
            store.append(Episode(tuple(turns)))
    with pytest.raises(ValueError, match=rf"{tmp_path}: turn 0 of .*: the reply has \d+ tokens, the limit is 12"):
        attach(Demonstrations(str(tmp_path), env, max_reply_tokens=12), vlm)


def test_so_are_those_that_our_tokenizer_made(vlm: VLM, encoder: TurnEncoder, tmp_path: Path) -> None:
    """The VLM's replies are cut at 24 tokens."""
    collect(AgentEnv(NumberLine()), encoder, tmp_path, turns=5, mixture={"base": 1.0}, parallel=2)
    with pytest.raises(ValueError, match=r"turn \d of episode .*: the reply has \d+ tokens, the limit is 3"):
        attach(Demonstrations(str(tmp_path), max_reply_tokens=3), vlm)


def test_turns_of_another_model_train_ours(vlm: VLM, encoder: TurnEncoder, env: AgentEnv, tmp_path: Path) -> None:
    store = TurnStore(tmp_path)
    for episode in play(env, [RandomPolicy()], range(6)):
        # ids of a tokenizer that is not ours must not be read
        turns = [
            t if t.reply is None else dataclasses.replace(t, reply_ids=(1, 2, 3), tokenizer="theirs")
            for t in episode.turns
        ]
        store.append(dataclasses.replace(episode, turns=tuple(turns)))
    store.flush()
    data = attach(Demonstrations(str(tmp_path), turns=0, batch_size=4, seed=0), vlm)
    batch = next(data._training_batches())
    texts = {vlm.tokenizer.decode(row[keep][:-1]) for row, keep in zip(batch.reply_ids, batch.mask, strict=True)}
    assert texts <= {"[action] +", "[action] -"}


def test_masks_alone_turn_the_data_into_sft_on_good_episodes(vlm: VLM, env: AgentEnv, tmp_path: Path) -> None:
    store = TurnStore(tmp_path / "all")
    for episode in play(env, [ExpertPolicy(), RandomPolicy()], range(20)):
        store.append(episode)
    store.flush()
    good = {e.turns[0].episode for e in store.episodes() if e.env_return > 0}
    relabel(store, tmp_path / "good", lambda t: dataclasses.replace(t, imitate=t.episode in good, td=False))
    data = attach(Demonstrations(str(tmp_path / "good"), turns=0, batch_size=32, seed=0), vlm)
    batch = next(data._training_batches())
    assert not batch.td.any()
    assert batch.imitate.all()
    assert {data.store[int(row)].episode for row in data.training_rows} <= good


def test_augmentation_changes_training_pictures_only(vlm: VLM, tmp_path: Path) -> None:
    zoom = RandomZoomOut((0.5, 0.8), p=0.7, variants=8)
    plain, changed, again = (
        attach(_data(tmp_path, augmentation=augmentation), vlm) for augmentation in (None, zoom, zoom)
    )

    def features(batches: Any) -> list[Any]:
        found = [batch for batch, _ in zip(batches, range(3), strict=False)]
        return [x for batch in found for x in (batch.inputs["image_features"], batch.next_inputs["image_features"])]

    before, after, same = (features(data._training_batches()) for data in (plain, changed, again))
    assert all((a != b).any() for a, b in zip(before, after, strict=True))
    assert all((a == b).all() for a, b in zip(after, same, strict=True))
    held_out = [features(data._validation_batches()) for data in (plain, changed)]
    assert all((a == b).all() for a, b in zip(*held_out, strict=True))
    # the same turns are drawn, and resuming goes on with the same pictures
    rewards = [next(data._training_batches()).reward.tolist() for data in (plain, changed)]
    assert rewards[0] == rewards[1]
    changed.load_state_dict({"drawn": 1})
    assert (features(changed._training_batches())[0] == after[2]).all()


def test_damaged_shards_are_skipped_and_their_episodes_played_anew(
    vlm: VLM, encoder: TurnEncoder, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"turns": 150, "mixture": {"random": 1.0}, "seed": 3, "parallel": 4}
    names = {e.turns[0].episode for e in collect(AgentEnv(NumberLine()), encoder, tmp_path, **settings).episodes()}
    shard = sorted(tmp_path.glob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(ValueError, match=f"{shard.name} is .*skip_damaged: true"):
        collect(AgentEnv(NumberLine()), encoder, tmp_path, **settings)
    with pytest.warns(UserWarning, match=shard.name):
        again = collect(AgentEnv(NumberLine()), encoder, tmp_path, **settings, skip_damaged=True)
    assert {e.turns[0].episode for e in again.episodes()} == names
    # through the DataModule, as the message advises
    with pytest.warns(UserWarning, match=shard.name):
        data = attach(_data(tmp_path, turns=150, parallel=4, skip_damaged=True), vlm)
    assert len(data.store.skipped) == 1
    assert next(data._training_batches()).mask.any()


def test_turns_that_no_loss_may_use_are_not_even_encoded(vlm: VLM, env: AgentEnv, tmp_path: Path) -> None:
    def too_long(turn: Turn) -> Turn:
        return dataclasses.replace(turn, reply="no " * 100, imitate=False, td=False) if turn.index == 1 else turn

    with TurnStore(tmp_path) as store:
        for episode in play(env, [RandomPolicy()], range(20)):
            store.append(Episode((*(too_long(turn) for turn in episode.turns[:-1]), episode.turns[-1])))
    data = attach(Demonstrations(str(tmp_path), turns=0, batch_size=64, holdout=0.0, seed=0), vlm)
    assert 0 < len(data.training_rows) < len(data.store.samples)
    assert next(data._training_batches()).mask.any()


def test_instructions_without_reward_train_beside_played_turns(vlm: VLM, env: AgentEnv, tmp_path: Path) -> None:
    """One folder holds both: the critic learns from played turns alone, instructions are imitated whatever it says."""
    answer = Turn("instructions", "i-0", 0, Observation(objective="Greet."), reply="hello", td=False, truncated=True)
    after = Turn("instructions", "i-0", 1, Observation(objective="Greet."))
    with TurnStore(tmp_path) as store:
        for episode in play(env, [RandomPolicy()], range(8)):
            store.append(episode)
        for number in range(20):
            rows = (dataclasses.replace(row, episode=f"i-{number}") for row in (answer, after))
            store.append(Episode(tuple(rows)))
    data = attach(Demonstrations(str(tmp_path), batch_size=32, holdout=0.0, seed=0), vlm)
    batch = next(data._training_batches())
    told = ~batch.td
    assert told.any()
    assert batch.td.any()
    module = VLMQ(vlm, threshold=1e9)  # nothing that is judged passes
    verdict = module.judge(batch).critic
    assert verdict is not None
    assert (verdict.weight[told][batch.mask[told]] == 1).all()  # type: ignore[index]
    assert (verdict.weight[~told] == 0).all()  # type: ignore[index]
    other = batch._replace(reward=torch.where(told, 50.0, batch.reward))
    assert module.losses(other)[1]["loss/critic"] == module.losses(batch)[1]["loss/critic"]
