from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from musev.config import (
    ClipRequest,
    FirstFrameConfig,
    GuidanceConfig,
    SamplingConfig,
    WeightsConfig,
)
from musev.denoise.simulate import simulate
from musev.models.cost import CostModel
from pipelines import forecast as module
from pipelines.clip_forecast import Speed, model_clip
from pipelines.forecast import Forecast, compare, forecast_run, usual_pool
from pipelines.plan import RunPlan, plan_run
from pipelines.report import Summary
from pipelines.rows import RowFailure

SAMPLING = SamplingConfig(
    num_steps=4,
    guidance=GuidanceConfig(scale=1.0),
    first_frame=FirstFrameConfig(origin="noise"),
)
LENGTHS = {"done": 12, "long": 60, "twin": 60, "short": 9, "failed": 12, "unreadable": 12}
REFUSED = RowFailure(
    request_id="refused",
    row=6,
    column="num_frames",
    value="-1",
    error_class="RequestError",
    message="row 6: num_frames must be at least 1",
)


@pytest.fixture(scope="module")
def cost() -> CostModel:
    return CostModel(WeightsConfig(random_seed=1))


def request(name: str, num_frames: int) -> ClipRequest:
    return ClipRequest(
        request_id=name,
        num_frames=num_frames,
        fps=4.0,
        width=64,
        height=64,
        seed=0,
        profile="tiny",
        sampling=SAMPLING,
    )


def make_plan(lengths: dict[str, int], **settled: Any) -> RunPlan:
    checked = [
        {"row": row, "sample_id": {"twin": "long"}.get(name, name), "status": "ready"}
        for row, name in enumerate(lengths)
    ]
    for row, name in enumerate(lengths):
        if name == "unreadable":
            error = {"error_class": "MediaError", "error_stage": "load_inputs"}
            checked[row] |= {"status": "failed", "error_message": "it is empty", **error}
    requests = [request(name, num_frames) for name, num_frames in lengths.items()]
    settled = {"committed": (), "failed": (), **settled}
    return plan_run(requests, [REFUSED], checked, **settled)


def forecast(cost: CostModel, plan: RunPlan, **more: Any) -> Forecast:
    options: dict[str, Any] = {"num_workers": 4, "segment_frames": 16, **more}
    return forecast_run(plan, lambda name: cost, **options)


@pytest.fixture(scope="module")
def mixed(cost: CostModel) -> Forecast:
    """A row of every state."""
    plan = make_plan(LENGTHS, committed={"done"}, failed={"failed"})
    return forecast(cost, plan, speed=0.5)


def test_only_what_is_to_be_rendered_costs_anything(mixed: Forecast) -> None:
    states = {row.request_id: row.state for row in mixed.rows}
    assert states == {
        "done": "committed",
        "long": "render",
        "twin": "same video",
        "short": "render",
        "failed": "failed before",
    }
    assert {row.request_id for row in mixed.rows if row.clip} == {"long", "short"}
    assert {row.request_id for row in mixed.rows if row.worker_s} == {"long", "short"}
    assert [problem[0] for problem in mixed.problems] == ["refused", "unreadable"]
    assert mixed.num_frames == 69
    assert mixed.total("tasks") == 7 * 4 + 1
    assert mixed.total("calls") == 7 * 4 + 4


def test_seconds_come_from_the_real_planner(cost: CostModel) -> None:
    plan = make_plan({"long": 60, "longer": 100, "short": 9})
    found = forecast(cost, plan, speed=0.5)
    assert isinstance(found.speed, Speed)
    clips = [
        model_clip(asked, row.clip, found.speed, segment_frames=16)
        for asked, row in zip(plan.requests, found.rows, strict=True)
    ]
    timeline = simulate(clips, usual_pool(4))
    assert found.total_s == pytest.approx(timeline.total_s)
    assert found.worker_s == pytest.approx(sum(clip.work_s for clip in clips))
    assert found.is_simulated
    for clip, row in zip(clips, found.rows, strict=True):
        assert row.alone_s == pytest.approx(simulate([clip], usual_pool(4)).total_s)
        assert row.worker_s / 4 <= row.alone_s <= found.total_s + 1e-9
    # 12 windows, 4 steps, 0.5 s each, and 4 workers; decoding for nothing.
    fast = Speed(found.speed.flops_per_s, 1e15, "given")
    alone = forecast(cost, make_plan({"longer": 100}), speed=fast).rows[0].alone_s
    assert alone == pytest.approx(12 * 4 * 0.5 / 4, rel=0.1)


def test_more_workers_help_as_far_as_there_are_windows(cost: CostModel) -> None:
    plan = make_plan({"long": 60})
    times = [forecast(cost, plan, speed=0.5, num_workers=n).total_s for n in (1, 2, 7, 50)]
    assert times[0] > 1.8 * times[1] > 3 * times[2]
    assert times[3] == pytest.approx(times[2], rel=0.1)


