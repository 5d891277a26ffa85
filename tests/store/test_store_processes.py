"""The store: killed and concurrent writers, memory, time."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from store_rows import episode

from lightning_vlmq.store import TurnStore
from lightning_vlmq.turns import Episode

# --- processes

WRITER = textwrap.dedent(
    """
    import sys
    import pyarrow
    from lightning_vlmq.store import TurnStore
    from lightning_vlmq.turns import Episode, Observation, Turn

    pyarrow.array(["imports pandas, where there is one"])
    folder, writer, run, number = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    store = TurnStore(folder, shard_rows=12, writer=writer)
    print("ready", flush=True)
    for count in range(number):
        name = f"{writer}/{run}/{count}"
        rows = [
            Turn("e", name, i, Observation(images=(bytes(2000),)), reply="r" if i < 3 else None, seed=count)
            for i in range(4)
        ]
        store.append(Episode(tuple(rows)))
        print(store.state()["buffered"], flush=True)
    store.flush()
    """
)


def start_writer(folder: Path, writer: str, run: int, number: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(folder), writer, str(run), str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_writers_lose_only_unwritten_rows(tmp_path: Path) -> None:
    rng = random.Random(0)
    promised = 0
    for run in range(6):
        process = start_writer(tmp_path, "0", run, 10**6)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        buffered = [int(line) for line in process.stdout.read().splitlines() if line]
        process.stdout.close()
        process.wait()
        # Of what the writer reported, only the rows still in its buffer may be lost.
        promised += 4 * len(buffered) - buffered[-1] if buffered else 0
        store = TurnStore(tmp_path)
        assert len(store) >= promised
        assert store.unpaired == 0
        assert len(store.samples) == len(store) * 3 // 4
        episodes = list(store.episodes())
        assert len(episodes) * 4 == len(store)
        assert all(len(each) == 3 and len(each.turns[0].observation.images[0]) == 2000 for each in episodes)
        promised = len(store)
    assert promised > 0
    print("P", promised)
    with TurnStore(tmp_path) as store:  # a killed process left no lock
        store.append(episode("after"))
    assert len(TurnStore(tmp_path)) == promised + 4


def test_two_writers_at_once(tmp_path: Path) -> None:
    reader = TurnStore(tmp_path)
    processes = [start_writer(tmp_path, writer, 0, 40) for writer in "ab"]
    seen: list[tuple[str, int]] = []
    while any(process.poll() is None for process in processes):
        reader.reload()
        rows = list(zip(*reader.columns(["episode", "index"]).values(), strict=True))
        assert rows[: len(seen)] == seen  # rows keep their numbers while others write
        seen = rows
        time.sleep(0.01)
    for process in processes:
        assert process.communicate()[0] is not None
        assert process.returncode == 0
    reader.reload()
    assert len(reader) == 2 * 40 * 4
    assert len({each.turns[0].episode for each in reader.episodes()}) == 80
    assert reader.state() == TurnStore(tmp_path).state()
    names = [name for name, *_ in reader.state()["shards"]]
    assert [int(name.split("-")[0]) for name in names] == list(range(len(names)))
    assert {name.split("-")[1] for name in names} == {"a.parquet", "b.parquet"}
    assert [entry["name"] for entry in json.loads((tmp_path / "manifest.json").read_text())["shards"]] == names


def test_flush_takes_in_shards_of_others_first(tmp_path: Path) -> None:
    one, two = TurnStore(tmp_path, writer="a"), TurnStore(tmp_path, writer="b")
    one.append(episode("one"))
    two.append(episode("two"))
    one.flush()
    two.flush()
    assert [turn.episode for turn in two] == ["one"] * 4 + ["two"] * 4
    with pytest.raises(ValueError, match="'one' is in"):
        two.append(episode("one"))
    assert len(one) == 4
    one.reload()
    assert one.state() == two.state()


# --- resources


MEMORY = textwrap.dedent(
    """
    import sys
    from lightning_vlmq.store import TurnStore

    def resident():
        return int(open("/proc/self/statm").read().split()[1]) * 4096

    store = TurnStore(sys.argv[1], cache_shards=2, cache_bytes=8 << 20)
    store[0], store.samples
    before = resident()
    for turn in store:
        pass
    print(resident() - before)
    """
)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """3,000 rows with 60 MB of images: cache 8 MB, two mapped shards of 10 MB, and room for the allocator."""
    rng = random.Random(0)
    with TurnStore(tmp_path) as store:
        for number in range(750):
            turns = episode(f"e{number}").turns
            images = [replace(turn.observation, images=(rng.randbytes(20_000),)) for turn in turns]
            store.append(
                Episode(tuple(replace(turn, observation=seen) for turn, seen in zip(turns, images, strict=True)))
            )
    assert sum(path.stat().st_size for path in tmp_path.glob("*.parquet")) > 60e6
    grown = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    print("grown", grown.stdout)
    assert int(grown.stdout) < 30e6


def test_random_access_is_fast(tmp_path: Path) -> None:
    """10,000 rows with images of 2.2 KB: about .7 ms a row from the disk; the bound allows for a busy machine."""
    image = random.Random(0).randbytes(2200)
    with TurnStore(tmp_path) as store:
        for number in range(2500):
            store.append(episode(f"e{number}", image=image))
    store = TurnStore(tmp_path, cache_bytes=1)  # every row from the disk
    rows = random.Random(1).sample(range(len(store)), 200)
    times = []
    for row in rows:
        start = time.perf_counter()
        store[row]
        times.append(time.perf_counter() - start)
    assert sorted(times)[100] < 5e-3
