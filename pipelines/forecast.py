"""What a run will cost before it runs, and afterwards the forecast beside what happened.

Seconds come from a simulation of the real planner, once the speed of a worker is known. Nothing
here starts Ray or reads weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from musev.config import Profile
from pipelines.clip_forecast import (
    BYTES_PER_PIXEL,
    TIMED,
    ClipForecast,
    FindCost,
    Speed,
    describe_bytes,
    describe_flops,
    forecast_clip,
    model_clip,
    speed_of_task,
)
from pipelines.plan import RunPlan
from pipelines.progress import describe_seconds
from pipelines.report import Summary

if TYPE_CHECKING:
    from musev.denoise.simulate import ClipModel, PoolModel

State = Literal["render", "same video", "committed", "failed before"]

SIMULATED_TASKS = 20_000
"""A run of more tasks is judged by a bound on its sums."""
# Of real Ray actors on two cores: benchmarks/RESULTS.md.
SPREAD, ROUND_TRIP_S, CONDUCTOR_S = 0.05, 0.010, 0.005


@dataclass(frozen=True, kw_only=True)
class RowForecast:
    """One good row of the manifest."""

    request_id: str
    state: State
    width: int
    height: int
    num_frames: int
    clip: ClipForecast | None
    """None where there is nothing to do."""
    worker_s: float | None = None
    """Of one worker, all tasks together; None while the speed is unknown."""
    alone_s: float | None = None
    """From its start to its end if it had the pool for itself."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run will cost."""

    rows: Sequence[RowForecast]
    problems: Sequence[tuple[str, str, str, str]]
    """Request id, stage, error class and message of every bad row."""
    num_workers: int
    speed: Speed | None = None
    total_s: float | None = None
    """Without start-up; None while the speed is unknown."""
    efficiency: float | None = None
    is_simulated: bool = False
    """Whether the seconds come from a simulation; otherwise they are a lower bound."""

    @property
    def clips(self) -> list[ClipForecast]:
        """Of every video to render, each once."""
        return [row.clip for row in self.rows if row.clip is not None]

    @property
    def num_frames(self) -> int:
        """Frames of the videos to render."""
        return sum(row.num_frames for row in self.rows if row.clip is not None)

    @property
    def worker_s(self) -> float | None:
        """Seconds of one worker for everything."""
        parts = [row.worker_s for row in self.rows if row.clip is not None]
        return None if self.speed is None else sum(part or 0.0 for part in parts)

    def total(self, name: str) -> float:
        """Sum one number of :class:`ClipForecast` over the videos to render."""
        return sum(getattr(clip, name) for clip in self.clips)

    def to_plain(self) -> dict[str, Any]:
        """Turn everything into plain values, totals included, for JSON."""
        names = ("tasks", "calls", "flops", "moved_bytes", "latents_moved_bytes", "video_bytes")
        totals = {name: self.total(name) for name in names}
        totals["memory_bytes"] = max((clip.memory_bytes for clip in self.clips), default=0)
        return {**dataclasses.asdict(self), "worker_s": self.worker_s, "totals": totals}

    def lines(self) -> list[str]:
        """Say the totals for people."""
        states = [row.state for row in self.rows]
        counts = [
            (len(self.problems), "bad"),
            (states.count("committed"), "already there"),
            (states.count("failed before"), "failed before, left alone"),
            (states.count("same video"), "asking for a video of another row"),
        ]
        rest = "".join(f", {count} {name}" for count, name in counts if count)
        num_rows = len(self.rows) + len(self.problems)
        lines = [f"rows           {num_rows}: {states.count('render')} to render{rest}"]
        if not self.clips:
            return [*lines, "nothing to do"]
        return [*lines, *self._work_lines(), *self._memory_lines(), *self._time_lines()]

    def _work_lines(self) -> list[str]:
        windows = sum(clip.windows for clip in self.clips)
        flops = self.total("flops")
        shares = [
            f"{name} {self.total(f'{name}_flops') / flops:.0%}"
            for name in ("condition", "denoise", "decode")
        ]
        return [
            f"to render      {len(self.clips)} videos, {self.num_frames} frames",
            f"windows        {windows} a step; {self.total('tasks'):.0f} tasks, "
            f"{self.total('calls'):.0f} network calls",
            f"work           {describe_flops(flops)} ({', '.join(shares)})",
        ]

    def _memory_lines(self) -> list[str]:
        most = max(self.clips, key=lambda clip: clip.memory_bytes)
        return [
            f"a worker       {describe_bytes(most.memory_bytes)}: weights "
            f"{describe_bytes(most.weights_bytes)}, conditions "
            f"{describe_bytes(most.conditions_bytes)}, tensors of the largest call "
            f"{describe_bytes(most.peak_bytes)} (counted; not the allocator's waste, the kernels' "
            "workspace and the process itself)",
            f"moved          {describe_bytes(self.total('moved_bytes'))}: latents "
            f"{describe_bytes(self.total('latents_moved_bytes'))}, conditions "
            f"{describe_bytes(self.total('conditions_moved_bytes'))}, videos about "
            f"{describe_bytes(self.total('video_bytes'))}",
        ]

    def _time_lines(self) -> list[str]:
        if self.speed is None or self.total_s is None or self.worker_s is None:
            return [
                "time           unknown: give --seconds-per-task S (one call on the costliest "
                "window), or --like OUT (an earlier run)"
            ]
        how = (
            "simulated with the real planner"
            if self.is_simulated
            else f"a lower bound, because there are more than {SIMULATED_TASKS} tasks to simulate"
        )
        return [
            f"speed          {describe_flops(self.speed.flops_per_s)}/s a worker "
            f"({self.speed.source})",
            f"time           {describe_seconds(self.total_s)} on {self.num_workers} workers, "
            f"{self.efficiency:.0%} busy, without start-up ({how}); "
            f"{describe_seconds(self.worker_s)} on one",
        ]


