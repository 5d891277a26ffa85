"""95 % intervals of what is measured in episodes: shares and means, of episodes or of their replies."""

import math
from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["Interval", "mean_interval", "share_interval", "wilson"]

Interval: TypeAlias = tuple[float, float]
"""Lower and upper end."""

_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below


def wilson(share: float, trials: float) -> Interval:
    """Wilson's score interval of a share, sound also at 0 and 1 (Wilson 1927, JASA 22; without continuity correction).

    Args:
        share: The share of hits, 0 to 1.
        trials: Number of independent trials; an effective number need not be whole.
    """
    scale = 1 + _Z**2 / trials
    centre = (share + _Z**2 / (2 * trials)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def share_interval(hits: Sequence[float], trials: Sequence[float]) -> Interval:
    """Interval of ``sum(hits) / sum(trials)``, counted in clusters: the replies of an episode are not independent.

    Wilson's at the effective number of trials, ``p (1 - p)`` over the variance between clusters (Korn and Graubard
    1998, Survey Methodology 24), which is the number of trials itself where each cluster has one. Where all trials
    agree nothing is known of that variance, and a cluster counts as one trial.

    Args:
        hits: Hits of each cluster.
        trials: Trials of each cluster, at least 1.
    """
    total = sum(trials)
    share = sum(hits) / total
    spread = _spread(hits, trials)
    effective = min(total, share * (1 - share) * total**2 / spread) if spread else len(trials)
    return wilson(share, effective)


def mean_interval(sums: Sequence[float], counts: Sequence[float]) -> Interval:
    """Interval of the mean ``sum(sums) / sum(counts)`` by the normal approximation, counted in clusters.

    Args:
        sums: Sum over each cluster.
        counts: Summands of each cluster, at least 1.

    Raises:
        ValueError: There is one cluster only, whose spread nobody knows.
    """
    clusters, total = len(sums), sum(counts)
    if clusters < 2:
        raise ValueError("an interval needs at least 2 episodes; play more")
    mean = math.fsum(sums) / total
    half = _Z * math.sqrt(clusters / (clusters - 1) * _spread(sums, counts)) / total
    return mean - half, mean + half


def _spread(sums: Sequence[float], counts: Sequence[float]) -> float:
    """Sum of squared differences between clusters and what the ratio of all predicts for them."""
    ratio = math.fsum(sums) / sum(counts)
    return math.fsum((each - ratio * count) ** 2 for each, count in zip(sums, counts, strict=True))
