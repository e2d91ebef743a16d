"""The lazy plan against the planner it stands for."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musev.config import WindowConfig
from musev.denoise.clip_plan import ClipPlan
from musev.denoise.windows import covering_windows, plan_windows

LAYOUTS = ("musev", "upstream", "upstream_uniform", "rotating")
STEPS = 5


@settings(max_examples=120, deadline=None)
@given(
    num_frames=st.integers(1, 70),
    size=st.integers(1, 14),
    overlap=st.floats(0, 0.99),
    layout=st.sampled_from(LAYOUTS),
    stride=st.integers(1, 3),
    settle=st.integers(0, 6),
    seed=st.integers(0, 9),
)
def test_every_step_is_what_the_planner_says(
    num_frames: int, size: int, overlap: float, layout: str, stride: int, settle: int, seed: int
) -> None:
    """Windows, who covers a frame, and counts: equal to listing everything."""
    config = WindowConfig(
        num_frames=size,
        overlap=int(size * overlap),
        layout=layout,
        stride=stride,
        settle_steps=settle,
    )
    plan = ClipPlan(num_frames, config, num_steps=STEPS, seed=seed)
    lengths = Counter(
        len(window)
        for step in range(STEPS)
        for window in plan_windows(num_frames, config, step=step, num_steps=STEPS, seed=seed)
    )
    assert plan.count_lengths() == lengths
    total = 0
    for step in range(STEPS):
        windows = plan_windows(num_frames, config, step=step, num_steps=STEPS, seed=seed)
        total += len(windows)
        assert plan.num_windows(step) == len(windows)
        assert tuple(plan.task(step, n).frames for n in range(len(windows))) == windows
        assert [plan.num_distinct(step, n) for n in range(len(windows))] == [
            len(set(window)) for window in windows
        ]
        covers = covering_windows(windows, num_frames)
        assert tuple(plan.covers(step, frame) for frame in range(num_frames)) == covers
    assert plan.num_tasks == total


@pytest.mark.parametrize("layout", ["musev", "rotating"])
def test_a_long_plan_is_not_listed(layout: str) -> None:
    """100,000 frames, 30 steps: a few bytes a window are kept, and only for steps asked about."""
    plan = ClipPlan(100_000, WindowConfig(layout=layout), num_steps=30)
    tracemalloc.start()
    for step in (0, 1, 29):
        plan.covers(step, 54_321)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_000_000  # lists of windows: 7 MB a step; CPython keeps 2,000 freed tuples
