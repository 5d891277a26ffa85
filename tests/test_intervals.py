import pytest

from lightning_vlmq.intervals import mean_interval, share_interval, wilson


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(hits: int, trials: int, low: float, high: float) -> None:
    assert wilson(hits / trials, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 - hits / trials, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_single_trials_are_wilsons() -> None:
    assert share_interval([1] * 15 + [0] * 133, [1] * 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_trials_of_a_cluster_that_agree_count_once() -> None:
    # 148 episodes of three replies, all three alike: no more is known than from 148 replies
    assert share_interval([3] * 15 + [0] * 133, [3] * 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert share_interval([0] * 20, [3] * 20) == pytest.approx((0, 0.1611), abs=5e-5)


def test_clusters_that_are_all_alike_count_no_more_than_their_trials() -> None:
    # each episode has one valid reply of two; one episode has two, else they would not differ at all
    assert share_interval([1] * 9 + [2], [2] * 10) == wilson(11 / 20, 20)


def test_mean() -> None:
    # 0 and 2: mean 1, standard deviation sqrt(2), of the mean 1
    assert mean_interval([0, 2], [1, 1]) == pytest.approx((1 - 1.959964, 1 + 1.959964))
    # replies of 4 tokens in one episode of one and one of three: no spread
    assert mean_interval([4, 12], [1, 3]) == (4, 4)
    with pytest.raises(ValueError, match="at least 2 episodes"):
        mean_interval([1], [1])
