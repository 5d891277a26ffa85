"""Windows of consecutive turns: which turns are drawn, how often, and that a resumed run goes on with the next."""

import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attached import attach

from lightning_vlmq import VLM, AgentEnv, Demonstrations, OfflineToOnline
from lightning_vlmq.datamodules.windows import Window, Windows, drawn
from lightning_vlmq.envs import NumberLine

ROWS = np.array([0, 1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 20])
"""Episodes of 3, 2, 7 and 1 turns."""
OWN = np.array([0, 1, 2, 3, 5, 6, 8, 9])


def rows_of(windows: list[Window]) -> list[list[int]]:
    return [list(range(window.row, window.row + window.turns)) for window in windows]


def cut(length: int, rows: np.ndarray[Any, Any] = ROWS, store: Any = "demo") -> Windows:
    return Windows(store, rows, length)


@pytest.mark.parametrize(
    ("length", "wanted"),
    [
        (1, [[row] for row in ROWS.tolist()]),
        (3, [[0, 1, 2], [4, 5], [7, 8, 9], [10, 11, 12], [13], [20]]),
        (100, [[0, 1, 2], [4, 5], [7, 8, 9, 10, 11, 12, 13], [20]]),
    ],
)
def test_windows_end_with_their_episode(length: int, wanted: list[list[int]]) -> None:
    windows = cut(length)
    assert rows_of([windows.window(start, 99) for start in windows.starts.tolist()]) == wanted
    assert windows.lengths().tolist() == [len(window) for window in wanted]
    assert rows_of([windows.window(1, 1)]) == [[1]]
    assert len(cut(length, ROWS[:0]).starts) == 0


@pytest.mark.parametrize("length", [1, 2, 3, 100])
def test_a_pass_has_every_turn_once_in_whole_windows(length: int) -> None:
    windows = cut(length)
    batches = [windows.shuffled(number * 5, 5, 3, 0) for number in range(13)]
    assert all(sum(window.turns for window in batch) == 5 for batch in batches)
    found = [row for batch in batches for rows in rows_of(batch) for row in rows]
    passes = [found[start : start + 13] for start in range(0, 65, 13)]
    assert all(sorted(one) == ROWS.tolist() for one in passes)
    assert len({tuple(one) for one in passes}) > 2
    whole = rows_of([windows.window(start, 99) for start in windows.starts.tolist()])
    for one in passes:  # a window that a batch's end cuts goes on in the next batch
        text = f" {' '.join(map(str, one))} "
        assert all(f" {' '.join(map(str, window))} " in text for window in whole)


def test_turns_one_by_one_are_drawn_as_they_were_before_there_were_windows() -> None:
    data = OfflineToOnline(own_share=0.3, batch_size=8, seed=3)
    data.store = "demo"  # type: ignore[assignment]
    rows = np.array([0, 1, 2, 4, 5, 7, 8, 9, 10, 12, 13, 20])

    def found(own: np.ndarray[Any, Any], number: int) -> list[int]:
        """Rows; those of own turns from 100 on."""
        data.experience = SimpleNamespace(samples=own)  # type: ignore[assignment]
        windows = data._chosen(rows, 0, number, np.random.default_rng([3, 0, number]))
        assert {window.turns for window in windows} == {1}
        return [window.row if window.store == "demo" else window.row + 100 for window in windows]  # type: ignore[comparison-overlap]

    assert [found(OWN[:0], number) for number in range(3)] == [
        [20, 9, 2, 13, 0, 1, 5, 8],
        [12, 7, 4, 10, 4, 12, 20, 8],
        [10, 5, 9, 1, 2, 0, 13, 7],
    ]
    assert [found(OWN, number) for number in range(3)] == [
        [106, 106, 0, 1, 103, 5, 13, 105],
        [8, 1, 5, 10, 20, 8, 10, 102],
        [0, 13, 109, 5, 12, 100, 9, 5],
    ]
    data.own_share = None
    assert found(OWN, 7) == [9, 1, 9, 4, 9, 109, 106, 101]


