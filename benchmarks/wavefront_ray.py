"""How busy a real pool keeps its workers: broker, conductor and messages are real, networks sleep.

    python benchmarks/wavefront_ray.py
    python benchmarks/wavefront_ray.py --workers 32 --task-seconds 2 --json ray.json
    python benchmarks/wavefront_ray.py --workers 8 --slow-workers 1

One video of 512x512 latents: a task carries a window in float16 to a worker and both guidance
halves back. The barrier runs on the same workers: static spans of windows, everything of
a step sent ahead, all wait after a step. Efficiency is the work done over what the workers could
have done between the first window sent and the last one taken in; a worker that is twice as slow
counts half. The last run, in which nobody sleeps, shows how many tasks one conductor can serve.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table

from musev.clip_front import ClipFacts, open_front
from musev.config import (
    ClipRequest,
    EncoderConfig,
    FirstFrameConfig,
    SamplingConfig,
    ScheduleConfig,
    WindowConfig,
)
from musev.denoise.clip_plan import Task
from pipelines.checkpoints import ClipStore
from pipelines.conductor import Conductor, ConductorConfig
from pipelines.ledger import Ledger
from pipelines.pool import Lease, PoolPlan, Wish, start_broker
from pipelines.resources import connect
from pipelines.rows import request_to_json
from pipelines.wire import PackedTensor, pack, unpack

SIDE = 64
"""Latent rows and columns: a picture of 512x512."""
START_S = 300.0


def make_facts() -> ClipFacts:
    """What drives the windows has to know of the clip."""
    return ClipFacts(
        schedule=ScheduleConfig(),
        latent_height=SIDE,
        latent_width=SIDE,
        given_BCTHW=None,
        wire_dtype=torch.float16,
    )


@dataclass(frozen=True)
class Pickled:
    """A value that its receiver unpickles: who passes it on needs none of its modules (torch)."""

    data: bytes

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (self.data,)


class SleepingWorker:
    """A worker of the pool with the calls of :class:`pipelines.clip_worker.ClipWorker`.

    It is sent and answers what that one is and does, sleeps in between, and holds no torch.

    Args:
        folder: Storage, a folder of this machine.
        slowdown: How many times as long its tasks take.
        facts: Pickled facts of the clip, for whoever asks for conditions.
    """

    def __init__(self, folder: Path, slowdown: float, facts: bytes) -> None:
        self._folder = folder
        self._slowdown = slowdown
        self._facts = Pickled(facts)
        self._task_s = 0.0

    def hello(self) -> None:
        """Answer."""

    def pace(self, task_s: float) -> float:
        """Set how long a task takes; returns how many times longer it takes here."""
        self._task_s = task_s
        return self._slowdown

    def condition(self, row: Any) -> tuple[Any, Any, float, Any]:
        """No conditions."""
        return None, self._facts, 0.0, {}

    def denoise(
        self, name: str, clip: list[Any], noisy: PackedTensor, timestep: float, frames: Any
    ) -> tuple[PackedTensor, float]:
        """Sleep, and answer an array of the real size."""
        time.sleep(self._task_s * self._slowdown)
        _, *shape = noisy.bits.shape
        return PackedTensor(np.zeros((2, *shape), np.float16)), self._task_s * self._slowdown

    def decode(self, fps: float, latents: PackedTensor, path: str) -> tuple[int, float]:
        """Write a tiny file in a segment's place."""
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"segment")
        return latents.bits.shape[2], 0.0


class MakeWorkers:
    """Makes the workers of the pool, slow ones first. Lives in the broker and needs no torch."""

    def __init__(self, folder: Path, num_slow: int, facts: bytes) -> None:
        self._folder = folder
        self._slowdowns = itertools.chain([2.0] * num_slow, itertools.repeat(1.0))
        self._facts = facts

    def __call__(self, broker: Any) -> Any:
        """Start one."""
        actor = ray.remote(SleepingWorker).options(num_cpus=0)
        return actor.remote(self._folder, next(self._slowdowns), self._facts)


