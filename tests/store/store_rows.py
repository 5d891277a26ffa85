"""Rows that the tests of the store write."""

import io
from dataclasses import replace
from pathlib import Path

from PIL import Image

from lightning_vlmq.store import TurnStore
from lightning_vlmq.turns import Episode, Observation, Turn


def png(value: int, size: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, 2, 3)).save(buffer, "PNG")
    return buffer.getvalue()


def episode(name: str, replies: int = 3, rewards: tuple[float, ...] = (), image: bytes = b"") -> Episode:
    rows = [
        Turn(
            env="e",
            episode=name,
            index=index,
            observation=Observation(text=f"{name} {index}", step=index, images=(image,) if image else ()),
            reply=f"reply {index}" if index < replies else None,
            env_reward=rewards[index] if index < len(rewards) else 0.0,
        )
        for index in range(replies + 1)
    ]
    return Episode(tuple(rows))


def fill(folder: Path, shards: int = 3) -> list[Episode]:
    """Shards of one episode of four rows."""
    episodes = [episode(f"e{number}") for number in range(shards)]
    with TurnStore(folder, shard_rows=1) as store:
        for each in episodes:
            store.append(each)
    return episodes


def turns_with(base: Episode, row: int, **values: object) -> Episode:
    turns = list(base.turns)
    turns[row] = replace(turns[row], **values)  # type: ignore[arg-type]
    return Episode(tuple(turns))