def usual_pool(num_workers: int) -> PoolModel:
    """The pool that forecasts are made for: equal workers, and what real ones lose."""
    from musev.denoise.simulate import PoolModel

    return PoolModel(
        num_workers=num_workers, spread=SPREAD, latency_s=ROUND_TRIP_S, conductor_s=CONDUCTOR_S
    )


def forecast_run(
    plan: RunPlan,
    find_cost: FindCost,
    *,
    num_workers: int,
    segment_frames: int,
    speed: Speed | float | None = None,
    bytes_per_pixel: float = BYTES_PER_PIXEL,
) -> Forecast:
    """Forecast a whole run.

    Args:
        plan: What is to be done with every row.
        find_cost: Of each profile that rows name.
        num_workers: Size of the pool.
        segment_frames: Frames decoded together.
        speed: As an earlier run measured it, or the seconds of one call on the costliest window of
            all rows; other calls scale with their FLOPs. None if nothing is known.
        bytes_per_pixel: Of finished videos.

    Returns:
        The forecast; its seconds are None without a speed.
    """
    clips = {
        row["row"]: forecast_clip(
            plan.request_of(row),
            find_cost(plan.request_of(row).profile),
            num_workers=num_workers,
            bytes_per_pixel=bytes_per_pixel,
        )
        for row in plan.to_render
    }
    if isinstance(speed, float):
        speed = speed_of_task(speed, clips.values())
    states: dict[int, State] = dict.fromkeys(clips, "render")
    states |= {row["row"]: "committed" for row in plan.committed}
    states |= {row["row"]: "failed before" for row in plan.failed_before}
    bad = {row["row"] for row in plan.unreadable}
    rows = [
        RowForecast(
            request_id=request.request_id,
            state=states.get(number, "same video"),
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            clip=clips.get(number),
        )
        for number, request in enumerate(plan.requests)
        if number not in bad
    ]
    forecast = Forecast(rows=rows, problems=plan.problems, num_workers=num_workers, speed=speed)
    if speed is None or not clips:
        return forecast
    models = {
        plan.requests[number].request_id: model_clip(
            plan.requests[number], clip, speed, segment_frames=segment_frames
        )
        for number, clip in sorted(clips.items())
    }
    return _with_seconds(forecast, models)