class Watch:
    """Wall and processor seconds from the first window sent to the last one taken in."""

    def __init__(self) -> None:
        self._first: tuple[float, float, float] | None = None
        self.wall_s = self.thread_s = self.process_s = 0.0

    def sends(self) -> None:
        """A window is about to be sent."""
        if self._first is None:
            self._first = time.monotonic(), time.thread_time(), time.process_time()

    def took_in(self) -> None:
        """A window has been merged."""
        assert self._first is not None
        now = time.monotonic(), time.thread_time(), time.process_time()
        self.wall_s, self.thread_s, self.process_s = (
            after - before for before, after in zip(self._first, now, strict=True)
        )


class WatchedConductor(Conductor):
    """The conductor, with a watch on it."""

    watch: Watch

    def _send_window(self, *arguments: Any) -> None:
        self.watch.sends()
        super()._send_window(*arguments)

    def _merge(self, *arguments: Any) -> None:
        super()._merge(*arguments)
        self.watch.took_in()


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Workers that are up."""

    broker: Any
    ledger: Ledger
    leases: tuple[Lease, ...]
    """One of each worker, handed back: for its handle."""
    capacity: float
    """Workers, slow ones by what they can do."""

    def pace(self, task_s: float) -> None:
        """Set how long a task takes."""
        ray.get([lease.worker.pace.remote(task_s) for lease in self.leases])


@contextmanager
def start_pool(num_workers: int, num_slow: int) -> Iterator[Pool]:
    """Start workers and wait until all are up."""
    with tempfile.TemporaryDirectory(prefix="musev-bench-") as folder:
        out = Path(folder) / "out"
        plan = PoolPlan(least=num_workers, most=num_workers)
        facts = pickle.dumps(make_facts())
        broker = start_broker(plan, MakeWorkers(out, num_slow, facts))
        wishes = [broker.lease.remote(Wish(order=(0, 0))) for _ in range(num_workers)]
        leases = tuple(ray.get(wishes, timeout=START_S))
        speeds = ray.get([lease.worker.pace.remote(0.0) for lease in leases])
        ray.get([broker.hand_back.remote(lease) for lease in leases])
        capacity = sum(1 / slowdown for slowdown in speeds)
        yield Pool(broker=broker, ledger=Ledger(str(out)), leases=leases, capacity=capacity)
        for lease in leases:
            ray.kill(lease.worker)
        ray.kill(broker)


def make_request(name: str, options: argparse.Namespace, *, steps: int) -> ClipRequest:
    """The video."""
    sampling = SamplingConfig(
        num_steps=steps,
        windows=WindowConfig(num_frames=options.window, overlap=options.overlap),
        first_frame=FirstFrameConfig(origin="noise"),
    )
    return ClipRequest(
        request_id=name,
        prompt="",
        num_frames=options.frames,
        fps=8.0,
        width=8 * SIDE,
        height=8 * SIDE,
        seed=0,
        profile="bench",
        sampling=sampling,
    )


def run_wavefront(pool: Pool, request: ClipRequest) -> tuple[Watch, int]:
    """Drive the video as the product does; returns the watch and the number of tasks."""
    name = request.request_id
    row = {"sample_id": name, "attempt_id": "1", "request": request_to_json(request)}
    conductor = WatchedConductor(
        pool.broker,
        row=row,
        request=request,
        order=0,
        store=ClipStore(pool.ledger, name),
        config=ConductorConfig(
            segment_frames=EncoderConfig().segment_frames, num_workers=len(pool.leases)
        ),
        on_progress=lambda stage, done, total: None,
    )
    conductor.watch = Watch()
    conductor.run()
    return conductor.watch, conductor.counts.tasks


def run_lockstep(pool: Pool, request: ClipRequest) -> Watch:
    """Drive the video with a barrier after every step, over the same workers and messages."""
    front = open_front(request, make_facts())
    watch = Watch()
    clip = [ray.put({}), ray.put(None)]
    for step in range(front.num_steps):
        spans = split_evenly(range(front.plan.num_windows(step)), len(pool.leases))
        sent: dict[Any, Task] = {}
        for lease, numbers in zip(pool.leases, spans, strict=True):
            for number in numbers:
                work = front.take(front.plan.task(step, number))
                watch.sends()
                noisy = pack(work.noisy_BCFHW.to(torch.float16))
                arguments = (request.request_id, clip, noisy, work.timestep, work.task.frames)
                sent[lease.worker.denoise.remote(*arguments)] = work.task
        while sent:
            (reference,), _ = ray.wait(list(sent))
            answer, _ = ray.get(reference)
            front.answer(sent.pop(reference), unpack(answer).float())
            watch.took_in()
    return watch


def split_evenly(numbers: range, count: int) -> list[Sequence[int]]:
    """Cut into spans whose lengths differ by one at most."""
    size, longer = divmod(len(numbers), count)
    cuts = [0, *itertools.accumulate(size + (index < longer) for index in range(count))]
    return [numbers[first:stop] for first, stop in itertools.pairwise(cuts)]


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all three ways on one pool."""
    task_s = options.task_seconds
    load = [round(os.getloadavg()[0], 1)]
    with start_pool(options.workers, options.slow_workers) as pool:
        run_wavefront(pool, make_request("warm", options, steps=1))
        say(f"{options.workers} workers are up")
        served, num_tasks = run_wavefront(pool, make_request("serve", options, steps=options.steps))
        pool.pace(task_s)
        load.append(round(os.getloadavg()[0], 1))
        front, tasks = run_wavefront(pool, make_request("front", options, steps=options.steps))
        load.append(round(os.getloadavg()[0], 1))
        barrier = run_lockstep(pool, make_request("barrier", options, steps=options.steps))
        load.append(round(os.getloadavg()[0], 1))
    assert tasks == num_tasks
    ideal_s = tasks * task_s / pool.capacity
    values = 4 * SIDE * SIDE * options.window
    return {
        "workers": options.workers,
        "slow_workers": options.slow_workers,
        "frames": options.frames,
        "windows": tasks // options.steps,
        "steps": options.steps,
        "tasks": tasks,
        "task_s": task_s,
        "bytes_sent": 4 * values,
        "bytes_answered": 2 * 2 * values,
        "seconds": front.wall_s,
        "efficiency": ideal_s / front.wall_s,
        "barrier_seconds": barrier.wall_s,
        "barrier_efficiency": ideal_s / barrier.wall_s,
        "conductor_cpu_s_a_task": front.thread_s / tasks,
        "process_cpu_s_a_task": front.process_s / tasks,
        "tasks_a_second": tasks / served.wall_s,
        "busy_conductor_cpu_s_a_task": served.thread_s / tasks,
        "busy_process_cpu_s_a_task": served.process_s / tasks,
        "load_average": load,
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table."""
    table = Table("what", "wavefront", "lock-step", title="One video over a pool of Ray actors")
    slow = f", {report['slow_workers']} of them twice as slow" if report["slow_workers"] else ""
    table.add_row("workers", f"{report['workers']}{slow}", "the same")
    windows = f"{report['windows']} windows x {report['steps']} steps x {report['task_s']:g} s"
    table.add_row("work", windows, "the same")
    table.add_row("seconds", f"{report['seconds']:.2f}", f"{report['barrier_seconds']:.2f}")
    table.add_row(
        "efficiency", f"{report['efficiency']:.3f}", f"{report['barrier_efficiency']:.3f}"
    )
    table.add_row(
        "conductor, CPU ms a task",
        f"{1000 * report['conductor_cpu_s_a_task']:.1f} "
        f"(whole process {1000 * report['process_cpu_s_a_task']:.1f})",
        "",
    )
    table.add_row("tasks a second, if nobody sleeps", f"{report['tasks_a_second']:.0f}", "")
    table.add_row("load average before, after each", str(report["load_average"]), "")
    console.print(table)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure and report."""
    parser = argparse.ArgumentParser(description="The wavefront over real Ray actors that sleep.")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--window", type=int, default=12)
    parser.add_argument("--overlap", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--task-seconds", type=float, default=0.5)
    parser.add_argument("--slow-workers", type=int, default=0, help="so many are twice as slow")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    # Ray's default of 15 would let workers starve on a machine that does other things too.
    os.environ.setdefault("RAY_worker_niceness", "0")
    connect()
    console = Console(width=110)
    try:
        report = measure(options, console.print)
    finally:
        ray.shutdown()
    show(report, console)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
