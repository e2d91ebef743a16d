"""Window plans against the original's, and what every plan and blend has to keep."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from musev.config import WindowConfig
from musev.denoise.windows import (
    blend_frame,
    blend_windows,
    covering_windows,
    ordered_halving,
    plan_video_windows,
    plan_windows,
    window_weights,
)
from musev.errors import ConfigError, ShapeError
from tests.goldens import GOLDENS, have_goldens, require_goldens

LAYOUT_OF = {"uniform_v2": "upstream", "uniform": "upstream_uniform"}
LAYOUTS = ("musev", "upstream", "upstream_uniform", "rotating")
BLENDS = ("flat", "linear", "pyramid", "gaussian")
unhurried = settings(max_examples=80, deadline=None)


def recorded(name: str) -> list[Any]:
    """Cases of a file; without goldens one that the test skips by :func:`require_goldens`."""
    if not have_goldens():
        return [None]
    return json.loads((GOLDENS / "pipeline" / "functions" / name).read_text())


def plan(num_frames: int, config: WindowConfig, step: int = 0, seed: int = 0) -> Any:
    return plan_windows(num_frames, config, step=step, num_steps=20, seed=seed)


@st.composite
def clips(draw: Any, layouts: tuple[str, ...] = LAYOUTS) -> tuple[int, WindowConfig]:
    """A clip's length and a window config."""
    size = draw(st.integers(1, 16))
    config = WindowConfig(
        num_frames=size,
        overlap=draw(st.integers(0, size - 1)),
        layout=draw(st.sampled_from(layouts)),
        blend=draw(st.sampled_from(BLENDS)),
        stride=draw(st.integers(1, 3)),
        settle_steps=draw(st.integers(0, 3)),
    )
    return draw(st.integers(1, 90)), config


# The original's plans


def layout_cases() -> list[Any]:
    """One case for each layout and window size; the file has a thousand plans."""
    if not have_goldens():
        return [("missing", 0)]
    keys = {(case["schedule"], case["context_frames"]) for case in recorded("context_windows.json")}
    return sorted(keys)


@pytest.mark.parity
@pytest.mark.parametrize("key", layout_cases(), ids=str)
def test_pipeline_plans_equal_the_original(key: tuple[str, int]) -> None:
    require_goldens()
    cases = [
        case
        for case in recorded("context_windows.json")
        if (case["schedule"], case["context_frames"]) == key
    ]
    assert cases
    for case in cases:
        config = WindowConfig(
            num_frames=case["context_frames"],
            overlap=case["context_overlap"],
            stride=case["context_stride"],
            layout=LAYOUT_OF[case["schedule"]],
        )
        expected = [tuple(window) for group in case["global_context"] for window in group]
        found = plan(case["num_frames"], config)
        assert list(found) == expected, case
        assert plan(case["num_frames"], config, step=19) == found


def pipeline_plans() -> list[Any]:
    if not have_goldens():
        return ["missing"]
    names = []
    for file in sorted((GOLDENS / "pipeline" / "cases").glob("*.json")):
        case = json.loads(file.read_text())
        calls = case["result"].get("calls", [])
        if case["level"] == "pipeline" and any(call.get("global_context") for call in calls):
            names.append(file.stem)
    return names


@pytest.mark.parity
@pytest.mark.parametrize("name", pipeline_plans())
def test_pipelines_use_the_recorded_windows(name: str) -> None:
    require_goldens()
    case = json.loads((GOLDENS / "pipeline" / "cases" / f"{name}.json").read_text())
    call = case["call"]
    config = WindowConfig(
        num_frames=call.get("context_frames", 12),
        overlap=call.get("context_overlap", 4),
        stride=call.get("context_stride", 1),
        layout=LAYOUT_OF[call.get("context_schedule", "uniform_v2")],
    )
    for result in case["result"]["calls"]:
        if result.get("global_context"):
            expected = [tuple(window) for group in result["global_context"] for window in group]
            assert list(plan(call["video_length"], config)) == expected


@pytest.mark.parity
@pytest.mark.parametrize("case", recorded("ordered_halving.json"))
def test_ordered_halving_of_the_pipeline_equals_the_original(case: tuple[int, float]) -> None:
    require_goldens()
    number, expected = case
    assert ordered_halving(number) == expected


@pytest.mark.parity
@pytest.mark.parametrize("case", recorded("video_windows.json"))
def test_video_windows_of_the_pipeline_equal_the_original(case: dict[str, Any]) -> None:
    require_goldens()
    found = plan_video_windows(
        case["total"],
        size=case["window_size"],
        stride=case["step"],
        sample_rate=case["sample_rate"],
        drop_last=case["drop_last"],
    )
    assert [list(chunk) for chunk in found] == case["windows"]


# What every plan keeps


