"""Records: what an episode counts, and that the row layout does not change under its version."""

import dataclasses

import pytest

from lightning_vlmq.turns import SCHEMA_VERSION, Episode, Observation, Turn


def row(index: int, reply: str | None = "go", **values: object) -> Turn:
    return Turn(env="e", episode="a", index=index, observation=Observation(step=index), reply=reply, **values)  # type: ignore[arg-type]


def test_episode_counts_replies_not_rows() -> None:
    episode = Episode(
        (
            row(0, valid=True, reward=-0.5, env_reward=0.0),
            row(1, valid=False, reward=-1.5, env_reward=0.0),
            row(2, valid=True, reward=0.75, env_reward=1.0, goal=True, terminated=True),
            row(3, reply=None, valid=True),  # holds the last observation only: its flags do not count
        )
    )
    assert len(episode) == 3
    assert episode.env_return == 1.0
    assert episode.shaped_return == -1.25
    assert episode.valid_replies == 2
    assert episode.goal


def test_empty_episode() -> None:
    episode = Episode()
    assert len(episode) == 0
    assert episode.env_return == 0
    assert not episode.goal


def test_last_observation_alone_has_no_reply() -> None:
    assert len(Episode((row(0, reply=None),))) == 0


@pytest.mark.parametrize("record", [Observation(), row(0), Episode()])
def test_records_are_frozen_and_comparable(record: Observation | Turn | Episode) -> None:
    assert dataclasses.replace(record) == record
    assert hash(dataclasses.replace(record)) == hash(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, dataclasses.fields(record)[0].name, "other")


def test_layout_of_schema_version_2() -> None:
    """Stored data depends on this layout: a new field, name, order or type needs a new SCHEMA_VERSION."""
    assert SCHEMA_VERSION == 2
    layout = {field.name: field.type for field in dataclasses.fields(Turn)}
    assert layout == {
        "env": str,
        "episode": str,
        "index": int,
        "observation": Observation,
        "reply": str | None,
        "reply_ids": tuple[int, ...],
        "tokenizer": str,
        "log_probs": tuple[float, ...],
        "cut": bool,
        "forced": int,
        "action": str,
        "valid": bool,
        "reward": float,
        "env_reward": float,
        "terminated": bool,
        "truncated": bool,
        "goal": bool,
        "policy": str,
        "seed": int,
        "imitate": bool,
        "td": bool,
        "weight": float,
    }
    assert {field.name: field.type for field in dataclasses.fields(Observation)} == {
        "objective": str,
        "actions": str,
        "example": str,
        "text": str,
        "images": tuple[bytes, ...],
        "summary": str,
        "error": str,
        "step": int,
        "step_limit": int,
        "invalid_streak": int,
        "invalid_limit": int,
    }
