"""How busy the wavefront keeps its workers, by discrete events over the real planner; no GPU.

    python benchmarks/wavefront_sim.py                                # the usual table
    python benchmarks/wavefront_sim.py --frames 300 --workers 32 --steps 20 --latency 0.01
    python benchmarks/wavefront_sim.py --workers 8 --slow 2 --slow 1.5 --videos 3 --json sim.json
    python benchmarks/wavefront_sim.py --figure docs/images/wavefront.png

Efficiency is the work done over what the workers could have done in the time; a worker that is
twice as slow counts half. The barrier beside it: static spans of windows, all wait after a step,
and one video after the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from musev.config import Layout, WindowConfig
from musev.denoise.clip_plan import ClipPlan
from musev.denoise.simulate import (
    ClipModel,
    PoolModel,
    Prefetch,
    Timeline,
    simulate,
    simulate_lockstep,
)
from pipelines.wavefront_picture import Panel, draw_timelines

ROUND_TRIP_S, CONDUCTOR_S = 0.010, 0.005
"""A task's way to a worker and back, and what a conductor takes for one; measured on two cores."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the table."""

    frames: int
    workers: int
    steps: int
    videos: int = 1
    window: int = 12
    overlap: int = 4
    layout: Layout = "musev"
    task_s: float = 1.0
    spread: float = 0.05
    slow: tuple[float, ...] = ()
    latency_s: float = 0.0
    conductor_s: float = 0.0
    prefetch: Prefetch = "careful"
    seed: int = 0
    table: tuple[float, float] | None = None
    """Lock-step and wavefront as the design (section 3) has them."""

    @property
    def clips(self) -> list[ClipModel]:
        """The videos."""
        windows = WindowConfig(num_frames=self.window, overlap=self.overlap, layout=self.layout)
        plan = ClipPlan(self.frames, windows, num_steps=self.steps)
        return [ClipModel(plan=plan, task_s=self.task_s)] * self.videos

    @property
    def pool(self) -> PoolModel:
        """The workers."""
        return PoolModel(
            num_workers=self.workers,
            slowdown=self.slow,
            spread=self.spread,
            latency_s=self.latency_s,
            conductor_s=self.conductor_s,
            prefetch=self.prefetch,
            seed=self.seed,
        )

    @property
    def label(self) -> str:
        """What is special about the case."""
        notes = [f"{self.task_s:g} s a task"] if self.task_s != 1 else []
        if self.videos > 1:
            notes.append(f"{self.videos} videos")
        if self.slow:
            notes.append("slow: " + ", ".join(f"{factor:g}x" for factor in self.slow))
        if self.latency_s or self.conductor_s:
            notes.append(
                f"{1e3 * self.latency_s:g} ms way, {1e3 * self.conductor_s:g} ms conductor"
            )
        if self.prefetch != "careful":
            notes.append(f"prefetch: {self.prefetch}")
        return "; ".join(notes)


_REAL: dict[str, Any] = {"latency_s": ROUND_TRIP_S, "conductor_s": CONDUCTOR_S}
CASES = (
    Case(frames=96, workers=8, steps=20, table=(0.69, 0.99)),
    Case(frames=300, workers=8, steps=20, table=(0.90, 0.99)),
    Case(frames=300, workers=16, steps=20, table=(0.74, 0.99)),
    Case(frames=300, workers=32, steps=10, table=(0.56, 0.95)),
    Case(frames=300, workers=32, steps=30, table=(0.56, 0.98)),
    Case(frames=2304, workers=32, steps=20, table=(0.96, 1.00)),
    Case(frames=1440, workers=8, steps=20, slow=(2.0,), table=(0.53, 1.00)),
    # With what the way and the conductor cost, at the sizes that wavefront_ray.py runs.
    Case(frames=300, workers=8, steps=10, task_s=0.5, **_REAL),
    Case(frames=300, workers=32, steps=10, task_s=2.0, **_REAL),
    Case(frames=300, workers=32, steps=10, task_s=2.0, prefetch="never", **_REAL),
    Case(frames=300, workers=32, steps=10, task_s=2.0, prefetch="blind", **_REAL),
    # One conductor and more and more workers: 200 tasks a second is all it can do.
    Case(frames=2304, workers=96, steps=10, task_s=0.5, **_REAL),
    Case(frames=2304, workers=128, steps=10, task_s=0.5, **_REAL),
    # Videos beside one another fill each other's gaps.
    Case(frames=48, workers=8, steps=20, task_s=0.5, **_REAL),
    Case(frames=48, workers=8, steps=20, task_s=0.5, videos=8, **_REAL),
    Case(frames=12, workers=8, steps=20, task_s=0.5, videos=64, **_REAL),
)
FIGURE = Case(frames=96, workers=4, steps=6, slow=(1.5,))


