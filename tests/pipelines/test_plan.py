"""Sorting rows before anything runs."""

from __future__ import annotations

import pytest

from musev.config import SamplingConfig, WindowConfig
from pipelines.plan import count_windows, measured_requests, plan_run
from pipelines.rows import RowFailure, request_to_json
from tests.pipelines.stand_ins import request

REQUESTS = [request(name) for name in ("done", "new", "twin", "broken", "failed")]
CHECKED = [
    {"row": 4, "sample_id": "s-failed", "status": "ready"},
    {"row": 0, "sample_id": "s-done", "status": "ready"},
    {"row": 2, "sample_id": "s-new", "status": "ready"},
    {"row": 1, "sample_id": "s-new", "status": "ready"},
    {
        "row": 3,
        "sample_id": "s-broken",
        "status": "failed",
        "error_class": "MediaError",
        "error_stage": "load_inputs",
        "error_message": "it is empty",
    },
]
REFUSED = [
    RowFailure(
        request_id="row-6",
        row=6,
        column="num_frames",
        value="-1",
        error_class="RequestError",
        message="row 6: num_frames must be at least 1",
    )
]


def test_every_row_lands_in_one_place_and_a_shared_video_is_rendered_once() -> None:
    plan = plan_run(REQUESTS, REFUSED, CHECKED, committed={"s-done"}, failed={"s-failed"})
    assert [row["row"] for row in plan.committed] == [0]
    assert [row["row"] for row in plan.to_render] == [1]
    assert [row["row"] for row in plan.unreadable] == [3]
    assert [row["row"] for row in plan.failed_before] == [4]
    assert plan.num_frames == {"s-new": 3}
    assert [problem[0] for problem in plan.problems] == ["row-6", "broken"]


def test_lengths_that_a_video_decides_are_taken_over_from_the_check() -> None:
    open_ended = request("follows", num_frames=0)
    checked = [
        {"row": 1, "request": request_to_json(request("follows", num_frames=9))},
        {"row": 2, "request": request_to_json(open_ended)},  # its video could not be read
        {"row": 0, "request": request_to_json(request("new"))},
    ]
    found = measured_requests([request("new"), open_ended, open_ended], checked)
    assert [item.num_frames for item in found] == [3, 9, 0]


def test_failed_rows_are_tried_again_only_when_asked() -> None:
    plan = plan_run(
        REQUESTS, REFUSED, CHECKED, committed={"s-done"}, failed={"s-failed"}, retry_failed=True
    )
    assert [row["row"] for row in plan.to_render] == [1, 4]
    assert plan.failed_before == []


def test_the_plan_counts_the_map_videos_that_rows_need() -> None:
    driven = {"video": "v", "control": ("canny", "pose")}
    rows = [request(name, **driven) for name in ("one", "two")]
    rows += [request("small", **driven, fps=2.0), request("maps", video="v", video_is_control=True)]
    checked = [
        {"row": n, "sample_id": f"s{n}", "status": "ready", "media_digests": '{"video": "d"}'}
        for n in range(len(rows))
    ]
    plan = plan_run(rows, [], checked, committed=(), failed=())
    assert "control maps   of 4 videos, found now or before" in plan.lines()
    assert not any("maps" in line for line in plan_run([], [], [], committed=(), failed=()).lines())


def test_the_plan_names_bad_rows_with_class_stage_and_reason() -> None:
    plan = plan_run(REQUESTS, REFUSED, CHECKED, committed={"s-done"}, failed={"s-failed"})
    text = "\n".join(plan.lines())
    assert "rows           6" in text
    assert "to render      1 clips, 3 frames, 1 windows, 1 network calls" in text
    assert "bad row broken: MediaError in load_inputs: it is empty" in text
    assert "bad row row-6: RequestError in manifest: row 6" in text
    assert "same video     1 rows" in text
    assert "--retry-failed" in text


@pytest.mark.parametrize("layout", ["musev", "upstream", "rotating"])
@pytest.mark.parametrize("num_frames", [1, 11, 12, 13, 20, 21, 48, 100])
def test_the_window_count_agrees_with_the_planned_windows(layout: str, num_frames: int) -> None:
    from musev.denoise.windows import plan_windows

    config = WindowConfig(layout=layout)  # type: ignore[arg-type]
    clip = request("one", num_frames=num_frames, sampling=SamplingConfig(windows=config))
    planned = len(plan_windows(num_frames, config, step=0, num_steps=20))
    assert abs(count_windows(clip) - planned) <= 1
    if layout == "musev":
        assert count_windows(clip) == planned


def test_a_condition_image_is_a_frame_that_need_not_be_denoised() -> None:
    with_image = request("one", num_frames=13, condition_image="face.png")
    assert count_windows(with_image) == 1
    assert count_windows(request("one", num_frames=13)) == 2
