import numpy as np
import pytest

from lightning_vlmq.drawing.charts import Bar, Panel, Series, bar_chart

RED, BLUE = 0, 2


def drawn(bars: list[list[Bar]], names: list[str]) -> np.ndarray:
    series = [Series("plain", "#0000ff"), Series("striped", "#ff0000", hatched=True)]
    return np.asarray(bar_chart("Title", series, names, [Panel("Panel", "share", bars)], "model"))


def column(picture: np.ndarray, colour: int) -> int:
    """Pixels of a colour in the column that has most of it."""
    others = np.delete(picture, colour, -1).max(-1)
    return int((picture[..., colour] > others + 100.0).sum(0).max())


def test_bars_are_as_high_as_their_shares() -> None:
    # 100 % are 196 pixels, edges are blurred; the legend's square stands in another column
    for share in (1.0, 0.5, 0.25):
        assert column(drawn([[Bar(0, share, share, share)]], ["one"]), BLUE) == pytest.approx(196 * share, abs=5)
    assert column(drawn([[Bar(1, 0.5, 0.5, 0.5)]], ["one"]), RED) == pytest.approx(98, abs=5)  # its outline


def test_a_bar_at_0_can_be_seen() -> None:
    picture = drawn([[Bar(0, 0, 0, 0.1)]], ["one"])
    assert column(picture[150:], BLUE) == pytest.approx(2, abs=1)


def test_a_group_without_a_bar_and_long_names() -> None:
    few = drawn([[Bar(0, 1, 1, 1)], []], ["a", "b"])
    many = drawn([[Bar(0, 1, 1, 1)] * 6] * 4, ["A-VLM-With-Quite-A-Long-Name-256M-Instruct" * 3] * 4)
    assert few.shape[1] == 760
    assert many.shape[1] > 1200
    assert many.shape[0] > few.shape[0]  # lines of names