def run_case(case: Case) -> tuple[Timeline, Timeline]:
    """Simulate a case both ways: by the wavefront's rules, and in lock-step."""
    return simulate(case.clips, case.pool), simulate_lockstep(case.clips, case.pool)


def describe(case: Case, front: Timeline, barrier: Timeline) -> dict[str, Any]:
    """All numbers of a case."""
    windows = max(case.clips[0].plan.num_windows(step) for step in range(case.steps))
    return {
        "case": dataclasses.asdict(case),
        "windows": windows,
        "tasks": sum(clip.num_tasks for clip in case.clips),
        "bound": min(1.0, case.videos * windows / case.workers),
        "seconds": front.total_s,
        "efficiency": front.efficiency,
        # Videos of one window need no barrier: every way is one worker a video.
        "barrier_seconds": barrier.total_s if windows > 1 else None,
        "barrier_efficiency": barrier.efficiency if windows > 1 else None,
    }


def show(rows: list[dict[str, Any]], cases: tuple[Case, ...]) -> None:
    """Print the table."""
    table = Table(
        *("frames (windows)", "workers", "steps", "tasks", "bound", "lock-step", "wavefront"),
        *("design", "what else"),
    )
    for case, row in zip(cases, rows, strict=True):
        table.add_row(
            f"{case.frames} ({row['windows']})",
            str(case.workers),
            str(case.steps),
            str(row["tasks"]),
            f"{row['bound']:.2f}",
            "-" if row["barrier_efficiency"] is None else f"{row['barrier_efficiency']:.3f}",
            f"{row['efficiency']:.3f}",
            "{:.2f} / {:.2f}".format(*case.table) if case.table else "-",
            case.label,
        )
    Console(width=140).print(table)


def draw_figure(case: Case, target: Path) -> None:
    """Draw both ways beside each other."""
    front, barrier = run_case(case)
    slow = ", ".join(f"{factor:g}" for factor in case.slow)
    heading = (
        f"{case.frames} frames in windows of {case.window} that share {case.overlap}, {case.steps} "
        f"steps, {case.workers} workers; a task takes {case.task_s:g} s, more or less "
        f"{case.spread:.0%}" + (f", on worker A {slow} times as long" if slow else "")
    )
    panels = [
        Panel(title, f"{found.total_s:.1f} s, workers busy {found.efficiency:.0%}", found)
        for title, found in (("Wavefront", front), ("Lock-step", barrier))
    ]
    draw_timelines(panels, heading=heading).save(target, optimize=True)


def parse_cases(options: argparse.Namespace) -> tuple[Case, ...]:
    """The table's cases, or the one that the options describe."""
    if options.frames is None and options.workers is None:
        return CASES
    return (
        Case(
            frames=options.frames or 300,
            workers=options.workers or 8,
            steps=options.steps,
            videos=options.videos,
            window=options.window,
            overlap=options.overlap,
            layout=options.layout,
            task_s=options.task_seconds,
            spread=options.spread,
            slow=tuple(options.slow),
            latency_s=options.latency,
            conductor_s=options.conductor,
            prefetch=options.prefetch,
            seed=options.seed,
        ),
    )


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Simulate the chosen cases, or draw the figure."""
    parser = argparse.ArgumentParser(description="Simulation of the wavefront.")
    parser.add_argument("--frames", type=int, help="of a video; without it the usual table")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--videos", type=int, default=1, help="at once, oldest first")
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--overlap", type=int, default=4)
    parser.add_argument("--layout", choices=get_args(Layout), default="musev")
    parser.add_argument("--task-seconds", type=float, default=1.0)
    parser.add_argument("--spread", type=float, default=0.05, help="deviation, as a share")
    parser.add_argument(
        "--slow", type=float, action="append", default=[], help="one worker takes so many times"
    )
    parser.add_argument("--latency", type=float, default=0.0, help="seconds there and back")
    parser.add_argument("--conductor", type=float, default=0.0, help="its seconds a task")
    parser.add_argument("--prefetch", choices=get_args(Prefetch), default="careful")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--figure", type=Path, help="draw the page's figure to this PNG instead")
    options = parser.parse_args(arguments)
    if options.figure is not None:
        draw_figure(FIGURE, options.figure)
        return []
    cases = parse_cases(options)
    rows = [describe(case, *run_case(case)) for case in cases]
    show(rows, cases)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main()