def test_too_many_tasks_are_bounded_not_simulated(
    cost: CostModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan({"long": 300, "longer": 400})
    simulated = forecast(cost, plan, speed=0.5)
    monkeypatch.setattr(module, "SIMULATED_TASKS", 10)
    bounded = forecast(cost, plan, speed=0.5)
    assert not bounded.is_simulated
    assert 0.85 * simulated.total_s < bounded.total_s < simulated.total_s
    assert "a lower bound" in bounded.lines()[-1]
    assert "simulated with the real planner" in simulated.lines()[-1]


def test_a_thousand_equal_rows_are_counted_and_simulated_once(cost: CostModel) -> None:
    found = forecast(cost, make_plan({f"row-{n}": 9 for n in range(1000)}), speed=0.5)
    assert found.total("tasks") == 1000
    assert found.total_s == pytest.approx(found.worker_s / 4, rel=0.02)
    assert len({row.alone_s for row in found.rows}) == 1


def test_without_a_speed_seconds_are_unknown_and_it_says_how_to_give_one(cost: CostModel) -> None:
    found = forecast(cost, make_plan(LENGTHS))
    assert (found.total_s, found.worker_s, found.efficiency) == (None, None, None)
    assert "--seconds-per-task" in found.lines()[-1]
    assert "--like" in found.lines()[-1]


def test_lines_tell_the_totals(mixed: Forecast) -> None:
    text = "\n".join(mixed.lines())
    assert (
        "7: 2 to render, 2 bad, 1 already there, 1 failed before, left alone, "
        "1 asking for a video of another row" in text
    )
    assert "2 videos, 69 frames" in text
    assert "8 a step; 29 tasks, 32 network calls" in text
    assert f"denoise {mixed.total('denoise_flops') / mixed.total('flops'):.0%}" in text
    assert "on 4 workers" in text
    assert "weights" in text


def test_nothing_to_do_is_said(cost: CostModel) -> None:
    found = forecast(cost, make_plan({"done": 12}, committed={"done"}), speed=0.5)
    assert found.lines()[-1] == "nothing to do"
    assert found.total_s is None


def test_json_has_everything(mixed: Forecast) -> None:
    plain = json.loads(json.dumps(mixed.to_plain()))
    assert plain["totals"]["tasks"] == 29
    assert plain["totals"]["flops"] == pytest.approx(mixed.total("flops"))
    assert plain["rows"][1]["clip"]["windows"] == 7
    assert plain["total_s"] == mixed.total_s
    assert plain["problems"][0][0] == "refused"


# Afterwards


def summary(**changes: Any) -> Summary:
    values = {"num_rows": 7, "num_committed": 4, "num_failed": 3, "num_quarantined": 0}
    more = {"num_frames": 81, "video_s": 20.0, "gpu_seconds": 0.0}
    return Summary(**{**values, **more, **changes})


def test_what_happened_stands_beside_what_was_planned(cost: CostModel) -> None:
    found = forecast(cost, make_plan({"long": 60, "short": 9}), speed=0.5)
    spent = {"condition": 1.0, "denoise": found.worker_s, "decode": 2.0, "commit": 50.0}
    lines = compare(
        found,
        summary(num_rows=3, num_committed=1, stage_seconds=spent),
        wall_s=2 * found.total_s,
        num_tasks=27,
        num_repeated=2,
    )
    text = "\n".join(lines)
    assert "planned 2, committed 1 (1 short)" in text
    assert "planned 29, done 27, 2 of them twice" in text
    ratio = (found.worker_s + 3.0) / found.worker_s
    assert f"({ratio:.2f}x)" in text
    assert "with it (2.00x)" in text
    busy = (found.worker_s + 3.0) / (4 * 2 * found.total_s)
    assert f"{busy:.0%} of the run, planned {found.efficiency:.0%}" in text


def test_seconds_of_earlier_runs_are_not_held_against_this_one(mixed: Forecast) -> None:
    """The summary adds up every committed video, those that were there before too."""
    found = compare(mixed, summary(stage_seconds={"denoise": 99.0}), wall_s=30.0)
    text = "\n".join(found)
    assert "planned 2, committed 2" in text
    assert "short" not in text
    assert "worker time" not in text
    assert "busy" not in text
    assert "run " in text


def test_without_a_speed_only_counts_are_compared(cost: CostModel) -> None:
    found = forecast(cost, make_plan({"long": 60}))
    lines = compare(found, summary(num_committed=1), wall_s=30.0, num_tasks=28)
    assert [line.split()[0] for line in lines] == ["videos", "tasks"]
    nothing = dataclasses.replace(found, rows=[])
    assert compare(nothing, summary(), wall_s=1.0) == []