@unhurried
@given(clips(), st.integers(0, 19), st.integers(0, 2**64))
def test_every_frame_is_covered_by_pure_plans(
    clip: tuple[int, WindowConfig], step: int, seed: int
) -> None:
    num_frames, config = clip
    windows = plan(num_frames, config, step, seed)
    assert {frame for window in windows for frame in window} == set(range(num_frames))
    assert windows == plan(num_frames, dataclasses.replace(config), step, seed)
    assert len(set(windows)) == len(windows) or config.layout == "upstream_uniform"


@unhurried
@given(clips(("musev", "rotating")), st.integers(0, 19), st.integers(0, 2**64))
def test_windows_are_whole_consecutive_and_sorted(
    clip: tuple[int, WindowConfig], step: int, seed: int
) -> None:
    num_frames, config = clip
    windows = plan(num_frames, config, step, seed)
    size = min(config.num_frames, num_frames)
    assert all(window == tuple(range(window[0], window[0] + size)) for window in windows)
    starts = [window[0] for window in windows]
    assert starts == sorted(set(starts))


@unhurried
@given(clips(("musev",)))
def test_musev_windows_share_at_least_the_overlap(clip: tuple[int, WindowConfig]) -> None:
    num_frames, config = clip
    windows = plan(num_frames, config)
    shared = [len(set(a) & set(b)) for a, b in itertools.pairwise(windows)]
    assert all(count == config.overlap for count in shared[:-1])
    assert all(count >= config.overlap for count in shared)


@unhurried
@given(clips(("rotating",)), st.integers(0, 19), st.integers(0, 2**64))
def test_rotating_tiles_the_clip_and_settles(
    clip: tuple[int, WindowConfig], step: int, seed: int
) -> None:
    num_frames, config = clip
    size = config.num_frames
    windows = plan(num_frames, config, step, seed)
    if step >= 20 - config.settle_steps:
        assert windows == plan(num_frames, dataclasses.replace(config, layout="musev"))
        return
    times = Counter(frame for window in windows for frame in window)
    assert all(times[frame] == 1 for frame in range(size, num_frames - size))
    assert len(windows) < num_frames / size + 2


@unhurried
@given(st.integers(2, 16), st.integers(1, 60), st.integers(0, 15), st.integers(0, 2**64))
@example(3, 1, 0, 5)  # an odd size: two fractions on both sides of 1/2 gave the same shift
def test_rotating_borders_move_at_every_step(size: int, more: int, step: int, seed: int) -> None:
    """No border away from the ends is also a border of the next step."""
    config = WindowConfig(num_frames=size, overlap=0, layout="rotating", settle_steps=0)
    num_frames = 2 * size + more

    def borders(at: int) -> set[int]:
        starts = {window[0] for window in plan(num_frames, config, at, seed)}
        return starts - {0, num_frames - size}

    assert not borders(step) & borders(step + 1)


def test_rotating_visits_many_borders() -> None:
    config = WindowConfig(layout="rotating", settle_steps=0)
    shifts = {plan(96, config, step)[1][0] % 12 for step in range(16)}
    assert len(shifts) == 12


def test_layouts_by_hand() -> None:
    config = WindowConfig(num_frames=4, overlap=1)
    assert plan(9, config) == ((0, 1, 2, 3), (3, 4, 5, 6), (5, 6, 7, 8))
    assert plan(3, config) == ((0, 1, 2),)
    upstream = dataclasses.replace(config, layout="upstream")
    assert plan(9, upstream) == ((0, 1, 2, 3), (3, 4, 5, 6), (6, 7, 8))
    rotating = dataclasses.replace(config, layout="rotating", settle_steps=1)
    assert [window[0] for window in plan(12, rotating, step=0)] == [0, 4, 8]
    assert [window[0] for window in plan(12, rotating, step=1)] == [0, 2, 6, 8]
    assert plan(12, rotating, step=19) == plan(12, config)


def test_settling_may_take_all_steps() -> None:
    config = WindowConfig(num_frames=4, overlap=1, layout="rotating", settle_steps=50)
    assert plan(12, config) == plan(12, dataclasses.replace(config, layout="musev"))


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 frame"):
        plan(0, WindowConfig())
    for step in (-1, 20):
        with pytest.raises(ConfigError, match=r"step must be in \[0, 20\)"):
            plan(10, WindowConfig(), step=step)
    with pytest.raises(ConfigError, match="overlap must be in"):
        WindowConfig(num_frames=4, overlap=4, layout="upstream")  # the original never ends
    with pytest.raises(ConfigError, match="stride must be at least 1"):
        plan_video_windows(10, size=4, stride=0)


# Covers and blends


@unhurried
@given(clips(), st.integers(0, 19))
def test_covers_name_every_window_of_a_frame(clip: tuple[int, WindowConfig], step: int) -> None:
    num_frames, config = clip
    windows = plan(num_frames, config, step)
    for frame, cover in enumerate(covering_windows(windows, num_frames)):
        assert [number for number, _ in cover] == [
            number for number, window in enumerate(windows) if frame in window
        ]
        assert all(windows[number][position] == frame for number, position in cover)