def _with_seconds(forecast: Forecast, models: Mapping[str, ClipModel]) -> Forecast:
    from musev.denoise.simulate import simulate

    pool = usual_pool(forecast.num_workers)
    clips = list(models.values())
    alone = _seconds_alone(forecast, models)
    rows = [
        row
        if row.clip is None
        else dataclasses.replace(
            row, worker_s=models[row.request_id].work_s, alone_s=alone[row.request_id]
        )
        for row in forecast.rows
    ]
    work_s = sum(clip.work_s for clip in clips)
    is_simulated = sum(clip.num_tasks for clip in clips) <= SIMULATED_TASKS
    total_s = simulate(clips, pool).total_s if is_simulated else _least_s(clips, pool)
    return dataclasses.replace(
        forecast,
        rows=rows,
        total_s=total_s,
        efficiency=min(work_s / (total_s * pool.num_workers), 1.0),
        is_simulated=is_simulated,
    )


def _seconds_alone(forecast: Forecast, models: Mapping[str, ClipModel]) -> dict[str, float]:
    """Simulate every video by itself; equal ones once, and at most as many tasks as for the run."""
    from musev.denoise.simulate import simulate

    pool = usual_pool(forecast.num_workers)
    known: dict[ClipForecast, float] = {}
    left = SIMULATED_TASKS
    found = {}
    for row in forecast.rows:
        if row.clip is None:
            continue
        if row.clip not in known:
            model = models[row.request_id]
            left -= model.num_tasks
            known[row.clip] = (
                simulate([model], pool).total_s if left >= 0 else _least_s([model], pool)
            )
        found[row.request_id] = known[row.clip]
    return found


def _least_s(clips: Sequence[ClipModel], pool: PoolModel) -> float:
    from musev.denoise.simulate import least_s

    return least_s(clips, pool)


def forecast_profile(plan: RunPlan, profile: Profile, num_workers: int) -> Forecast:
    """Forecast a run whose workers all hold one profile's networks; holds torch, needs no weights.

    Args:
        plan: What is to be done with every row.
        profile: Its weights and encoder.
        num_workers: Size of the pool.

    Returns:
        The forecast, without seconds.
    """
    from musev.models.cost import CostModel

    cost = CostModel(profile.weights, profile.precision)
    return forecast_run(
        plan,
        lambda _: cost,
        num_workers=num_workers,
        segment_frames=profile.encoder.segment_frames,
    )


def compare(
    forecast: Forecast,
    summary: Summary,
    *,
    wall_s: float,
    num_tasks: int | None = None,
    num_repeated: int = 0,
) -> list[str]:
    """Set a forecast beside what happened.

    Args:
        forecast: Made before the run.
        summary: Of the results table after it.
        wall_s: Seconds of the run, start-up included.
        num_tasks: Tasks answered in this run; None if nobody counted.
        num_repeated: Tasks computed twice, of those.

    Returns:
        Lines of what, planned, happened; empty if nothing was planned.
    """
    if not forecast.clips:
        return []
    states = [row.state for row in forecast.rows]
    is_first_run = "committed" not in states  # else the summary's seconds are not this run's
    there = states.count("committed") + states.count("same video")
    planned, happened = len(forecast.clips), max(summary.num_committed - there, 0)
    lines = [f"videos         planned {planned}, committed {happened}{_short(happened, planned)}"]
    if num_tasks is not None:
        tasks = round(forecast.total("tasks"))
        twice = f", {num_repeated} of them twice" if num_repeated else ""
        lines.append(f"tasks          planned {tasks}, done {num_tasks}{twice}")
    spent_s = sum(summary.stage_seconds.get(name, 0.0) for name in (*TIMED, "decode"))
    if forecast.worker_s is not None and spent_s and is_first_run:
        lines.append(
            f"worker time    planned {describe_seconds(forecast.worker_s)}, spent "
            f"{describe_seconds(spent_s)} ({spent_s / forecast.worker_s:.2f}x)"
        )
    if forecast.total_s is not None:
        lines.append(
            f"run            planned {describe_seconds(forecast.total_s)} without start-up, took "
            f"{describe_seconds(wall_s)} with it ({wall_s / forecast.total_s:.2f}x)"
        )
    if spent_s and is_first_run:
        lines.append(
            f"workers busy   {spent_s / (forecast.num_workers * wall_s):.0%} of the run"
            + (f", planned {forecast.efficiency:.0%}" if forecast.efficiency is not None else "")
        )
    return lines


def _short(happened: int, planned: int) -> str:
    return f" ({planned - happened} short)" if happened < planned else ""
