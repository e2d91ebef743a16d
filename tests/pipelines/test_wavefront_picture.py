from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from musev.config import WindowConfig
from musev.denoise.clip_plan import ClipPlan
from musev.denoise.simulate import ClipModel, PoolModel, Timeline, simulate, simulate_lockstep
from pipelines.wavefront_picture import Panel, draw_timelines, finishing_steps

FRONT, IDLE = (0xD1, 0x20, 0x4F), (0xEF, 0xEE, 0xEA)


def clip(num_frames: int = 60, *, steps: int = 4, **windows) -> ClipModel:
    return ClipModel(
        plan=ClipPlan(num_frames, WindowConfig(**windows), num_steps=steps), task_s=1.0
    )


def panel(timeline: Timeline) -> Panel:
    return Panel("title", "about", timeline)


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    return int((np.asarray(picture) == colour).all(axis=2).sum())


def test_frames_move_step_by_step_in_lockstep_and_run_ahead_in_the_wavefront() -> None:
    pool = PoolModel(num_workers=2)
    barrier = panel(simulate_lockstep([clip()], pool))
    front = panel(simulate([clip()], pool))
    # 7 windows on 2 workers: a step takes 4 s behind the barrier.
    assert finishing_steps(barrier, 0.0) == [0] * 60
    assert finishing_steps(barrier, 4.0) == [1] * 60
    assert finishing_steps(barrier, 12.0) == [3] * 60
    assert finishing_steps(front, front.timeline.total_s) == [4] * 60
    # The wavefront does not wait: with the last window of step 0, the first of step 1 is done.
    early = finishing_steps(front, 4.0)
    assert early[0] == 2
    assert early[-1] == 1
    assert early == sorted(early, reverse=True)


def test_a_clip_of_one_window_is_drawn_as_its_steps() -> None:
    one = panel(simulate([clip(9)], PoolModel(num_workers=2)))
    assert [finishing_steps(one, moment)[0] for moment in (0.5, 1.0, 2.5, 4.0)] == [0, 1, 2, 4]


def test_lockstep_shows_more_idle_time_beside_the_same_front_lines() -> None:
    pool = PoolModel(num_workers=4, slowdown=(2.0,), spread=0.05)
    front, barrier = simulate([clip()], pool), simulate_lockstep([clip()], pool)
    both = draw_timelines([panel(front), panel(barrier)], heading="both")
    halves = [both.crop((x, 0, x + both.width // 2, both.height)) for x in (0, both.width // 2)]
    assert count(halves[1], IDLE) > 3 * count(halves[0], IDLE)
    assert min(count(half, FRONT) for half in halves) > 500
    assert draw_timelines([panel(front)], heading="one").width < both.width


@pytest.mark.parametrize(
    ("num_frames", "steps", "windows"),
    [
        (1, 1, {}),
        (40, 6, {"layout": "upstream_uniform", "stride": 2}),  # dilated, past the end
        (96, 10, {"layout": "rotating"}),
        (90, 3, {"overlap": 9}),  # a frame in four windows
        (1500, 50, {}),
    ],
)
def test_any_plan_can_be_drawn_at_a_size_for_a_screen(num_frames, steps, windows) -> None:
    timeline = simulate([clip(num_frames, steps=steps, **windows)], PoolModel(num_workers=3))
    picture = draw_timelines([panel(timeline)], heading="any")
    assert picture.width <= 1400
    assert picture.height <= 1500
    assert len(set(np.asarray(picture).reshape(-1, 3)[::7].sum(axis=1).tolist())) > 5