@pytest.mark.parametrize(("length", "share"), [(1, 0.3), (3, 0.3), (3, 0.8), (4, 1.0), (100, 0.0)])
def test_every_turn_is_as_likely_at_each_place(length: int, share: float) -> None:
    """First and last turns of an episode as well as others, and own turns have their share, not own windows."""
    own, others = cut(length, OWN, "own"), cut(length)
    batches, size = 4000, 6
    counts = Counter(
        (place, window.store, row)
        for number in range(batches)
        for place, (window, row) in enumerate(
            (window, row)
            for window in drawn(own, others, share, size, np.random.default_rng([1, number]))
            for row in range(window.row, window.row + window.turns)
        )
    )
    assert sum(counts.values()) == batches * size
    for place in range(size):
        kinds = [(s, of) for s, of in ((share, own), (1 - share, others)) if s]
        seen = [counts[place, of.store, row] for _, of in kinds for row in of.rows.tolist()]
        wanted = [batches * s / len(of.rows) for s, of in kinds for _ in of.rows]
        distance = sum((a - b) ** 2 / b for a, b in zip(seen, wanted, strict=True))
        p = torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2), torch.tensor(distance / 2))  # chi-square
        assert p > 1e-4, place


def test_without_demonstrations_all_turns_are_own() -> None:
    windows = drawn(cut(3, OWN, "own"), cut(3, OWN[:0]), 1.0, 50, np.random.default_rng(0))
    assert {window.store for window in windows} == {"own"}
    assert sum(window.turns for window in windows) == 50
    assert max(window.turns for window in windows) == 3


def _data(vlm: VLM, folder: Path, **options: Any) -> Demonstrations:
    settings: dict[str, Any] = {"turns": 60, "mixture": {"random": 1.0}, "batch_size": 8, "seed": 3} | options
    return attach(Demonstrations(str(folder), AgentEnv(NumberLine()), **settings), vlm)


def test_batches_of_windows_and_a_resumed_run(vlm: VLM, tmp_path: Path) -> None:
    one, two = _data(vlm, tmp_path, window=4), _data(vlm, tmp_path, window=4)
    first = list(itertools.islice(one._training_batches(), 5))
    assert all(len(batch.reward) == 8 for batch in first)
    assert any(batch.next_in_batch.any() for batch in first)
    for batch in first:
        apart = batch.has_next & ~batch.next_in_batch
        assert len(batch.next_positions) == int(apart.sum())
        assert not batch.next_in_batch[-1]
    two.load_state_dict({"drawn": 2})
    for batch, wanted in zip(two._training_batches(), first[2:], strict=False):
        assert batch.inputs["input_ids"].tolist() == wanted.inputs["input_ids"].tolist()
        assert batch.next_in_batch.tolist() == wanted.next_in_batch.tolist()
    alone = next(_data(vlm, tmp_path)._training_batches())
    assert not alone.next_in_batch.any()
    assert next(one._validation_batches()).next_in_batch.any()


def test_a_turn_that_is_not_drawn_ends_a_window(vlm: VLM, tmp_path: Path) -> None:
    data = _data(vlm, tmp_path, window=8, holdout=0.0)
    data.training_rows = data.training_rows[data.training_rows % 3 != 0]
    windows = data._chosen(data.training_rows, 0, 0, np.random.default_rng(0))
    assert {row % 3 for rows in rows_of(windows) for row in rows} == {1, 2}
    assert max(window.turns for window in windows) == 2


def test_windows_that_do_not_fit_are_refused_and_those_that_save_nothing_named(
    tiny_folder: Path, tmp_path: Path
) -> None:
    for window in (0, 9):
        with pytest.raises(ValueError, match=f"window {window}: give a number of turns from 1 to batch_size, 8"):
            Demonstrations(str(tmp_path), batch_size=8, window=window)
    with pytest.warns(UserWarning, match=r"window: 4 saves nothing: in training the VLM drops out"):
        _data(VLM(str(tiny_folder), lora_dropout=0.1), tmp_path, window=4)