def test_a_frame_twice_in_a_window_counts_once_with_its_last_place() -> None:
    assert covering_windows([(0, 1, 0)], 2) == (((0, 2),), ((0, 1),))
    with pytest.raises(ShapeError, match=r"frames \[1, 3\] of 4 are in no window"):
        covering_windows([(0, 2)], 4)


@unhurried
@given(clips(), st.integers(1, 20))
def test_weights_are_positive_and_symmetric(clip: tuple[int, WindowConfig], size: int) -> None:
    _, config = clip
    for weights in (window_weights(config), window_weights(config, size)):
        assert weights.dtype == torch.float32
        assert (weights > 0).all()
        torch.testing.assert_close(weights, weights.flip(0))
    assert len(window_weights(config)) == config.num_frames


def test_weights_by_hand() -> None:
    def weights(blend: Any) -> list[float]:
        config = WindowConfig(num_frames=5, overlap=1, blend=blend)
        return window_weights(config).tolist()

    assert weights("flat") == [1.0] * 5
    assert weights("linear") == [0.5, 1.0, 1.0, 1.0, 0.5]
    assert weights("pyramid") == pytest.approx([1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3])
    gaussian = weights("gaussian")
    assert gaussian[2] == 1.0
    assert gaussian[1] == pytest.approx(0.7261490)  # exp(-0.5 * 0.8**2)


def blend(estimates: Any, windows: Any, config: WindowConfig, num_frames: int) -> torch.Tensor:
    weights = [window_weights(config, len(window)) for window in windows]
    return blend_windows(estimates, windows, weights, num_frames)


@unhurried
@given(clips(), st.integers(0, 19))
def test_weights_normalise_to_one(clip: tuple[int, WindowConfig], step: int) -> None:
    """Windows that agree give back what they agree on, whatever the layout and blend."""
    num_frames, config = clip
    values = torch.linspace(-2, 3, num_frames).view(1, 1, num_frames, 1, 1)
    windows = plan(num_frames, config, step)
    blended = blend([values[:, :, list(w)] for w in windows], windows, config, num_frames)
    torch.testing.assert_close(blended, values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", BLENDS)
def test_one_window_equals_no_windows_bit_for_bit(kind: Any) -> None:
    config = WindowConfig(num_frames=7, overlap=2, blend=kind)
    values = torch.randn(2, 4, 7, 3, 3)
    assert torch.equal(blend([values], plan(7, config), config, 7), values)


def test_flat_blend_equals_the_original_loop_bit_for_bit() -> None:
    config = WindowConfig(num_frames=8, overlap=5, layout="upstream_uniform", stride=2)
    windows = plan(21, config)
    estimates = [torch.randn(2, 4, 8, 3, 3) for _ in windows]
    total, count = torch.zeros(2, 4, 21, 3, 3), torch.zeros(1, 1, 21, 1, 1)
    for window, estimate in zip(windows, estimates, strict=True):
        total[:, :, list(window)] += estimate
        count[:, :, list(window)] += 1
    assert torch.equal(blend(estimates, windows, config, 21), total / count)


def test_frames_can_be_blended_alone() -> None:
    config = WindowConfig(num_frames=6, overlap=4, blend="gaussian")
    windows = plan(13, config)
    estimates = [torch.randn(1, 2, 6, 3, 3) for _ in windows]
    weights = window_weights(config).tolist()
    whole = blend(estimates, windows, config, 13)
    for frame, cover in enumerate(covering_windows(windows, 13)):
        alone = blend_frame(
            [estimates[number][:, :, position] for number, position in cover],
            [weights[position] for _, position in cover],
        )
        assert torch.equal(alone, whole[:, :, frame])


def test_half_precision_is_summed_in_float32() -> None:
    config = WindowConfig(num_frames=4, overlap=3, blend="gaussian")
    windows = plan(9, config)
    estimates = [torch.randn(1, 2, 4, 3, 3, dtype=torch.bfloat16) for _ in windows]
    blended = blend(estimates, windows, config, 9)
    assert blended.dtype == torch.float32
    exact = blend([estimate.float() for estimate in estimates], windows, config, 9)
    assert torch.equal(blended, exact)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    config = WindowConfig(num_frames=4, overlap=1)
    windows = plan(7, config)
    good = [torch.zeros(1, 1, 4, 1, 1) for _ in windows]
    with pytest.raises(ShapeError, match="2 windows, but 1 estimates"):
        blend_windows(good[:1], windows, [torch.ones(4)] * 2, 7)
    with pytest.raises(ShapeError, match="a window of 4 frames has an estimate of 3"):
        blend([good[0], good[1][:, :, :3]], windows, config, 7)
