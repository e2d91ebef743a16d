"""Means with intervals that hold what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from musev.quality.estimate import bootstrap_interval, estimate


def test_wilsons_interval_by_the_book() -> None:
    """Values from Brown, Cai and DasGupta 2001: 15 rights of 20, and all of 20."""
    found = estimate([1] * 15 + [0] * 5)
    assert found is not None
    assert (found.value, found.n) == (0.75, 20)
    assert (found.low, found.high) == pytest.approx((0.531, 0.888), abs=1e-3)
    perfect = estimate([1.0] * 20)
    assert perfect is not None
    assert perfect.low == pytest.approx(0.839, abs=1e-3)
    assert perfect.high == 1


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = estimate(random.gamma(2.0, 1.0, 40))
        assert found is not None
        held += found.low <= 2.0 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_what_is_not_known_does_not_count() -> None:
    found = estimate([math.nan, 0.5, math.inf, 0.7])
    assert found is not None
    assert (found.n, found.value) == (2, pytest.approx(0.6))
    assert estimate([math.nan]) is None
    alone = estimate([0.5])
    assert alone is not None
    assert alone.high == math.inf


def test_equal_values_leave_nothing_open() -> None:
    """Unlike answers yes or no: differences of 0 on every clip are no answers."""
    assert bootstrap_interval([0.0] * 4) == (0.0, 0.0)
    low, high = bootstrap_interval([1.0, 3.0])
    assert (low, high) == (1.0, 3.0)
