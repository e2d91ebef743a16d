"""From the scores of many clips to a number with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_Z = 1.959964
"""Half width of 95 in 100 under a normal curve."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over clips and the interval that holds the true one 95 times in 100."""

    value: float
    n: int
    """Clips that the judge could say something about."""
    low: float
    high: float


def estimate(values: Iterable[float]) -> Estimate | None:
    """Average scores; those that are not finite do not count.

    Yes and no answers get Wilson's interval, which is honest about 20 rights of 20; other scores a
    bootstrap over clips.

    Args:
        values: One score a clip.

    Returns:
        The estimate; None without any score. A single score that is no yes or no has no interval:
        from minus to plus infinity.

    Source:
        Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    known = np.array([value for value in values if math.isfinite(value)], float)
    n = len(known)
    if n == 0:
        return None
    mean = float(known.mean())
    if np.isin(known, (0, 1)).all():
        return Estimate(mean, n, *_wilson(mean, n))
    if n == 1:
        return Estimate(mean, n, -math.inf, math.inf)
    return Estimate(mean, n, *bootstrap_interval(known))


def bootstrap_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Where the mean of many values lies 95 times in 100, by drawing as many of them again.

    Args:
        values: At least one; the same ones give the same interval.

    Returns:
        Its ends.
    """
    known, n = np.asarray(values, float), len(values)
    draws = np.random.default_rng(n).integers(0, n, (_RESAMPLES, n))
    low, high = np.percentile(known[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _wilson(share: float, n: int) -> tuple[float, float]:
    scale = 1 + _Z**2 / n
    middle = (share + _Z**2 / (2 * n)) / scale
    half = _Z / scale * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)
