from __future__ import annotations

import collections
import itertools
import statistics

import pytest

from musev.config import Layout, WindowConfig
from musev.denoise.clip_plan import ClipPlan
from musev.denoise.simulate import (
    ClipModel,
    PoolModel,
    Run,
    Timeline,
    least_s,
    simulate,
    simulate_lockstep,
)
from musev.errors import ConfigError

REAL = {"latency_s": 0.01, "conductor_s": 0.005}


def clip(num_frames: int = 60, *, layout: Layout = "musev", steps: int = 5, **parts) -> ClipModel:
    plan = ClipPlan(num_frames, WindowConfig(layout=layout), num_steps=steps)
    return ClipModel(plan=plan, task_s=1.0, **parts)


def runs_by_worker(timeline: Timeline) -> dict[int, list[Run]]:
    found = collections.defaultdict(list)
    for run in timeline.runs:
        found[run.worker].append(run)
    return found


def wanted(model: ClipModel) -> list[tuple[object, ...]]:
    """Everything there is to do for a clip, straight from its plan."""
    plan, one_task = model.plan, model.plan.num_windows(0) == 1
    steps = range(1 if one_task else plan.num_steps)
    tasks = [
        ("denoise", step, number) for step in steps for number in range(plan.num_windows(step))
    ]
    num_segments = -(-plan.num_frames // model.segment_frames) if model.decode_frame_s else 0
    segments = [("decode", 0, number) for number in range(num_segments)]
    return [*([("condition",)] if model.condition_s else []), *tasks, *segments]


def names(timeline: Timeline) -> list[tuple[object, ...]]:
    return sorted(
        (run.clip, run.job.kind, *(run.job.task.key if run.job.task else ()))
        for run in timeline.runs
    )


CASES = [
    ([clip()], PoolModel(num_workers=3, spread=0.3)),
    ([clip(layout="rotating")], PoolModel(num_workers=4, spread=0.3, **REAL)),
    ([clip(layout="upstream_uniform")], PoolModel(num_workers=2, slowdown=(3.0,), **REAL)),
    ([clip(9), clip(40), clip(12)], PoolModel(num_workers=5, spread=0.1, prefetch="blind")),
    ([clip(100, condition_s=2.0, decode_frame_s=0.1)] * 2, PoolModel(num_workers=3, **REAL)),
]


@pytest.mark.parametrize("way", [simulate, simulate_lockstep])
@pytest.mark.parametrize(("clips", "pool"), CASES)
def test_every_job_is_done_once_and_no_worker_does_two(way, clips, pool: PoolModel) -> None:
    timeline = way(clips, pool)
    assert names(timeline) == sorted(
        (number, *job) for number, model in enumerate(clips) for job in wanted(model)
    )
    for runs in runs_by_worker(timeline).values():
        for one, other in itertools.pairwise(sorted(runs, key=lambda run: run.start_s)):
            assert one.stop_s <= other.start_s + 1e-9
    longer = [pool.slowdowns[run.worker] * run.work_s for run in timeline.runs]
    assert [run.stop_s - run.start_s for run in timeline.runs] == pytest.approx(longer)
    assert timeline.total_s >= max(run.stop_s for run in timeline.runs)
    assert timeline.efficiency <= 1.0 + 1e-9


@pytest.mark.parametrize(("clips", "pool"), CASES)
def test_no_task_starts_before_its_frames_are_there(clips, pool: PoolModel) -> None:
    timeline = simulate(clips, pool)
    done: dict[tuple[int, int, int], float] = collections.defaultdict(float)
    conditioned: dict[int, float] = collections.defaultdict(float)
    for run in timeline.runs:
        if run.job.kind == "condition":
            conditioned[run.clip] = run.stop_s
        elif run.job.kind == "denoise":
            last = run.job.task.step + run.job.num_steps - 1
            for frame in run.job.task.frames:
                key = run.clip, last, frame
                done[key] = max(done[key], run.stop_s)
    for run in timeline.runs:
        if run.job.kind == "denoise" and run.job.task.step:
            before = [done[run.clip, run.job.task.step - 1, f] for f in run.job.task.frames]
            assert run.start_s >= max(before) - 1e-9
        if run.job.kind == "decode":
            last = clips[run.clip].plan.num_steps - 1
            assert run.start_s >= max(done[run.clip, last, f] for f in run.job.task.frames) - 1e-9
        if run.job.kind != "condition":
            assert run.start_s >= conditioned[run.clip]


def test_one_worker_needs_the_sum_and_loses_nothing() -> None:
    model = clip(100, condition_s=2.0, decode_frame_s=0.1)
    timeline = simulate([model, clip(9)], PoolModel(num_workers=1))
    assert timeline.total_s == pytest.approx(model.work_s + 5.0)
    assert timeline.efficiency == pytest.approx(1.0)


def test_work_is_the_sum_of_the_jobs_whatever_the_layout() -> None:
    for layout in ("musev", "rotating", "upstream", "upstream_uniform"):
        model = clip(50, layout=layout, condition_s=1.0, decode_frame_s=0.1)
        done = simulate([model], PoolModel(num_workers=1)).work_s
        assert model.work_s == pytest.approx(done), layout


@pytest.mark.parametrize(("num_workers", "num_windows"), [(4, 7), (7, 7), (14, 7), (28, 7)])
def test_efficiency_is_bounded_by_windows_over_workers(num_workers: int, num_windows: int) -> None:
    model = clip(60, steps=40)
    assert model.plan.num_windows(0) == num_windows
    found = simulate([model], PoolModel(num_workers=num_workers)).efficiency
    bound = min(1.0, num_windows / num_workers)
    assert 0.97 * bound < found <= bound + 1e-9


def test_chance_does_not_depend_on_who_computes() -> None:
    """Otherwise two pools could not be compared."""
    model = clip()
    works = [
        {run.job.task.key: run.work_s for run in simulate([model], pool).runs}
        for pool in (PoolModel(num_workers=2, spread=0.2), PoolModel(num_workers=5, spread=0.2))
    ]
    assert works[0] == works[1]
    assert len(set(works[0].values())) > 20
    other = simulate([model], PoolModel(num_workers=2, spread=0.2, seed=1))
    assert {run.job.task.key: run.work_s for run in other.runs} != works[0]


def test_a_slow_worker_takes_fewer_tasks_here_and_stops_all_in_lockstep() -> None:
    model, pool = clip(200), PoolModel(num_workers=4, slowdown=(4.0,))
    front = simulate([model], pool)
    count = {worker: len(runs) for worker, runs in runs_by_worker(front).items()}
    assert count[0] < min(count[worker] for worker in (1, 2, 3)) / 3
    assert front.efficiency > 0.9
    assert simulate_lockstep([model], pool).efficiency < 0.4


def test_lockstep_takes_what_the_longest_span_takes() -> None:
    """7 windows on 4 workers: 2 rounds a step; 5 steps and 5 exchanges."""
    timeline = simulate_lockstep([clip(60)], PoolModel(num_workers=4, latency_s=0.25))
    assert timeline.total_s == pytest.approx(5 * (2 + 0.25))


def test_a_conductor_serves_one_answer_at_a_time() -> None:
    """40 workers of 1 s could do 40 tasks a second; a conductor of 0.1 s takes in 10."""
    model = clip(800, steps=4)
    timeline = simulate([model], PoolModel(num_workers=40, conductor_s=0.1))
    assert timeline.total_s == pytest.approx(model.num_tasks * 0.1, rel=0.05)


def test_a_second_task_ahead_hides_the_way_only_where_many_are_ready() -> None:
    def total(num_frames: int, num_workers: int, prefetch) -> float:
        pool = PoolModel(num_workers=num_workers, latency_s=0.5, prefetch=prefetch)
        return simulate([clip(num_frames)], pool).total_s

    assert total(400, 4, "careful") < 0.75 * total(400, 4, "never")
    # 37 windows for 32 workers: whoever grabs two leaves another without.
    assert total(300, 32, "careful") <= total(300, 32, "never")
    assert total(300, 32, "blind") > 1.2 * total(300, 32, "careful")


def test_the_oldest_clip_goes_first_and_others_fill_its_gaps() -> None:
    long = clip(36, steps=10)  # 4 windows for 8 workers
    pool = PoolModel(num_workers=8)
    alone = simulate([long], pool)
    both = simulate([long, clip(12, steps=10), clip(12, steps=10)], pool)
    assert both.clip_end_s(0) == pytest.approx(alone.total_s)
    assert both.total_s == pytest.approx(alone.total_s)
    assert both.efficiency > 1.4 * alone.efficiency
    three = simulate([clip(200)] * 3, PoolModel(num_workers=4))
    ends = [three.clip_end_s(number) for number in range(3)]
    assert ends == sorted(ends)
    assert ends[0] < 0.4 * ends[2]


def test_a_clip_that_fits_one_window_is_one_task() -> None:
    timeline = simulate([clip(12, steps=5)] * 6, PoolModel(num_workers=3, latency_s=1.0))
    assert len(timeline.runs) == 6
    assert {run.job.num_steps for run in timeline.runs} == {5}
    # No way there and back between steps: two clips a worker, one after the other.
    assert timeline.total_s == pytest.approx(2 * (5 + 1.0), abs=1.0)


def test_chance_evens_out_over_the_steps_of_one_task() -> None:
    def spread_of(steps: int) -> float:
        pool = PoolModel(num_workers=1, spread=0.3)
        runs = simulate([clip(12, steps=steps)] * 300, pool).runs
        return statistics.stdev(run.work_s / run.job.work_s for run in runs)

    assert spread_of(1) == pytest.approx(0.3, rel=0.15)
    assert spread_of(9) == pytest.approx(0.1, rel=0.15)


def test_noise_that_needs_the_whole_step_makes_a_barrier() -> None:
    free = simulate([clip(100)], PoolModel(num_workers=7, spread=0.3))
    waiting = clip(100, waits_for_all=lambda step: True)
    held = simulate([waiting], PoolModel(num_workers=7, spread=0.3))
    ends = collections.defaultdict(list)
    for run in held.runs:
        ends[run.job.task.step].append(run)
    for step in range(1, 5):
        last = max(run.stop_s for run in ends[step - 1])
        assert min(run.start_s for run in ends[step]) >= last
    assert held.total_s > free.total_s


@pytest.mark.parametrize("num_workers", [1, 3, 8, 30])
def test_no_schedule_beats_the_bound_and_ours_is_near(num_workers: int) -> None:
    clips = [clip(200, condition_s=3.0, decode_frame_s=0.05), clip(12), clip(50)]
    pool = PoolModel(num_workers=num_workers)
    bound = least_s(clips, pool)
    assert bound <= simulate(clips, pool).total_s + 1e-9
    assert simulate(clips, pool).total_s < 1.6 * bound
    slow = PoolModel(num_workers=num_workers, slowdown=(2.0,) * num_workers)
    assert least_s(clips, slow) == pytest.approx(2 * bound)


@pytest.mark.parametrize(
    ("values", "phrase"),
    [
        ({"num_workers": 0}, "at least 1 worker"),
        ({"num_workers": 2, "slowdown": (1.0, 2.0, 3.0)}, "slowdown"),
        ({"num_workers": 2, "slowdown": (0.0,)}, "slowdown"),
        ({"num_workers": 2, "latency_s": -1.0}, "must not be negative"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(values, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        PoolModel(**values)
